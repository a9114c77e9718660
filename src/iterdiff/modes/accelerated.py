r"""Accelerate the pair (x, J): Anderson's method on an iterate and its tangents together.

The step and its derivative make one map of pairs, :math:`(x, J) \mapsto (F(x), F_x J + F_\theta
V)`, whose fixed point is the solution with the solution derivative in the directions V. Anderson
acceleration of that map chooses one set of weights for both, and never differentiates them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff.algorithms.base import Algorithm, Iterate, StatelessAlgorithm
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import hoist, with_jvp
from iterdiff.jaxtools.lax import forward_only
from iterdiff.linalg.least_squares import least_squares, safe_length
from iterdiff.loop.task import Tangents, Task
from iterdiff.modes.tangents import UnrolledTangents

FORWARD_ONLY = (
    "`mode`: Unrolled(accelerate=...) gives first derivatives in forward mode only (jax.jvp, "
    "jax.jacfwd). For jax.grad, jax.jacrev and higher orders take iterdiff.Implicit() or "
    "iterdiff.Unrolled()."
)

STILL = 8
"""A pair that moves by less than this many units of rounding stands still."""

Pair = tuple[PyTree, PyTree]
"""An iterate, and its tangents stacked along a first axis."""

Step = Callable[[Pair], Pair]


class Window(NamedTuple):
    """A pair and its move as vectors, the iterate first, and the last differences of both."""

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
        The length of the window, if a pair has as many numbers; else their number. (More
        differences would depend on each other, and old ones mislead where the map is curved.)
    like : tuple of pytrees
        A pair of the shapes and dtypes that `step` takes.
    """

    step: Step
    depth: int
    like: Pair

    def begin(self) -> Window:
        """Return the window at the pair `like`, without differences."""
        pair = tree.to_vector(self.like)
        empty = jnp.zeros((min(self.depth, pair.size), pair.size), pair.dtype)
        return Window(pair, self._move(pair), empty, empty)

    def advance(self, window: Window) -> Window:
        """Return the window one step later.

        In the least-squares problem the moves of each part, the iterate and the tangents, count
        in units of how far it came within the window.
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

    def still(self, window: Window) -> Bool[Array, ""]:
        """Return whether neither part moves by more than rounding."""
        rounding = STILL * float(jnp.finfo(window.move.dtype).eps)
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
    """Refuse an algorithm that remembers more than its iterate.

    Raises
    ------
    ValueError
        Naming what to do.
    """
    if not isinstance(algorithm, StatelessAlgorithm):
        raise ValueError(
            f"`mode`: Unrolled(accelerate=...) takes algorithms whose state is the iterate alone, "
            f"such as GradientDescent, ProximalGradient and Picard, and {type(algorithm).__name__} "
            "remembers more. Leave `accelerate` out, or write its step as an "
            "iterdiff.FixedPoint and iterate that by iterdiff.Picard()."
        )


class JointTangents(Tangents):
    """Tangents of an accelerated pair, with an iterate of their own.

    The iterate that the tangents belong to is the pair's, not the one that the run is at: the
    run is looked at where it starts, and not again.
    """

    follow: UnrolledTangents
    depth: int

    def init(self, state: Any) -> Window:
        """Return the window at the start."""
        return self._accelerated(state, self.follow.init(state).x).begin()

    def update(self, carry: Window, state: Any) -> Window:
        """Return the window one step later."""
        return self._accelerated(state).advance(carry)

    def value(self, carry: Window, state: Any) -> PyTree:
        """Return the tangents of the pair's iterate."""
        return self._accelerated(state).tangents(carry)

    def _accelerated(self, state: Any, tangents: PyTree = None) -> Accelerated:
        if tangents is None:
            count = jax.tree.leaves(self.follow.directions)[0].shape[0]
            tangents = jax.tree.map(lambda v: jnp.zeros((count, *v.shape), v.dtype), state.x)

        def step(pair: Pair) -> Pair:
            x, tangents = pair
            task = self.follow
            new = task.algorithm.step(task.problem, Iterate(x), task.theta)
            return new.x, task.update(Iterate(tangents), Iterate(x)).x

        return Accelerated(step, self.depth, (state.x, tangents))


def attach(task: Task, x: PyTree, steps: Int[Array, ""], depth: int) -> PyTree:
    """Return `x` with the tangents of an accelerated pair as its derivative.

    The derivative is in everything that the steps depend on: the start, the parameters, the
    algorithm's hyper-parameters and closed-over values. The pair starts where the run did, takes
    at most `steps` steps, and ends before them when it stands still.

    Parameters
    ----------
    task : Task
        The run.
    x : pytree of real floating arrays
        Its answer, without a derivative.
    steps : integer scalar
        How many steps led to it.
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

    Directions that ``vmap`` adds (as ``jacfwd`` does) are followed by one pair together; where it
    adds runs, each has a pair of its own. Differentiating once more is refused.
    """

    def together(data, directions):
        closed_over, moving, x0, steps = data
        first, dots = directions

        def of_pair(pair: Pair) -> Pair:
            x, tangents = pair

            def push(tangent, dot):
                return jax.jvp(lambda *at: step(closed_over, *at), (x, moving), (tangent, dot))[1]

            return step(closed_over, x, moving), jax.vmap(push)(tangents, dots)

        pairs = Accelerated(of_pair, depth, (x0, first))

        def going_on(carry):
            window, count = carry
            return (count < steps) & ~pairs.still(window)

        def body(carry):
            window, count = carry
            return pairs.advance(window), count + 1

        start = (pairs.begin(), jnp.zeros_like(steps))
        return pairs.tangents(jax.lax.while_loop(going_on, body, start)[0])

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
