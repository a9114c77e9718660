"""Modes: how the derivative of a solve is taken."""
