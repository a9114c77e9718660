"""Grids of studies: what survives which fault, and what a cell costs."""
