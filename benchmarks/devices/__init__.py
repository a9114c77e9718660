"""Solves on several devices."""
