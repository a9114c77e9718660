"""The entry points: solve, the decorator implicit, and solvers that JAX cannot trace."""
