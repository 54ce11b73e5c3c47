"""Tests with real clients. They need Node and Chromium; `make test-clients` installs both."""
