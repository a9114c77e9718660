r"""The explicit reverse sweep: run, keep states, and go back over them.

`unroll_kept` runs as `run_loop` does, for a number of steps that need not be known beforehand, and
JAX differentiates its result. While it runs it keeps states in a given number of slots (see
`Checkpoints`). With :math:`F` the step, the tangents of the run obey

.. math::

    \dot x_{t+1} = A_t \dot x_t + B_t \dot\theta, \qquad
    A_t = \partial_x F(x_t, \theta), \quad B_t = \partial_\theta F(x_t, \theta),

a block bidiagonal linear system. Forward substitution through it is forward mode, backward
substitution is reverse mode. :func:`jax.lax.custom_linear_solve` accepts both, batches them, and
differentiates the system itself for derivatives of higher order.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.closures import Perturbed, hoist, merge, with_jvp, zero_tangent
from iterdiff.jaxtools.lax import custom_solve
from iterdiff.loop.checkpoints import Checkpoints, run_with_checkpoints
from iterdiff.loop.pullback import LinearisedSteps
from iterdiff.loop.run import Loop, Run, arrays_of, begin, check_same, run_loop
from iterdiff.loop.unroll import Checkpoint, unroll


@dataclasses.dataclass(frozen=True)
class MemoryLimits:
    """How much memory the reverse sweep takes where the user does not say.

    Attributes
    ----------
    checkpoints_max_bytes : int
        Kept states of a run whose number of steps is not known beforehand.
    checkpoints_max_data_share : float
        The same, as a share of the arrays that the step closes over (its data), if that is more.
    keep_all_max_bytes : int
        If everything that the steps of a counted run compute takes no more than this, all of it is
        kept and nothing recomputed: the program is shorter, and compiles and runs faster.
    keep_all_max_data_share : float
        The same, as a share of the step's data, if that is more.
    """

    checkpoints_max_bytes: int = 5 * 2**19
    checkpoints_max_data_share: float = 1 / 8
    keep_all_max_bytes: int = 2**18
    keep_all_max_data_share: float = 1 / 4


LIMITS = MemoryLimits()


class ExplicitRun(NamedTuple):
    """A run with every input explicit: ``inputs = (closed_over, arrays of the start)``.

    Attributes
    ----------
    step : callable
        ``step(inputs, arrays)`` returns the arrays of the next state.
    run : callable
        ``run(inputs)`` returns the arrays at the end, the number of steps and the status.
    run_with_checkpoints : callable
        ``run_with_checkpoints(inputs)`` returns the same and the `Checkpoints`.
    unroll : callable
        ``unroll(inputs)`` returns the same as `run`, from a loop that JAX differentiates and that
        keeps everything the steps compute.
    max_steps : int
    counted : bool
        Whether the number of steps is certain to be `max_steps`.
    """

    step: Callable
    run: Callable
    run_with_checkpoints: Callable
    unroll: Callable
    max_steps: int
    counted: bool


def unroll_kept(
    loop: Loop, state: Any, checkpoint: Checkpoint, limits: MemoryLimits = LIMITS
) -> Run:
    """Run the loop; JAX differentiates the steps that were taken.

    Parameters
    ----------
    loop : Loop
        What is iterated.
    state : pytree with an attribute ``x``
        The start; the result carries a derivative in it, too.
    checkpoint : {"iterates", "sqrt"}
        How many states the reverse sweep keeps. "iterates": all states of a counted run, otherwise
        as many as `limits` allow. "sqrt": about twice the square root of `max_steps`. States
        between two kept ones are recomputed once.
    limits : MemoryLimits
        See there.

    Returns
    -------
    Run
        As `run_loop` returns it.
    """
    start = begin(state)
    arrays, static = eqx.partition(start.state, eqx.is_array)

    def step(arrays):
        old = eqx.combine(arrays, static)
        new = loop.step(old)
        check_same(old, new)
        return arrays_of(new, old)

    def satisfied(arrays, steps):
        run = Run(eqx.combine(arrays, static), steps, start.status)
        return jnp.array(False) if loop.satisfied is None else loop.satisfied(run)

    hoisted_step, of_step = hoist(step, arrays)
    hoisted_rule, of_rule = hoist(satisfied, arrays, start.steps)
    # Data that both close over enters once, or the compiler would not see that they share work.
    closed_over, (of_step, of_rule) = merge(of_step, of_rule)
    # What follows outlives this trace, and must not hold `loop`, which may hold traced values.
    steps, counted = loop.max_steps, loop.satisfied is None

    def explicit_step(inputs, arrays):
        return hoisted_step(of_step(inputs[0]), arrays)

    def bound(inputs) -> tuple[Loop, Any]:
        """Return the loop and its start as functions of the explicit inputs."""

        def whole_step(state):
            return eqx.combine(explicit_step(inputs, eqx.filter(state, eqx.is_array)), static)

        def rule(run):
            return hoisted_rule(of_rule(inputs[0]), eqx.filter(run.state, eqx.is_array), run.steps)

        return Loop(whole_step, None if counted else rule, steps), eqx.combine(inputs[1], static)

    def result(run):
        return eqx.filter(run.state, eqx.is_array), run.steps, run.status

    slots = _slots(loop, checkpoint, arrays, closed_over, limits)

    def run_and_keep(inputs):
        run, kept = run_with_checkpoints(*bound(inputs), slots)
        return result(run), kept

    def unrolled(inputs):
        again, start = bound(inputs)
        return result(unroll(again.step, start, again.max_steps, "none"))

    explicit = ExplicitRun(
        explicit_step,
        lambda inputs: result(run_loop(*bound(inputs))),
        run_and_keep,
        unrolled,
        steps,
        counted,
    )
    end, taken, status = _differentiable(explicit, (closed_over, arrays), limits)
    return Run(eqx.combine(end, static), taken, status)


def _slots(loop: Loop, checkpoint: str, state: PyTree, data: PyTree, limits: MemoryLimits) -> int:
    """Return how many states are kept, at least 2."""
    root = 2 * math.ceil(math.sqrt(loop.max_steps))
    if checkpoint == "sqrt":
        return root
    if loop.satisfied is None:
        return max(2, loop.max_steps)
    share = int(limits.checkpoints_max_data_share * tree.nbytes(data))
    room = max(limits.checkpoints_max_bytes, share)
    return max(root, min(loop.max_steps, room // tree.nbytes(state)))


def _differentiable(explicit: ExplicitRun, inputs: Any, limits: MemoryLimits) -> tuple:
    """Return ``explicit.run(inputs)`` with its derivative; states are kept only if it is taken."""

    def keep(inputs):
        return with_jvp(
            lambda inputs, _: explicit.run_with_checkpoints(inputs), inputs, rule_with_checkpoints
        )

    def tangent_at(perturbed, result, kept):
        end, steps, status = result
        to_end = ReverseSweep(explicit, perturbed, kept, steps).push()
        zero = zero_tangent((end, steps, status))
        return (eqx.combine(to_end, zero[0]), *zero[1:])

    def rule_with_checkpoints(call, perturbed, _):
        result, kept = call(perturbed.inputs, ())
        tangent = tangent_at(perturbed, result, kept)
        return (result, kept), (tangent, zero_tangent(kept))

    def rule(call, perturbed, _):
        del call  # the run with checkpoints gives the same result
        if _fits_whole(explicit, perturbed, limits):
            return jax.jvp(
                lambda *primals: explicit.unroll(perturbed.rebuild(primals)),
                perturbed.primals,
                perturbed.tangents,
            )
        result, kept = keep(perturbed.inputs)
        return result, tangent_at(perturbed, result, kept)

    return with_jvp(lambda inputs, _: explicit.run(inputs), inputs, rule)


def _fits_whole(explicit: ExplicitRun, perturbed: Perturbed, limits: MemoryLimits) -> bool:
    """Return whether everything that the steps compute for their derivatives may be kept."""
    data, arrays = perturbed.inputs
    share = int(limits.keep_all_max_data_share * tree.nbytes(data))
    room = max(limits.keep_all_max_bytes, share)
    if not explicit.counted or explicit.max_steps * tree.nbytes(arrays) > room:
        return False
    sweep = ReverseSweep(explicit, perturbed, None, jnp.int32(explicit.max_steps))
    linearised = sweep.linearised(explicit.max_steps)
    return explicit.max_steps * linearised.bytes_per_step <= room


class NotTransposable(Exception):
    """JAX cannot transpose a step: its own error is the cause."""


class ReverseSweep(NamedTuple):
    """The linear map from the tangents of perturbed inputs to the tangents of the end.

    Attributes
    ----------
    explicit : ExplicitRun
    perturbed : Perturbed
        The inputs that have a tangent.
    kept : Checkpoints or None
        States of the run; None if no sweep will run.
    steps : integer scalar
        Number of steps that were taken.
    """

    explicit: ExplicitRun
    perturbed: Perturbed
    kept: Checkpoints | None
    steps: Int[Array, ""]

    def push(self) -> PyTree:
        """Return the tangents of the end; JAX can transpose and differentiate them."""
        primals = self.perturbed.primals
        both = (self.perturbed.tangents, tree.zeros_like(self._start(primals)))

        def matvec(both):
            tangents, end = both
            return tangents, tree.sub(end, self._replayed(tangents))

        def substitute_forward(both):
            tangents, end = both
            return tangents, tree.add(end, self._forward(tangents))

        def substitute_backward(both):
            tangents, end = both
            try:
                return tree.add(tangents, self._backward(end)), end
            except ValueError as error:
                raise NotTransposable from error

        try:
            return custom_solve(matvec, both, substitute_forward, substitute_backward)[1]
        except NotTransposable:
            # The step contains a loop (a line search): forward mode works, and reverse mode
            # raises JAX's own error when it is used.
            return self._replayed(self.perturbed.tangents)

    def linearised(self, count: int) -> LinearisedSteps:
        """Return the step, linearised along `count` states."""
        example = self.perturbed.inputs[1]
        return LinearisedSteps(self._floating_step, self.perturbed.primals, example, count)

    def _start(self, primals: tuple) -> PyTree:
        """Return the floating arrays of the state at the start."""
        return _floating(self.perturbed.rebuild(primals)[1])

    def _step(self, arrays: PyTree) -> PyTree:
        return self.explicit.step(self.perturbed.inputs, arrays)

    def _floating_step(self, primals: tuple, floating: PyTree, arrays: PyTree) -> PyTree:
        """Return the next floating arrays; those of `arrays` are replaced by `floating`."""
        whole = eqx.combine(floating, _not_floating(arrays))
        return _floating(self.explicit.step(self.perturbed.rebuild(primals), whole))

    def _replayed(self, tangents: tuple) -> PyTree:
        """Return the tangents of the end, from steps that JAX differentiates to any order."""

        def end(*primals):
            inputs = self.perturbed.rebuild(primals)
            run = unroll(
                lambda state: _Arrays(self.explicit.step(inputs, state.x)),
                _Arrays(inputs[1]),
                self.explicit.max_steps,
                "sqrt",
                None if self.explicit.counted else self.steps,
            )
            return _floating(run.state.x)

        return jax.jvp(end, self.perturbed.primals, tangents)[1]

    def _forward(self, tangents: tuple) -> PyTree:
        """Substitute forward: states and their tangents together, from the start."""

        def step(_, carry):
            arrays, tangent = carry
            pushed = jax.jvp(
                lambda primals, floating: self._floating_step(primals, floating, arrays),
                (self.perturbed.primals, _floating(arrays)),
                (tangents, tangent),
            )[1]
            return self._step(arrays), pushed

        first = jax.jvp(self._start, (self.perturbed.primals,), (tangents,))[1]
        start = (self.perturbed.inputs[1], first)
        return manual_axes.fori_loop(0, self.steps, step, start)[1]

    def _backward(self, cotangent: PyTree) -> tuple:
        """Substitute backward over the kept states, and over recomputed states between them."""
        assert self.kept is not None
        kept, primals = self.kept, self.perturbed.primals
        linearised = self.linearised(kept.slots)
        carry = (cotangent, tree.zeros_like(primals))

        def segment(carry):
            end, pulled = carry
            rows, first = kept.recover(self._step, end)
            return first, linearised.pull(rows, end - first, pulled)

        if kept.has_all:
            cotangent, total = linearised.pull(kept.states, self.steps, carry)
        else:
            _, (cotangent, total) = manual_axes.while_loop(
                lambda carry: carry[0] > 0, segment, (self.steps, carry)
            )
        at_start = jax.vjp(self._start, primals)[1](cotangent)[0]
        return tree.add(total, at_start)


def _floating(a: PyTree) -> PyTree:
    return eqx.filter(a, tree.is_floating)


def _not_floating(a: PyTree) -> PyTree:
    return eqx.filter(a, tree.is_floating, inverse=True)


class _Arrays(eqx.Module):
    """A state that consists of its arrays."""

    x: PyTree
