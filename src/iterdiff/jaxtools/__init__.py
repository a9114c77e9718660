"""What we add to JAX: trees, closures, jaxprs, jit, exceptions, and imports of extras."""
