"""Time and memory of derivatives: iterdiff, other libraries and hand-written JAX."""
