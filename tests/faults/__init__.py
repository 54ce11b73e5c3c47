"""Tests of the faults of a production environment, with servers that the tests start themselves."""
