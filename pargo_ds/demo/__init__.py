"""The report of `make demo`."""
