"""Where users call it: solve, the decorator implicit, and solvers that JAX cannot trace."""
