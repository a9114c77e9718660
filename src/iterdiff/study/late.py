"""Late starts, all at once: the error for every number of steps that are left undifferentiated."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from iterdiff import theory
from iterdiff.diagnostics.reference import find_reference
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.stopping import Steps
from iterdiff.loop.task import Task
from iterdiff.modes.implicit import Implicit
from iterdiff.study.config import Case

SHARES = (4, 2, 1)
"""Late starts are measured for a quarter of the steps, for half, and for all of them."""


class LateStarts(NamedTuple):
    """What late starts of one run do.

    Attributes
    ----------
    totals : int array of shape (k,)
        Numbers of iterations T, ascending.
    errors : float array of shape (k, steps + 1)
        The absolute Frobenius error of the Jacobian after T iterations when the first K are left
        undifferentiated, for K = 0 to T, infinite where it is not finite; NaN beyond.
    predicted : float
        The K that theory calls best, whatever T; NaN where it has no contraction rate.
    """

    totals: np.ndarray
    errors: np.ndarray
    predicted: float


def late_starts(case: Case, totals: Sequence[int] | None = None) -> LateStarts:
    r"""Measure late starts of a case, for every K, and predict the best one.

    With :math:`\Phi(T, s)` the derivative of the state at T in that at s, the Jacobian that
    starts at K is :math:`\sum_{s \ge K} \Phi(T, s+1)\, \partial_\theta F(x_s, \theta)`. Its rows
    are pulled back from T to 0 once, and the sum after each step is one late start. The cost is
    that of reverse mode over `case.steps` steps, once for every total.

    The prediction is `iterdiff.theory.late_start`, asked anew at every iterate until it says: now.
    Its drift is :math:`(1 - \rho) \|J(x_t) - J^*\|` with the implicit derivative
    :math:`J(x_t)`. In one mode that is the drift itself; of several, each counts by what it adds
    up to.

    Parameters
    ----------
    case : Case
        A run, with a `rate` if the best start is to be predicted.
    totals : sequence of int, optional
        Numbers of iterations up to the case's steps; by default `SHARES` of these.
    """
    task = Task(case.problem, case.algorithm, case.x0, case.theta, Steps(case.steps))
    if totals is None:
        totals = [max(1, case.steps // share) for share in SHARES]
    ends = np.unique(totals)
    directions = tree.basis(floating_part(case.theta)[0])
    guess = task.x0 if case.reference is not None else _last(task, case.steps)
    truth = find_reference(case.problem, guess, case.theta, directions, case.reference).tangents
    errors = np.array(_sweep(task, truth, jnp.asarray(ends), case.steps))
    errors[~np.isfinite(errors)] = np.inf
    errors[np.arange(case.steps + 1)[None] > ends[:, None]] = np.nan
    predicted = np.nan
    norm = float(tree.norm(truth))
    if case.rate is not None and 0 < case.rate < 1 and norm > 0:
        predicted = float(_predicted(task, directions, truth, jnp.asarray(case.rate)))
    return LateStarts(ends, errors, predicted)


@eqx.filter_jit
def _last(task: Task, steps: int) -> PyTree:
    return _run(task, steps)[0].x


@eqx.filter_jit
def _predicted(
    task: Task, directions: PyTree, truth: PyTree, rate: Float[Array, ""]
) -> Int[Array, ""]:
    """Return the first iteration from which no further step is to be left out."""
    arrays, static = eqx.partition(task.state(), eqx.is_array)
    follow, norm = Implicit().tangents(task, directions), tree.norm(truth)

    def too_early(carry):
        arrays, t = carry
        state = eqx.combine(arrays, static)
        wrong = tree.norm(tree.sub(follow.value(follow.init(state), state), truth))
        more = theory.late_start(rate, (1 - rate) * wrong, norm)
        return (t < task.stop.max_steps) & (more > 0.5)

    def advance(carry):
        arrays, t = carry
        new = task.algorithm.step(task.problem, eqx.combine(arrays, static), task.theta)
        return eqx.partition(new, eqx.is_array)[0], t + 1

    return jax.lax.while_loop(too_early, advance, (arrays, jnp.zeros((), int)))[1]


def _run(task: Task, steps: int) -> tuple[Any, PyTree]:
    """Return the last state, and the arrays of every state that a step was taken from."""
    arrays, static = eqx.partition(task.state(), eqx.is_array)

    def advance(arrays, _):
        new = task.algorithm.step(task.problem, eqx.combine(arrays, static), task.theta)
        return eqx.partition(new, eqx.is_array)[0], arrays

    last, kept = jax.lax.scan(advance, arrays, None, length=steps)
    return eqx.combine(last, static), kept


@eqx.filter_jit
def _sweep(
    task: Task, truth: PyTree, totals: Int[Array, " k"], steps: int
) -> Float[Array, "k starts"]:
    """Return the errors of all late starts, for every total by one sweep over all steps."""
    problem, algorithm = task.problem, task.algorithm
    moving, rest = floating_part(task.theta)
    kept = _run(task, steps)[1]
    begin = task.state()
    static = eqx.filter(begin, eqx.is_array, inverse=True)
    floating, other = floating_part(begin)
    wanted = tree.stack_to_matrix(truth).T
    _, of_answer = jax.vjp(lambda f: tree.to_vector(eqx.combine(f, other).x), floating)
    rows = jax.vmap(of_answer)(jnp.eye(wanted.shape[0], dtype=wanted.dtype))[0]

    def several(pull, rows):
        """Pull back the rows of every total; the part of theta becomes a matrix."""
        back, gain = jax.vmap(jax.vmap(pull))(rows)
        return back, jax.vmap(jax.vmap(tree.to_vector))(gain)

    def back(carry, at):
        (rows_now, total), (arrays, t) = carry, at
        # A run of t + 1 iterations ends after this step: its rows begin here.
        ends = totals == t + 1
        rows_now = jax.tree.map(lambda new, old: _chosen(ends, new[None], old), rows, rows_now)
        floating, other = floating_part(eqx.combine(arrays, static))

        def step(floating, moving):
            state, theta = eqx.combine(floating, other), eqx.combine(moving, rest)
            return floating_part(algorithm.step(problem, state, theta))[0]

        rows_now, gain = several(jax.vjp(step, floating, moving)[1], rows_now)
        rows_now = jax.tree.map(_without_traces, rows_now)
        total = total + gain
        return (rows_now, total), jnp.linalg.norm(total - wanted[None], axis=(1, 2))

    nothing = jax.tree.map(lambda row: jnp.zeros((totals.size, *row.shape), row.dtype), rows)
    zero = jnp.zeros((totals.size, *wanted.shape), wanted.dtype)
    (rows_now, total), errors = jax.lax.scan(
        back, (nothing, zero), (kept, jnp.arange(steps)), reverse=True
    )

    def start(moving):
        state = algorithm.init(problem, task.x0, eqx.combine(moving, rest))
        return floating_part(state)[0]

    _, of_start = jax.vjp(start, moving)
    gain = jax.vmap(jax.vmap(lambda row: tree.to_vector(of_start(row)[0])))(rows_now)
    first = jnp.linalg.norm(total + gain - wanted[None], axis=(1, 2))
    none = jnp.broadcast_to(jnp.linalg.norm(wanted), first.shape)
    return jnp.concatenate([first[:, None], errors.T[:, 1:], none[:, None]], axis=1)


def _chosen(which: Array, new: Array, old: Array) -> Array:
    return jnp.where(which.reshape(-1, *(1,) * (old.ndim - 1)), new, old)


def _without_traces(rows: Array) -> Array:
    """Return zeros for what is too small to count, whose scale a linear solve cannot take."""
    return jnp.where(jnp.abs(rows) < jnp.finfo(rows.dtype).tiny ** 0.5, 0.0, rows)
