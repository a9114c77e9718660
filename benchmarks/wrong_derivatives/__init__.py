"""Derivatives of known error: which libraries flag the wrong ones."""
