"""The peers: small programs for the same task, each written as in the documentation of its framework."""
