"""Algorithms: how a problem is solved, a family a file."""
