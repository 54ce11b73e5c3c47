"""Tests with real clients, which need Node: make test-clients."""
