"""An inner run that goes on, with checks, until the gradient of the outer loss is accurate.

The run never restarts. Between two checks it takes as many steps as the observed convergence
predicts to be needed. Where theta has changed, the run goes on from the last iterate, with a new
memory of the algorithm. A check computes a Newton correction anyway: where the corrected gradient
is wanted, an unfinished run goes on from the corrected point, if that is certainly better.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff.algorithms.base import Algorithm
from iterdiff.algorithms.status import Status
from iterdiff.bilevel.examine import GRADIENTS_PER_CHECK, Examined, examine
from iterdiff.bilevel.schedule import Schedule, needed
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.jit import compiled
from iterdiff.jaxtools.snapshot import Snapshot
from iterdiff.loop.run import Loop, run_loop
from iterdiff.modes.implicit import Implicit
from iterdiff.problems.functions import bind
from iterdiff.problems.inputs import takes_data, with_data, with_snapshot
from iterdiff.problems.problem import Problem

JUMPED_MAX_PART = 0.5
"""Newton corrections follow each other, without steps between them, while each leaves at most this
part of the error."""

STANDSTILL_ROUNDINGS = 4
"""An iterate that moves by less than this many roundings of itself between checks has come as far
as it can."""

ENDED_ACCURATE, ENDED_REJECTED, ENDED_STANDSTILL, ENDED_EXHAUSTED, ENDED_FAILED = range(5)
RUNNING = -1


class Posed(eqx.Module):
    """What is solved inside and minimised outside.

    Attributes
    ----------
    problem : Problem
        With the snapshot of its functions, but without `args`.
    algorithm : Algorithm
    loss : callable
        ``loss(x, theta)`` or ``loss(x, theta, args)``.
    args : pytree
        Data for both. In a batch, every array has a leading axis.
    mode : Implicit
        How the gradient is taken.
    taken : Snapshot
        Of the loss; it tells programs apart.
    batched : bool
        Whether there is a batch of inner problems.
    """

    problem: Problem
    algorithm: Algorithm
    loss: Callable
    args: PyTree
    mode: Implicit
    taken: Snapshot
    batched: bool = eqx.field(static=True)

    def start(self, x0: PyTree, theta: PyTree) -> "InnerState":
        """Return the state of a run that has not begun."""
        return start_compiled(self, x0, theta)

    def go_on(
        self, theta: PyTree, state: Any, same: Bool[Array, ""], accuracy: "Accuracy"
    ) -> "Found":
        """Return what the run finds when it goes on, see `gone_on`."""
        return go_on_compiled(self, theta, state, same, accuracy)

    @property
    def members(self) -> int:
        """How many inner problems there are."""
        return jax.tree.leaves(self.args)[0].shape[0] if self.batched else 1

    def first(self) -> "Posed":
        """Return what is posed for the first member of a batch."""
        return _member(self, jax.tree.map(lambda v: v[0], self.args)) if self.batched else self

    def bound(self) -> tuple[Problem, Callable]:
        """Return the problem and the loss of its unknowns, with their data."""
        of_answer = self.loss if self.args is None else bind(self.loss, 2, self.args)

        def loss(unknowns, theta):  # which may have multipliers
            return of_answer(self.problem.answer(unknowns), theta)

        if self.args is None or not takes_data(self.problem):
            return self.problem, loss
        problem = with_data(self.problem, self.args)
        if self.problem.snapshot is not None:
            problem = with_snapshot(problem, self.problem.snapshot)
        return problem, loss


class InnerState(NamedTuple):
    """Where an inner run stands: what a call leaves to the next.

    Attributes
    ----------
    memory : pytree with an attribute ``x``
        The algorithm's state.
    nearest : pytree
        The best known inner solution, from which a run at another theta starts.
    adjoint : pytree
        The last solution of the adjoint system.
    schedule : Schedule
    """

    memory: Any
    nearest: PyTree
    adjoint: PyTree
    schedule: Schedule


class Accuracy(NamedTuple):
    """When a run may stop.

    Attributes
    ----------
    rtol, atol : scalar
        The upper bound of the gradient's error is at most ``rtol * |gradient| + atol``.
    of_corrected : bool
        Whether the corrected gradient counts, not that at the iterate. Such a run may also go on
        from the corrected point.
    reject_above : scalar
        Also if the corrected value is certainly above this.
    max_steps : integer scalar
        Or after this many steps.
    """

    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    of_corrected: Bool[Array, ""]
    reject_above: Float[Array, ""]
    max_steps: Int[Array, ""]


class Found(NamedTuple):
    """What a run found.

    Attributes
    ----------
    examined : Examined
        The outer loss; of a batch, the mean.
    state : InnerState
        Where it stands; of a batch, one of each.
    steps, checks : integer scalar
        Taken in this call.
    products : scalar
        Hessian products in this call, or NaN.
    ended : integer scalar
        Why it ended.
    """

    examined: Examined
    state: Any
    steps: Int[Array, "*b"]
    checks: Int[Array, "*b"]
    products: Float[Array, "*b"]
    ended: Int[Array, "*b"]

    @property
    def gradients(self) -> Int[Array, "*b"]:
        """Residuals evaluated: one a step, and those of the checks."""
        return self.steps + GRADIENTS_PER_CHECK * self.checks


def started(posed: Posed, x0: PyTree, theta: PyTree) -> InnerState:
    """Return the state of a run that has not begun."""

    def start(args):
        problem, _ = _member(posed, args).bound()
        memory = _strong(posed.algorithm.init(problem, x0, theta))
        dtype = tree.result_dtype(x0)
        infinite = jnp.asarray(jnp.inf, dtype)
        unknown = Schedule(jnp.zeros((), dtype), infinite, infinite)
        return InnerState(memory, x0, tree.zeros_like(x0), unknown)

    return jax.vmap(start)(posed.args) if posed.batched else start(posed.args)


def gone_on(
    posed: Posed, theta: PyTree, state: InnerState, same: Bool[Array, ""], accuracy: Accuracy
) -> Found:
    """Return what the run finds when it goes on from `state`.

    Parameters
    ----------
    posed : Posed
        What is solved.
    theta : pytree
        The parameters.
    state : InnerState
        Where the run stands.
    same : bool
        Whether it stands at this theta, so that the algorithm's memory is valid.
    accuracy : Accuracy
        When it may stop.
    """
    if not posed.batched:
        return _run(posed, theta, state, same, accuracy)
    found = jax.vmap(lambda args, state: _run(_member(posed, args), theta, state, same, accuracy))(
        posed.args, state
    )
    return found._replace(examined=found.examined.mean())


start_compiled = compiled(started)
go_on_compiled = compiled(gone_on)


class _Carry(NamedTuple):
    memory: Any
    examined: Examined
    schedule: Schedule
    steps: Int[Array, ""]
    checks: Int[Array, ""]
    products: Float[Array, ""]
    plan: Int[Array, ""]
    ended: Int[Array, ""]


def _member(posed: Posed, args: PyTree) -> Posed:
    return Posed(posed.problem, posed.algorithm, posed.loss, args, posed.mode, posed.taken, False)


def _strong(memory: Any) -> Any:
    return jax.tree.map(
        lambda v: jax.lax.convert_element_type(v, v.dtype) if eqx.is_array(v) else v, memory
    )


def _run(
    posed: Posed, theta: PyTree, state: InnerState, same: Bool[Array, ""], accuracy: Accuracy
) -> Found:
    problem, loss = posed.bound()
    arrays, static = eqx.partition(state.memory, eqx.is_array)

    def start_at(x):
        renewed = _strong(posed.algorithm.init(problem, x, theta))
        return eqx.filter(renewed, jax.tree.map(eqx.is_array, state.memory))

    arrays = tree.where(same, arrays, start_at(state.nearest))

    def examined(x):
        x = _refined(posed.mode, problem, x, theta)
        return examine(problem, loss, x, theta, posed.mode, state.adjoint)

    def advance(carry: _Carry) -> _Carry:
        def step(memory):
            return posed.algorithm.step(problem, memory, theta)

        before = eqx.combine(carry.memory, static)
        plan: Any = carry.plan  # a loop without derivatives takes a traced limit, too
        run = run_loop(Loop(step, None, plan), before)
        diverged = run.status == Status.DIVERGED
        found = examined(run.state.x).known_if(~diverged)
        carry = carry._replace(
            memory=eqx.filter(run.state, eqx.is_array),
            examined=found,
            steps=carry.steps + run.steps,
            checks=carry.checks + 1,
            products=carry.products + found.products,
        )
        moved = tree.norm(tree.sub(run.state.x, before.x))
        stalled = (moved <= STANDSTILL_ROUNDINGS * _rounding(run.state.x)) & (run.steps > 0)
        known = carry.schedule.relative
        carry = _planned(carry, run.steps, accuracy, stalled, diverged)
        closer = (run.steps > 0) | (carry.schedule.relative <= known * JUMPED_MAX_PART)
        return _jumped(carry, accuracy.of_corrected & found.improves & closer, start_at)

    nothing = tree.zeros_like(jax.eval_shape(examined, state.memory.x))
    zero = jnp.zeros((), jnp.int32)
    relative = jnp.where(same, state.schedule.relative, jnp.inf)
    schedule = state.schedule._replace(relative=relative)
    expected = jnp.where(jnp.isfinite(relative), relative, jnp.exp(schedule.start))
    some = needed(schedule._replace(relative=expected), accuracy.rtol, zero)
    plan = jnp.where(expected <= accuracy.rtol, 0, some)
    begin = _Carry(
        memory=arrays,
        examined=nothing,
        schedule=schedule,
        steps=zero,
        checks=zero,
        products=jnp.zeros_like(nothing.products),
        plan=jnp.minimum(plan, accuracy.max_steps).astype(jnp.int32),
        ended=jnp.full((), RUNNING, jnp.int32),
    )
    end = jax.lax.while_loop(lambda carry: carry.ended == RUNNING, advance, begin)
    memory = eqx.combine(end.memory, static)
    found = InnerState(memory, end.examined.nearest, end.examined.adjoint, end.schedule)
    return Found(end.examined, found, end.steps, end.checks, end.products, end.ended)


def _jumped(carry: _Carry, allowed: Bool[Array, ""], start_at: Callable) -> _Carry:
    """Let an unfinished run go on from the corrected point, with another check at once."""
    jumps = allowed & (carry.ended == RUNNING)
    return carry._replace(
        memory=tree.where(jumps, start_at(carry.examined.nearest), carry.memory),
        plan=jnp.where(jumps, 0, carry.plan),
    )


def _planned(
    carry: _Carry,
    taken: Int[Array, ""],
    accuracy: Accuracy,
    stalled: Bool[Array, ""],
    diverged: Bool[Array, ""],
) -> _Carry:
    """Judge the iterate of a check, and plan the steps to the next one."""
    found, schedule = carry.examined, carry.schedule
    target = accuracy.rtol * found.size + accuracy.atol
    known = accuracy.rtol * tree.norm(found.corrected) + accuracy.atol
    settled = found.one_sided & (found.error <= known)
    upper = jnp.where(accuracy.of_corrected, found.uncertainty, found.upper)
    accurate = (upper <= target) | settled
    rejected = found.better_value - 2 * found.value_slack > accuracy.reject_above
    failed = diverged | ~jnp.isfinite(found.value)
    finished = carry.steps >= accuracy.max_steps
    ended = jnp.select(
        [failed, accurate, rejected, stalled, finished],
        [ENDED_FAILED, ENDED_ACCURATE, ENDED_REJECTED, ENDED_STANDSTILL, ENDED_EXHAUSTED],
        RUNNING,
    )
    relative = upper / jnp.where(target > 0, target, 1.0) * accuracy.rtol
    relative = jnp.where(jnp.isnan(relative), jnp.inf, relative)
    change = jnp.log(relative) - jnp.log(schedule.relative)
    comparable = jnp.isfinite(change) & (taken > 0)
    steps = carry.steps.astype(change.dtype)
    many = jnp.maximum(taken, 1).astype(change.dtype)
    rate = jnp.where(comparable, jnp.minimum(change / many, 0.0), schedule.log_rate)
    start = jnp.log(relative) - jnp.where(comparable, rate, schedule.log_rate) * steps
    schedule = Schedule(rate, start, relative)
    plan = needed(schedule, accuracy.rtol, carry.steps)
    return carry._replace(
        schedule=schedule,
        plan=jnp.minimum(plan, accuracy.max_steps - carry.steps).astype(jnp.int32),
        ended=ended.astype(jnp.int32),
    )


def _rounding(x: PyTree) -> Float[Array, ""]:
    return jnp.finfo(tree.result_dtype(x)).eps * tree.norm(x)


def _refined(mode: Implicit, problem: Problem, x: PyTree, theta: PyTree) -> PyTree:
    """Return `x` after the Newton corrections of the mode."""
    if not mode.refine:
        return x
    return jax.lax.stop_gradient(mode.attach(problem, x, theta, throw=False))
