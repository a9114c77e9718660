"""Optimisers of optax, as algorithms for minimisation."""

from typing import Any, ClassVar

import jax
from jaxtyping import PyTree

from iterdiff.adapters.common import ForeignState
from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools.extras import import_extra
from iterdiff.problems.least_squares import MINIMIZATIONS
from iterdiff.problems.problem import Problem, SmoothMinimization


class OptaxAlgorithm(Algorithm):
    """A gradient transformation of optax; made by `from_optax`."""

    transformation: Any
    accepts: ClassVar[tuple[type[Problem], ...]] = MINIMIZATIONS

    def init(self, problem: SmoothMinimization, x0: PyTree, theta: PyTree) -> ForeignState:
        """Return the state at `x0`."""
        del problem, theta
        return ForeignState(x0, self.transformation.init(x0))

    def step(self, problem: SmoothMinimization, state: ForeignState, theta: PyTree) -> ForeignState:
        """Return the state after one update."""
        optax = import_extra("optax", "adapters")

        def objective(x: PyTree) -> jax.Array:
            return problem.objective(x, theta)

        value, gradient = jax.value_and_grad(objective)(state.x)
        update = optax.with_extra_args_support(self.transformation).update
        updates, memory = update(
            gradient, state.memory, state.x, value=value, grad=gradient, value_fn=objective
        )
        return ForeignState(optax.apply_updates(state.x, updates), memory)


def from_optax(transformation: Any) -> OptaxAlgorithm:
    r"""Return an optimiser of optax as an algorithm for `Minimization`.

    A step is :math:`u, m \leftarrow \mathrm{update}(\nabla_x f(x, \theta), m, x)` and
    :math:`x \leftarrow x + u`. It costs one gradient. The transformation also receives ``value``,
    ``grad`` and ``value_fn``, which line searches use.

    Limits of unrolling:

    - A line search with a data-dependent loop (``optax.lbfgs``) works in forward mode only. In
      reverse mode JAX raises "Reverse-mode differentiation does not work for lax.while_loop". Use
      ``Implicit()``, forward mode (``jax.jvp``, ``jax.jacfwd``) or a transformation without such
      a loop (``optax.lbfgs(linesearch=None)``, ``optax.sgd``).
    - Steps along the sign of a gradient (``optax.sign_sgd``, ``optax.lion``) have derivative
      zero, whatever the derivative of the solution is. Use ``Implicit()``.
    - Adam divides by :math:`\sqrt{v}`, whose derivative is infinite at :math:`v = 0`. If the run
      can reach an exact solution, make ``eps_root`` positive.

    Parameters
    ----------
    transformation : optax.GradientTransformation
        Such as ``optax.adam(1e-2)``. Its hyper-parameters are constants; to differentiate in
        them, construct the transformation inside the differentiated function.

    Returns
    -------
    Algorithm
        For `solve`, `trace` and every mode.

    Raises
    ------
    ImportError
        If optax is not installed.
    TypeError
        If `transformation` has no ``init`` and ``update``.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> import iterdiff as itd
    >>> problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2))
    >>> adam = itd.adapters.from_optax(optax.adam(0.1))
    >>> def loss(theta):
    ...     return itd.solve(problem, adam, jnp.zeros(2), theta, stop=itd.Steps(400)).x.sum()
    >>> jax.grad(loss)(jnp.array([1.0, 3.0])).round(6).tolist()
    [1.0, 1.0]
    """
    import_extra("optax", "adapters")
    if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
        raise TypeError(
            "`transformation` must be an optax.GradientTransformation such as optax.adam(1e-2), "
            f"not {transformation!r}."
        )
    return OptaxAlgorithm(transformation)
