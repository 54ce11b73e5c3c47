"""The endpoints: a short function for each."""
