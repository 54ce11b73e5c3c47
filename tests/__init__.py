"""Tests of what a client sees, against a real PostgreSQL."""
