r"""The explicit reverse sweep: run, keep iterates, and go back over them.

`unroll_kept` runs like `iterdiff.loop.run`, for a number of steps that need not be known
beforehand, and JAX differentiates its answer. While it runs it keeps iterates in a given number
of slots: all of them as long as there is room, then every other one, oldest first. With
:math:`F` the step, the tangents of the run obey

.. math::

    \dot x_{t+1} = A_t \dot x_t + B_t \dot\theta, \qquad
    A_t = \partial_x F(x_t, \theta), \quad B_t = \partial_\theta F(x_t, \theta),

a block bidiagonal linear system. Substituting forward through it is forward mode, substituting
backward is reverse mode, and :func:`jax.lax.custom_linear_solve` takes both as they are, batches
them, and differentiates the system itself where a higher order is asked for.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import hoist, merged, perturbed
from iterdiff.jaxtools.lax import custom_solve
from iterdiff.loop.checkpoints import Checkpoints, run_with_checkpoints
from iterdiff.loop.pullback import Linearised
from iterdiff.loop.run import Loop, Run, arrays_of, begin, check_same, run_loop
from iterdiff.loop.unroll import Checkpoint, unroll


class ExplicitRun(NamedTuple):
    """What is run, with every input explicit.

    Attributes
    ----------
    step : callable
        ``step(inputs, arrays)`` returns the state's arrays one step later.
    run : callable
        ``run(inputs)`` returns the arrays at the end, steps and status.
    run_keeping : callable
        The same, and the `Checkpoints` iterates.
    unroll : callable
        The same as `run`, in a loop that JAX differentiates, keeping all that the steps compute.
    max_steps : int
    counted : bool
        Whether the number of steps is `max_steps` whatever happens.
    """

    step: Callable
    run: Callable
    run_keeping: Callable
    unroll: Callable
    max_steps: int
    counted: bool


ROOM = 5 * 2**19
"""Bytes that kept states may take of a run whose number of steps is not known beforehand."""

SHARE = 8
"""Or this fraction of what the step closes over (its data), if that is more."""

LITTLE = 2**18
"""Bytes that all that the steps of a counted run compute may take, to be kept rather than done
again: a shorter program, faster to compile and to run."""

LITTLE_SHARE = 4
"""Or this fraction of what the step closes over, if that is more."""

FORWARD_ALONE = "Reverse-mode differentiation does not work"
"""What JAX says of a step that it cannot transpose."""


def unroll_kept(loop: Loop, state: Any, checkpoint: Checkpoint) -> Run:
    """Run; JAX differentiates the steps that were taken.

    Parameters
    ----------
    loop : Loop
        What is iterated.
    state : pytree with an attribute ``x``
        Where to start; it is differentiated in, too.
    checkpoint : {"iterates", "sqrt"}
        How many iterates the reverse sweep keeps: of a counted run all of them; else as many
        as there is room for (see `ROOM`), or about twice the square root of `max_steps`.
        Those between two kept ones are computed once more.

    Returns
    -------
    Run
        As `loop.run` returns it.
    """
    start = begin(state)
    arrays, static = eqx.partition(start.state, eqx.is_array)

    def step(arrays):
        old = eqx.combine(arrays, static)
        new = loop.step(old)
        check_same(old, new)
        return arrays_of(new, old)

    of_arrays, closed_over = hoist(step, arrays)
    given = loop.satisfied or (lambda _: jnp.array(False))

    def look(arrays, steps):
        return given(Run(eqx.combine(arrays, static), steps, start.status))

    rule, of_rule = hoist(look, arrays, start.steps)
    # Data that both close over enters once, or the compiler does not see that their work is shared.
    closed_over, (of_step, of_rule) = merged(closed_over, of_rule)

    def advanced(closed_over, arrays):
        return of_arrays(of_step(closed_over), arrays)

    def explicit(inputs):
        closed_over, arrays = inputs

        def satisfied(run):
            return rule(of_rule(closed_over), eqx.filter(run.state, eqx.is_array), run.steps)

        def whole_step(state):
            return eqx.combine(advanced(closed_over, eqx.filter(state, eqx.is_array)), static)

        counted = loop.satisfied is None
        again = Loop(whole_step, None if counted else satisfied, loop.max_steps)
        return again, eqx.combine(arrays, static)

    slots = _slots(loop, checkpoint, arrays, closed_over)

    def end_of(run):
        return eqx.filter(run.state, eqx.is_array), run.steps, run.status

    def keep(inputs):
        run, kept = run_with_checkpoints(*explicit(inputs), slots)
        return end_of(run), kept

    def unrolled(inputs):
        again, start = explicit(inputs)
        return end_of(unroll(again.step, start, again.max_steps, "none"))

    plan = ExplicitRun(
        advanced,
        lambda inputs: end_of(run_loop(*explicit(inputs))),
        keep,
        unrolled,
        loop.max_steps,
        loop.satisfied is None,
    )
    arrays, steps, status = _differentiable(plan)((closed_over, arrays))
    return Run(eqx.combine(arrays, static), steps, status)


def _slots(loop: Loop, checkpoint: str, state: PyTree, closed_over: PyTree) -> int:
    """Return how many states are kept, at least 2."""
    root = 2 * math.ceil(math.sqrt(loop.max_steps))
    if checkpoint == "sqrt":
        return root
    if loop.satisfied is None:
        return max(2, loop.max_steps)
    room = max(ROOM, _bytes(closed_over) // SHARE)
    return max(root, min(loop.max_steps, room // _bytes(state)))


def _bytes(a: PyTree) -> int:
    return sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(a) if eqx.is_array(v))


def _differentiable(plan: ExplicitRun) -> Callable:
    """Return ``plan.run`` with its derivative: nothing is kept where none is asked for."""
    run, run_keeping = jax.custom_jvp(plan.run), jax.custom_jvp(plan.run_keeping)

    def both(primals, tangents):
        (end, steps, status), kept = run_keeping(*primals)
        moving, dots, fixed = perturbed(primals[0], tangents[0])
        to_end = tree.zeros_like(_floating(end))
        if moving:
            to_end = ReverseSweep(plan, fixed, moving, kept, steps).push(dots)
        primal, zeros = ((end, steps, status), kept), _no_tangent
        to_all = eqx.combine(to_end, zeros(end))
        return primal, ((to_all, zeros(steps), zeros(status)), zeros(kept))

    def rule(primals, tangents):
        moving, dots, fixed = perturbed(primals[0], tangents[0])
        if moving and _little(plan, fixed, moving):
            return jax.jvp(lambda moving: plan.unroll(fixed(moving)), (moving,), (dots,))
        (primal, _), (tangent, _) = both(primals, tangents)
        return primal, tangent

    run.defjvp(rule, symbolic_zeros=True)
    run_keeping.defjvp(both, symbolic_zeros=True)
    return run


def _little(plan: ExplicitRun, fixed: Callable, moving: list) -> bool:
    """Return whether all that the steps compute for their derivatives takes little memory."""
    closed_over, arrays = fixed(moving)
    room = max(LITTLE, _bytes(closed_over) // LITTLE_SHARE)
    if not plan.counted or plan.max_steps * _bytes(arrays) > room:
        return False
    linearised = Linearised(Step(plan, fixed), moving, arrays, plan.max_steps)
    return plan.max_steps * linearised.bytes_of_a_step <= room


def _no_tangent(a: PyTree) -> PyTree:
    """Return zeros in the tangent space of `a`."""

    def zero(leaf):
        if tree.is_floating(leaf):
            return jnp.zeros_like(leaf)
        return np.zeros(jnp.shape(leaf), jax.dtypes.float0)

    return jax.tree.map(zero, a)


class Step(NamedTuple):
    """The step on floating arrays, with moving inputs in place of those it closes over."""

    plan: ExplicitRun
    fixed: Callable

    def __call__(self, moving: list, floating: PyTree, arrays: PyTree) -> PyTree:
        """Return the floating arrays one step later; those of `arrays` are not looked at."""
        arrays = eqx.combine(floating, _rest(arrays))
        return _floating(self.plan.step(self.fixed(moving)[0], arrays))


class ReverseSweep(NamedTuple):
    """The linear map from tangents of the moving inputs to those of the end.

    Attributes
    ----------
    plan : ExplicitRun
    fixed : callable
        Puts moving inputs in their place among all inputs.
    moving : list of arrays
        The inputs that have a tangent.
    kept : keeping.Checkpoints
        Iterates of the run.
    steps : integer scalar
        How many steps were taken.
    """

    plan: ExplicitRun
    fixed: Callable
    moving: list
    kept: Checkpoints
    steps: Int[Array, ""]

    def push(self, dots: list) -> PyTree:
        """Return the end's tangents, such that JAX can transpose and differentiate them."""
        both = (dots, tree.zeros_like(self.start(self.moving)))

        def matvec(both):
            dots, end = both
            return dots, tree.sub(end, jax.jvp(self._replay, (self.moving,), (dots,))[1])

        def substitute(both):
            dots, end = both
            return dots, tree.add(end, self._forward(dots))

        def substitute_back(both):
            dots, end = both
            return tree.add(dots, self._backward(end)), end

        try:
            return custom_solve(matvec, both, substitute, substitute_back)[1]
        except ValueError as error:
            if FORWARD_ALONE not in str(error):
                raise
            # A loop inside the step (a line search): forward mode works, and reverse mode
            # raises JAX's own error when it is asked for.
            return jax.jvp(self._replay, (self.moving,), (dots,))[1]

    def start(self, moving: list) -> PyTree:
        """Return the floating arrays of the state at the start."""
        return _floating(self.fixed(moving)[1])

    def _replay(self, moving: list) -> PyTree:
        """Take the same steps again, as JAX differentiates them: for higher orders."""
        closed_over, arrays = self.fixed(moving)
        limit = None if self.plan.counted else self.steps
        end = unroll(
            lambda state: _Arrays(self.plan.step(closed_over, state.x)),
            _Arrays(arrays),
            self.plan.max_steps,
            "sqrt",
            limit,
        )
        return _floating(end.state.x)

    def _forward(self, dots: list) -> PyTree:
        """Substitute forward: iterates and tangents together, from the start."""
        arrays = self.fixed(self.moving)[1]

        def step(_, carry):
            arrays, tangent = carry
            new = self.plan.step(self.fixed(self.moving)[0], arrays)
            push = jax.jvp(
                lambda moving, floating: Step(self.plan, self.fixed)(moving, floating, arrays),
                (self.moving, _floating(arrays)),
                (dots, tangent),
            )[1]
            return new, push

        first = jax.jvp(self.start, (self.moving,), (dots,))[1]
        return jax.lax.fori_loop(0, self.steps, step, (arrays, first))[1]

    def _backward(self, cotangent: PyTree) -> list:
        """Substitute backward over the kept iterates, and over those between them."""
        arrays = self.fixed(self.moving)[1]
        slots = jax.tree.leaves(self.kept.states)[0].shape[0]
        linearised = Linearised(Step(self.plan, self.fixed), self.moving, arrays, slots)
        carry = (cotangent, tree.zeros_like(self.moving))

        def segment(carry):
            end, pulled = carry
            rows, first = self.kept.recover(self._advance, end)
            return first, linearised.pull(rows, end - first, pulled)

        if self.kept.all_of_them:
            cotangent, total = linearised.pull(self.kept.states, self.steps, carry)
        else:
            _, (cotangent, total) = jax.lax.while_loop(
                lambda carry: carry[0] > 0, segment, (self.steps, carry)
            )
        at_start = jax.vjp(self.start, self.moving)[1](cotangent)[0]
        return tree.add(total, at_start)

    def _advance(self, arrays: PyTree) -> PyTree:
        return self.plan.step(self.fixed(self.moving)[0], arrays)


def _floating(a: PyTree) -> PyTree:
    return eqx.filter(a, tree.is_floating)


def _rest(a: PyTree) -> PyTree:
    return eqx.filter(a, tree.is_floating, inverse=True)


class _Arrays(eqx.Module):
    """A state that is nothing but its arrays."""

    x: PyTree
