"""What production does to the service, done on purpose, against servers of the tests' own."""
