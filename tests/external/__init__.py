"""Tests against other libraries: their installed packages, and their own test suites."""
