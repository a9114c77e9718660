"""The arguments of an outer run: checked, converted, and put together."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from iterdiff.algorithms.base import Algorithm, check_fits
from iterdiff.bilevel.inner_run import Posed
from iterdiff.bilevel.nudged import Nudged
from iterdiff.bilevel.solver_calls import SolverCalls
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_bool, check_word
from iterdiff.jaxtools.snapshot import Snapshot, snapshot, traced
from iterdiff.loop.run import stop_gradient
from iterdiff.modes.base import Mode
from iterdiff.modes.implicit import Implicit
from iterdiff.problems.checks import checked_loss
from iterdiff.problems.functions import bind, has_room, is_implicit
from iterdiff.problems.inputs import check_inputs, takes_data, with_snapshot
from iterdiff.problems.problem import Minimization, Problem


class How(NamedTuple):
    """How the gradient is taken: `mode`, `batched` and `hessian_free` of `hypergradient`."""

    mode: Mode | None
    batched: bool
    hessian_free: str | None


def posed_of(
    loss: Any,
    problem: Problem,
    algorithm: Any,
    x0: PyTree,
    theta: PyTree,
    args: PyTree,
    how: How,
) -> tuple[Posed | Nudged, PyTree, PyTree]:
    """Return what is solved, after all checks, with `x0` and `theta` as arrays.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; the message names it.
    """
    mode, batched = how.mode, how.batched
    check_bool(batched=batched)
    if how.hessian_free is None:
        algorithm = _checked_algorithm(problem, algorithm, args)
    else:
        _check_nudged(problem, algorithm, how)
    mode = Implicit() if mode is None else mode
    if not isinstance(mode, Implicit):
        raise TypeError(
            f"`mode` must be iterdiff.Implicit(...), not {mode!r}: the steps of a run that goes on "
            "from an earlier solution are not all there to be differentiated."
        )
    if mode.gauss_newton or mode.singular != "raise" or mode.guess is not None:
        raise ValueError(
            "`mode` must have the exact, regular derivative here, and finds its own guess: leave "
            "out `gauss_newton`, `singular` and `guess`."
        )
    if not callable(loss):
        raise TypeError(f"`loss` must be a function (x, theta) -> scalar, not {loss!r}.")
    args = None if args is None else jax.tree.map(jnp.asarray, args)
    if batched:
        check_batch(args)
    one = jax.tree.map(lambda v: v[0], args) if batched else args
    if args is not None and not takes_data(problem) and has_room(loss, 2):
        bound, x0, theta = check_inputs(problem, x0, theta)
    else:
        bound, x0, theta = check_inputs(problem, x0, theta, one)
    if bound.layout is not None:
        raise TypeError(
            "`x0` and `theta` must have real floating leaves of at least 32 bits here, and `x0` no "
            "others; write complex numbers as two leaves, and pass the rest in `args`."
        )
    x0, theta = stop_gradient((x0, theta))
    taken = snapshot_of_loss(loss, problem.answer(x0), theta, one)
    assert bound.snapshot is not None
    problem = with_snapshot(problem, bound.snapshot)
    if how.hessian_free is not None and isinstance(problem, Minimization):
        return Nudged(problem, algorithm, loss, args, mode, taken), x0, theta
    return Posed(problem, algorithm, loss, args, mode, taken, batched), x0, theta


def _checked_algorithm(problem: Any, algorithm: Any, args: PyTree) -> Algorithm:
    """Return the inner algorithm; a function that `implicit` decorates becomes one."""
    if is_implicit(algorithm):
        if args is not None:
            raise ValueError(
                "`args` does not reach a solver with @iterdiff.implicit here; let the solver and "
                "the problem hold their data."
            )
        algorithm = SolverCalls(algorithm)
    check_fits(problem, algorithm)
    return algorithm


def _check_nudged(problem: Any, algorithm: Any, how: How) -> None:
    check_word("hessian_free", how.hessian_free, ("penalty",))
    if is_implicit(algorithm):
        raise ValueError(
            "`hessian_free` solves nudged problems, but a solver with @iterdiff.implicit knows its "
            "own problem only. Leave `hessian_free` out, or pass solver(fun, x0, tol)."
        )
    if not isinstance(problem, Minimization):
        raise ValueError(
            "`hessian_free` nudges the objective of an iterdiff.Minimization, but `problem` is a "
            f"{type(problem).__name__}. Leave it out."
        )
    if isinstance(algorithm, Algorithm) or not callable(algorithm):
        check_fits(problem, algorithm)
    if how.batched:
        raise ValueError(
            "`hessian_free` does not work with `batched=True`; sum the objectives of all "
            "members in one problem."
        )


def snapshot_of_loss(loss: Any, x0: PyTree, theta: PyTree, args: PyTree) -> Snapshot:
    """Return what a loss computes, after a check; the data may differ in every call.

    Raises
    ------
    TypeError
        If it does not return one real number.
    """

    def with_data(args):
        return loss if args is None else bind(loss, 2, args)

    checked_loss(with_data(args), x0, theta)
    return snapshot(traced(lambda x, theta, args: with_data(args)(x, theta), x0, theta, args)[0])


def check_batch(args: PyTree) -> None:
    """Raise ValueError unless all arrays of `args` have a leading axis of one length.

    Nor may that axis be one of an explicit mesh: under ``vmap``, JAX 0.10 has no while loops there.

    Raises
    ------
    ValueError
        The message names `args`.
    """
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(args)}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(
            "`args` must have one leading axis of the same length in every array with "
            f"`batched=True`, one entry for each inner problem, but the lengths are "
            f"{sorted(lengths)}."
        )
    if any(tree.axes_of(leaf) is not None for leaf in jax.tree.leaves(args)):
        raise ValueError(
            "`args` must not be spread over an explicit mesh with `batched=True`: make the mesh "
            "with axis_types=(jax.sharding.AxisType.Auto,)."
        )
