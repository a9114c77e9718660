"""Benchmarks of speed and of derivative errors, against other libraries and hand-written JAX."""
