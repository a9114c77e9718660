"""The error of every late start of a run, from one reverse sweep.

A late start is `Unrolled` with ``last=k``. Measuring T + 1 of them with that public mode would
take T + 1 solves and derivatives, at a cost that grows with T^2. The sum over steps that reverse
mode accumulates passes through all of them, so one sweep of our own gives all errors at the cost
of one reverse pass.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

import iterdiff as itd
from iterdiff import theory
from iterdiff.diagnostics.reference import find_reference
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.task import Task
from iterdiff.study.config import Case

TOTALS_PER_STEPS = (4, 2, 1)
"""By default late starts are measured after a quarter of the steps, half, and all of them."""


class LateStarts(NamedTuple):
    """Errors of the late starts of one run.

    Attributes
    ----------
    totals : int array of shape (k,)
        Numbers of iterations T, ascending.
    errors : float array of shape (k, steps + 1)
        The absolute Frobenius error of the Jacobian after T iterations of which the first K are
        not differentiated, for K = 0 to T; infinite if it is not finite, and NaN for K > T.
    predicted : float
        The best K by theory, the same for every T; NaN without a contraction rate below 1, infinite
        if theory predicts that more steps should be skipped than the run has.
    """

    totals: np.ndarray
    errors: np.ndarray
    predicted: float


def late_starts(case: Case, totals: Sequence[int] | None = None) -> LateStarts:
    r"""Measure the late starts of a case for every K, and predict the best one.

    Let :math:`\Phi(T, s)` be the derivative of the state at T in the state at s. The Jacobian
    that starts at K is :math:`\sum_{s \ge K} \Phi(T, s+1)\, \partial_\theta F(x_s, \theta)`. Its
    rows are pulled back from T to 0 once; the partial sum after each step is one late start. The
    cost is one reverse pass over `case.steps` steps for each total.

    The prediction is `iterdiff.theory.late_start`, evaluated at each iterate until it predicts
    that no further step should be skipped. Its drift is :math:`(1 - \rho) \|J(x_t) - J^*\|` with
    the implicit derivative :math:`J(x_t)`. For one eigenmode this is the drift itself; of
    several, each counts with its total contribution.

    Parameters
    ----------
    case : Case
        A run, with a `rate` if the best start is to be predicted.
    totals : sequence of int, optional
        Numbers of iterations, at most the case's steps; by default `TOTALS_PER_STEPS` of these.

    Returns
    -------
    LateStarts
        The errors and the prediction.
    """
    task = Task(case.problem, case.algorithm, case.x0, case.theta, itd.Steps(case.steps))
    if totals is None:
        totals = [max(1, case.steps // share) for share in TOTALS_PER_STEPS]
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
        predicted = np.inf if predicted >= case.steps else predicted
    return LateStarts(ends, errors, predicted)


@eqx.filter_jit
def _last(task: Task, steps: int) -> PyTree:
    return _run(task, steps)[0].x


@eqx.filter_jit
def _predicted(
    task: Task, directions: PyTree, truth: PyTree, rate: Float[Array, ""]
) -> Int[Array, ""]:
    """Return the first iteration at which theory predicts that no further step be skipped."""
    arrays, static = eqx.partition(task.state(), eqx.is_array)
    tangents, norm = itd.Implicit().tangents(task, directions), tree.norm(truth)

    def too_early(carry):
        arrays, t = carry
        state = eqx.combine(arrays, static)
        wrong = tree.norm(tree.sub(tangents.value(tangents.init(state), state), truth))
        more = theory.late_start(rate, (1 - rate) * wrong, norm)
        return (t < task.stop.max_steps) & (more > 0.5)

    def advance(carry):
        arrays, t = carry
        new = task.algorithm.step(task.problem, eqx.combine(arrays, static), task.theta)
        return eqx.partition(new, eqx.is_array)[0], t + 1

    return jax.lax.while_loop(too_early, advance, (arrays, jnp.zeros((), int)))[1]


def _run(task: Task, steps: int) -> tuple[Any, PyTree]:
    """Return the last state, and the arrays of all previous states, stacked."""
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
    """Return the errors of all late starts, for all totals by one sweep over all steps."""
    problem, algorithm = task.problem, task.algorithm
    floating_theta, static_theta = floating_part(task.theta)
    kept = _run(task, steps)[1]
    start_state = task.state()
    static = eqx.filter(start_state, eqx.is_array, inverse=True)
    floating, other = floating_part(start_state)
    reference = tree.stack_to_matrix(truth).T
    _, pull_answer = jax.vjp(lambda f: tree.to_vector(eqx.combine(f, other).x), floating)
    rows = jax.vmap(pull_answer)(jnp.eye(reference.shape[0], dtype=reference.dtype))[0]

    def pull_all(pull, rows):
        """Pull back the rows of every total; return the part in theta as matrices."""
        back, gain = jax.vmap(jax.vmap(pull))(rows)
        return back, jax.vmap(jax.vmap(tree.to_vector))(gain)

    def back(carry, at):
        (rows_now, total), (arrays, t) = carry, at
        # A run of t + 1 iterations ends with this step, so its rows begin here.
        ends = totals == t + 1
        rows_now = jax.tree.map(lambda new, old: _where_total(ends, new[None], old), rows, rows_now)
        floating, other = floating_part(eqx.combine(arrays, static))

        def step(floating, floating_theta):
            state, theta = eqx.combine(floating, other), eqx.combine(floating_theta, static_theta)
            return floating_part(algorithm.step(problem, state, theta))[0]

        rows_now, gain = pull_all(jax.vjp(step, floating, floating_theta)[1], rows_now)
        rows_now = jax.tree.map(_flush_tiny, rows_now)
        total = total + gain
        return (rows_now, total), jnp.linalg.norm(total - reference[None], axis=(1, 2))

    no_rows = jax.tree.map(lambda row: jnp.zeros((totals.size, *row.shape), row.dtype), rows)
    no_sum = jnp.zeros((totals.size, *reference.shape), reference.dtype)
    (rows_now, total), errors = jax.lax.scan(
        back, (no_rows, no_sum), (kept, jnp.arange(steps)), reverse=True
    )

    def start(floating_theta):
        state = algorithm.init(problem, task.x0, eqx.combine(floating_theta, static_theta))
        return floating_part(state)[0]

    _, pull_start = jax.vjp(start, floating_theta)
    gain = jax.vmap(jax.vmap(lambda row: tree.to_vector(pull_start(row)[0])))(rows_now)
    first = jnp.linalg.norm(total + gain - reference[None], axis=(1, 2))
    none = jnp.broadcast_to(jnp.linalg.norm(reference), first.shape)
    return jnp.concatenate([first[:, None], errors.T[:, 1:], none[:, None]], axis=1)


def _where_total(which: Array, new: Array, old: Array) -> Array:
    return jnp.where(which.reshape(-1, *(1,) * (old.ndim - 1)), new, old)


def _flush_tiny(rows: Array) -> Array:
    """Flush tiny entries to zero; a linear solve inside a step cannot scale them."""
    return jnp.where(jnp.abs(rows) < jnp.finfo(rows.dtype).tiny ** 0.5, 0.0, rows)
