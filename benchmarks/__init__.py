"""Benchmarks of the service and its peers. README.md in this folder describes the method."""
