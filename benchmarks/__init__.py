"""Measurements against other libraries, all of one table taken in one run."""
