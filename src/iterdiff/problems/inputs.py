"""The inputs of every entry point: checked, converted, and bound together."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from iterdiff.jaxtools.arguments import is_number
from iterdiff.jaxtools.placement import is_spread
from iterdiff.jaxtools.snapshot import Snapshot
from iterdiff.problems.active_set import completed
from iterdiff.problems.checks import check_problem, check_residual
from iterdiff.problems.constrained import PrimalDual
from iterdiff.problems.functions import bind, has_room, lacks_data
from iterdiff.problems.layout import Layout, is_unknown, layout_of, paired
from iterdiff.problems.leaf_checks import check_theta, check_x0
from iterdiff.problems.problem import Problem, replaced
from iterdiff.problems.seen_problem import seen_problem


def check_inputs(
    problem: Any, x: PyTree, theta: PyTree, args: PyTree = None, *, solved: bool = False
) -> tuple[Problem, PyTree, PyTree]:
    """Return the problem with its data and its snapshot, the unknowns, and `theta` as arrays.

    The unknowns and the parameters that are returned are those that we compute with, see `Layout`.

    Parameters
    ----------
    problem : Problem
        What the caller was given.
    x : pytree
        A point. If the residual has further unknowns, they are added.
    theta : pytree
        Parameters.
    args : pytree, optional
        Data for the problem's functions. Its derivative is zero.
    solved : bool
        Whether `x` is an answer, called ``x`` in error messages, rather than the start ``x0``.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; the message names it.
    """
    check_problem(problem)
    x = check_x0(x, "x" if solved else "x0")
    theta = check_theta(theta, x)
    layout = layout_of(problem.answer(x), theta)
    problem = seen_problem(with_data(problem, args), layout)
    if layout is not None:
        x, theta = plain(layout, x), paired(theta)
    problem = with_snapshot(problem, check_residual(problem, x, theta))
    problem = replaced(problem, spread=is_spread(x))
    unknowns = completed(problem, x, theta) if solved else problem.start(x, theta)
    return problem, unknowns, theta


def plain(layout: Layout, x: PyTree) -> PyTree:
    """Return the unknowns of `x`, which may have multipliers, as we compute with them."""
    if isinstance(x, PrimalDual):
        return PrimalDual(layout.split(x.x), paired(eqx.filter(x.multipliers, is_unknown)))
    return layout.split(x)


def with_data(problem: Problem, args: PyTree) -> Problem:
    """Return the problem whose functions receive `args` after their other inputs.

    Functions without room for one argument more stay as they are, as most proximal operators do.

    Raises
    ------
    TypeError
        If no function has room, or one needs data and `args` is None.
    """
    if args is None:
        _check_complete(problem)
        return problem
    if not takes_data(problem):
        names = ", ".join(f"`{name}`" for name in problem.functions) or "none"
        raise TypeError(
            f"`args` is data for the functions of {type(problem).__name__} ({names}), but none of "
            "them takes an argument more. Write them as (x, theta, args), or store the data in a "
            "field of your own Problem."
        )
    data = jax.tree.map(
        lambda leaf: jax.lax.stop_gradient(jnp.asarray(leaf)) if is_number(leaf) else leaf, args
    )
    functions = {name: getattr(problem, name) for name in problem.functions}
    return replaced(
        problem,
        **{
            name: bind(function, problem.functions[name], data)
            for name, function in functions.items()
            if callable(function)
        },
    )


def _check_complete(problem: Problem) -> None:
    """Raise TypeError if a function of the problem cannot be called without data."""
    for name, count in problem.functions.items():
        function = getattr(problem, name)
        if callable(function) and lacks_data(function, count):
            raise TypeError(
                f"`args` is missing: the {name} of {type(problem).__name__} receives {count} "
                "positional arguments without data, but it needs more. Pass the data as `args`, or "
                "give the parameter a default."
            )


def takes_data(problem: Problem) -> bool:
    """Whether some function of the problem has room for data after its other inputs."""
    functions = [(getattr(problem, name), count) for name, count in problem.functions.items()]
    return any(callable(f) and has_room(f, count) for f, count in functions)


def with_snapshot(problem: Problem, taken: Snapshot) -> Problem:
    """Return the problem with a snapshot of its functions."""
    return replaced(problem, snapshot=taken)
