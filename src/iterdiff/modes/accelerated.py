r"""Anderson acceleration of a pair (x, J): an iterate and its tangents together.

The step and its derivative form one map of pairs, :math:`(x, J) \mapsto (F(x), F_x J + F_\theta
V)`. Its fixed point is the solution together with the solution derivative in the directions V.
Anderson acceleration of this map chooses one set of weights for both, and never differentiates the
weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff.algorithms.base import Algorithm, Iterate, StatelessAlgorithm
from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.closures import hoist, with_jvp
from iterdiff.jaxtools.lax import forward_only
from iterdiff.linalg.least_squares import least_squares, safe_length
from iterdiff.loop.task import Tangents, Task
from iterdiff.modes.tangents import UnrolledTangents

FORWARD_ONLY = (
    "`mode`: Unrolled(accelerate=...) only supports first derivatives in forward mode (jax.jvp, "
    "jax.jacfwd). For jax.grad, jax.jacrev and higher orders use iterdiff.Implicit() or "
    "iterdiff.Unrolled()."
)

STATIONARY_MAX_ULPS = 8
"""A pair is stationary if it moves by less than this many units of rounding."""

Pair = tuple[PyTree, PyTree]
"""An iterate, and its tangents stacked along a first axis."""

Step = Callable[[Pair], Pair]


class Window(NamedTuple):
    """A pair and its move as vectors, iterate first, and the last differences of both."""

    pair: Float[Array, " n"]
    move: Float[Array, " n"]
    differences: Float[Array, "m n"]
    move_differences: Float[Array, "m n"]


class Accelerated(NamedTuple):
    """Anderson acceleration of a map of pairs.

    Attributes
    ----------
    step : callable
        Maps a pair to the next one.
    depth : int
        The length of the window, or the size of a pair if that is smaller. (More differences
        would be linearly dependent, and old ones mislead where the map is curved.)
    like : tuple of pytrees
        A pair of the shapes and dtypes that `step` takes.
    """

    step: Step
    depth: int
    like: Pair

    def begin(self) -> Window:
        """Return the window at the pair `like`, without differences yet."""
        pair = tree.to_vector(self.like)
        empty = tree.zero_rows(pair, min(self.depth, pair.size))
        return Window(pair, self._move(pair), empty, empty)

    def advance(self, window: Window) -> Window:
        """Return the window one step later.

        In the least-squares problem, the moves of the iterate and of the tangents are each
        measured in units of the distance covered within the window.
        """
        unit = self._units(window.differences)
        rounding = float(jnp.finfo(window.move.dtype).eps) ** 0.75
        weights = least_squares(window.move_differences * unit[None], window.move * unit, rounding)
        change = window.move - weights @ (window.differences + window.move_differences)
        pair = window.pair + change
        move = self._move(pair)
        return Window(
            pair,
            move,
            jnp.concatenate([window.differences[1:], change[None]]),
            jnp.concatenate([window.move_differences[1:], (move - window.move)[None]]),
        )

    def tangents(self, window: Window) -> PyTree:
        """Return the tangents, stacked along a first axis."""
        return tree.from_vector(window.pair, self.like)[1]

    def stationary(self, window: Window) -> Bool[Array, ""]:
        """Return whether neither part moves by more than rounding."""
        rounding = STATIONARY_MAX_ULPS * float(jnp.finfo(window.move.dtype).eps)
        moves = self._norms(window.move)
        return jnp.all(moves <= rounding * self._norms(window.pair))

    def _move(self, pair: Float[Array, " n"]) -> Float[Array, " n"]:
        return tree.to_vector(self.step(tree.from_vector(pair, self.like))) - pair

    def _norms(self, v: Float[Array, " n"]) -> Float[Array, "2"]:
        return jnp.stack([tree.norm(part) for part in jnp.split(v, [tree.size(self.like[0])])])

    def _units(self, differences: Float[Array, "m n"]) -> Float[Array, " n"]:
        parts = jnp.split(differences, [tree.size(self.like[0])], axis=1)
        scales = [jnp.full(part.shape[1], 1 / safe_length(part.ravel())) for part in parts]
        return jnp.concatenate(scales)


def check_accelerable(algorithm: Algorithm) -> None:
    """Raise if an algorithm's state holds more than its iterate.

    Raises
    ------
    ValueError
        With what to do.
    """
    if not isinstance(algorithm, StatelessAlgorithm):
        raise ValueError(
            f"`mode`: Unrolled(accelerate=...) needs an algorithm whose state is only the iterate, "
            f"such as GradientDescent or Picard, not {type(algorithm).__name__}. Leave "
            "`accelerate` out, or write the step as an iterdiff.FixedPoint solved by "
            "iterdiff.Picard()."
        )


class AcceleratedTangents(Tangents):
    """Tangents of an accelerated pair, with an iterate of their own.

    The tangents belong to the pair's iterate, not to the iterate of the run, which only provides
    the start.
    """

    unrolled: UnrolledTangents
    depth: int

    def init(self, state: Any) -> Window:
        """Return the window at the start."""
        return self._accelerated(state, self.unrolled.init(state).x).begin()

    def update(self, carry: Window, state: Any) -> Window:
        """Return the window one step later."""
        return self._accelerated(state).advance(carry)

    def value(self, carry: Window, state: Any) -> PyTree:
        """Return the tangents of the pair's iterate."""
        return self._accelerated(state).tangents(carry)

    def _accelerated(self, state: Any, tangents: PyTree = None) -> Accelerated:
        if tangents is None:
            count = jax.tree.leaves(self.unrolled.directions)[0].shape[0]
            tangents = tree.zero_rows(state.x, count)

        def step(pair: Pair) -> Pair:
            x, tangents = pair
            run = self.unrolled
            new = run.algorithm.step(run.problem, Iterate(x), run.theta)
            return new.x, run.update(Iterate(tangents), Iterate(x)).x

        return Accelerated(step, self.depth, (state.x, tangents))


