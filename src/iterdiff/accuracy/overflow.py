"""Points where an objective overflows: its derivatives are no derivatives there."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from iterdiff.problems.problem import Problem, SmoothMinimization


def finite_at(problem: Problem, x: PyTree, theta: PyTree) -> Bool[Array, ""]:
    """Return whether the objective of a smooth minimisation is finite at `x`.

    Its gradient may be finite where it is not: that of ``log(1 + x**2)`` is zero where ``x**2``
    overflows. Other problems have no objective, or one that is infinite where a constraint is
    violated; for them the answer is True.
    """
    if not isinstance(problem, SmoothMinimization):
        return jnp.array(True)
    return jnp.isfinite(jax.lax.stop_gradient(problem.value(x, theta)))
