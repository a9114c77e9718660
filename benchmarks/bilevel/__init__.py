"""Outer optimisation: accuracy where a decision needs it, against accuracy chosen in advance."""