def attach_accelerated(task: Task, x: PyTree, steps: Int[Array, ""], depth: int) -> PyTree:
    """Return `x` with the tangents of an accelerated pair as its derivative.

    The derivative is taken in everything that the steps depend on: the start, the parameters, the
    algorithm's hyper-parameters and closed-over values. The pair has the same start as the run. It
    takes at most `steps` steps, and stops earlier if it becomes stationary.

    Parameters
    ----------
    task : Task
        The run.
    x : pytree of real floating arrays
        The answer, without a derivative.
    steps : integer scalar
        Number of steps that led to it.
    depth : int
        The length of the window.
    """
    inputs, start, step = _explicit(task)

    def rule(_, perturbed, constants):
        x, steps = constants
        primals, tangents = perturbed.primals, perturbed.tangents
        x0, first = jax.jvp(lambda *p: start(perturbed.rebuild(p)), primals, tangents)
        taken, closed_over = hoist(lambda x, p: step(x, perturbed.rebuild(p)), x0, primals)
        end = _forward(taken, depth)((closed_over, primals, x0, steps), (first, tangents))
        return x, forward_only(end, FORWARD_ONLY)

    return with_jvp(lambda _, constants: constants[0], inputs, rule, (x, steps))


def _explicit(task: Task) -> tuple[Any, Callable, Callable]:
    """Return every input of the run, and its start and step as functions of them."""
    arrays, static = eqx.partition((task.problem, task.algorithm, task.theta), eqx.is_array)

    def of_arrays(x, arrays):
        problem, algorithm, theta = eqx.combine(arrays, static)
        return algorithm.step(problem, Iterate(x), theta).x

    converted, closed_over = hoist(of_arrays, task.x0, arrays)

    def step(x, inputs):
        _, arrays, closed_over = inputs
        return converted(closed_over, x, arrays)

    return (task.x0, arrays, closed_over), lambda inputs: inputs[0], step


def _forward(step: Callable, depth: int) -> Callable:
    """Return the tangents at the end, as a function of data and one direction.

    Directions that ``vmap`` adds (as ``jacfwd`` does) share one pair. Runs that it adds each have a
    pair of their own. Differentiating once more raises.
    """

    def together(data, directions):
        closed_over, primals, x0, steps = data
        first, given = directions

        def of_pair(pair: Pair) -> Pair:
            x, tangents = pair

            def push(tangent, direction):
                at = (x, primals)
                return jax.jvp(lambda *at: step(closed_over, *at), at, (tangent, direction))[1]

            return step(closed_over, x, primals), jax.vmap(push)(tangents, given)

        pairs = Accelerated(of_pair, depth, (x0, first))

        def unfinished(carry):
            window, count = carry
            return (count < steps) & ~pairs.stationary(window)

        def body(carry):
            window, count = carry
            return pairs.advance(window), count + 1

        start = (pairs.begin(), jnp.zeros_like(steps))
        return pairs.tangents(manual_axes.while_loop(unfinished, body, start)[0])

    def alone(data, direction):
        stacked = jax.tree.map(lambda v: v[None], direction)
        return jax.tree.map(lambda v: v[0], together(data, stacked))

    one = custom_vmap(alone)

    @one.def_vmap
    def several(size, batched, data, directions):
        if any(jax.tree.leaves(batched[0])):
            axes = jax.tree.map(lambda b: 0 if b else None, batched)
            out = jax.vmap(alone, in_axes=tuple(axes), axis_size=size)(data, directions)
        else:
            out = together(data, jax.tree.map(_stacked(size), batched[1], directions))
        return out, jax.tree.map(lambda _: True, out)

    once = jax.custom_jvp(one)

    @once.defjvp
    def refuse(primals, tangents):
        del primals, tangents
        raise RuntimeError(FORWARD_ONLY)

    return once


def _stacked(size: int) -> Callable:
    return lambda batched, v: v if batched else jnp.broadcast_to(v, (size, *v.shape))
