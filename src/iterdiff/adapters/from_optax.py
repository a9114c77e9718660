"""Optimisers of optax."""

from typing import Any, ClassVar

import jax
from jaxtyping import PyTree

from iterdiff.adapters.common import ForeignState
from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools.extras import import_extra
from iterdiff.problems.problem import Minimization, Problem


class OptaxAlgorithm(Algorithm):
    """A gradient transformation of optax; made by `from_optax`."""

    transformation: Any
    accepts: ClassVar[tuple[type[Problem], ...]] = (Minimization,)
    consistent: ClassVar[bool] = True

    def init(self, problem: Minimization, x0: PyTree, theta: PyTree) -> ForeignState:
        """Return the state at `x0`."""
        del problem, theta
        return ForeignState(x0, self.transformation.init(x0))

    def step(self, problem: Minimization, state: ForeignState, theta: PyTree) -> ForeignState:
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
    :math:`x \leftarrow x + u`. It costs one gradient; where the transformation asks for them
    (line searches), it is also given ``value``, ``grad`` and ``value_fn``.

    What the steps do at an exact solution is the transformation's affair: Adam divides by
    :math:`\sqrt{v}`, whose derivative is infinite at :math:`v = 0` unless ``eps_root`` is positive.
    A line search that loops until it is content (``optax.lbfgs``) can be unrolled in forward mode
    alone; in reverse mode JAX says "Reverse-mode differentiation does not work for
    lax.while_loop". Then take ``Implicit()``, forward mode (``jax.jvp``, ``jax.jacfwd``) or a
    transformation without such a loop (``optax.lbfgs(linesearch=None)``, ``optax.sgd``). Steps by
    the sign of a gradient (``optax.sign_sgd``, ``optax.lion``) have the derivative zero, whatever
    that of the solution is: ``Implicit()``, too.

    Parameters
    ----------
    transformation : optax.GradientTransformation
        Such as ``optax.adam(1e-2)``. Its hyper-parameters are constants; to differentiate in
        them, make it inside the function that is differentiated.

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
