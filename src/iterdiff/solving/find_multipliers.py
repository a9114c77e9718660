"""The multipliers of a solution that was found without them."""

from jaxtyping import PyTree

from iterdiff.jaxtools.jit import compiled
from iterdiff.modes.implicit import Implicit
from iterdiff.problems.constrained import ConstrainedProblem, Multipliers, PrimalDual
from iterdiff.problems.inputs import check_inputs
from iterdiff.problems.problem import Problem


def multipliers(problem: Problem, x: PyTree, theta: PyTree, *, args: PyTree = None) -> Multipliers:
    r"""Return the multipliers at a solution `x` that any solver has found.

    They minimise :math:`\|\nabla f + J^\top \lambda\|^2 + \|\mathrm{diag}(g) \lambda\|^2` over the
    multipliers :math:`\lambda` of all constraints, whose Jacobian is `J`: both terms vanish at a
    solution. Multipliers of inequalities are then made nonnegative. The derivative in theta is the
    implicit one, of the KKT system; that in `x` is zero.

    Parameters
    ----------
    problem : ConstrainedMinimization or QuadraticProgram
        The problem.
    x : pytree of real floating arrays
        Its solution. The error of the multipliers is proportional to that of `x`.
    theta : pytree
        The parameters.
    args : pytree, optional
        Data for the problem's functions, as in `iterdiff.solve`.

    Returns
    -------
    Multipliers
        If the multipliers are not unique, the shortest.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the problem has no constraints.

    References
    ----------
    T. Glad and E. Polak, *A multiplier method with automatic limitation of penalty growth*,
    Mathematical Programming 1979.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.ConstrainedMinimization(
    ...     lambda x, theta: jnp.sum((x - theta) ** 2) / 2,
    ...     inequality=lambda x, theta: jnp.sum(x**2) - 1,
    ... )
    >>> found = itd.multipliers(problem, jnp.array([0.6, 0.8]), jnp.array([3.0, 4.0]))
    >>> found.inequality.round(3).item()
    2.0
    """
    problem, unknowns, theta = check_inputs(problem, x, theta, args, solved=True)
    if not isinstance(problem, ConstrainedProblem):
        raise TypeError(
            f"`problem` must have constraints, but it is a {type(problem).__name__}; use "
            "iterdiff.ConstrainedMinimization or iterdiff.QuadraticProgram."
        )
    return _attached(problem, unknowns, theta)


@compiled
def _attached(problem: ConstrainedProblem, unknowns: PrimalDual, theta: PyTree) -> Multipliers:
    return Implicit().attach(problem, unknowns, theta, throw=True).multipliers
