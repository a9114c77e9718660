"""Inner problems whose objective has a small multiple of the outer loss, and their differences.

Everything here takes a `Nudged` problem: see there for the formulas.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.jit import compiled
from iterdiff.jaxtools.tree import floating_part
from iterdiff.problems.problem import Minimization

NUDGES = np.array([-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0])
"""The nudges, in units of the smallest."""

STILL_ROUNDINGS = 4
"""A step shorter than this many roundings of the iterate is none."""


class Objective(eqx.Module):
    """The inner objective with a multiple of the outer loss."""

    inner: Callable
    loss: Callable
    nudge: Any

    def __call__(self, x: PyTree, theta: PyTree) -> Float[Array, ""]:
        """Return the nudged objective."""
        return self.inner(x, theta) + self.nudge * self.loss(x, theta)


class Levels(NamedTuple):
    """Central differences with three nudges, the smallest first."""

    gradients: Float[Array, "3 p"]
    values: Float[Array, "3"]
    outer: Float[Array, ""]
    adjoint: PyTree


class Solved(NamedTuple):
    """The minimisers, steps for all of them, and whether each has come as far as it can."""

    xs: PyTree
    steps: Int[Array, ""]
    still: Bool[Array, ""]


@compiled
def levels_of(posed: Any, xs: PyTree, theta: PyTree, nudge: Float[Array, ""]) -> Levels:
    """Return the differences, at the minimisers `xs`."""
    floating, rest = floating_part(theta)

    def graded(x, scale):
        objective = posed.objective(scale * nudge)
        return jax.value_and_grad(lambda part: objective(x, eqx.combine(part, rest)))(floating)

    values, gradients = jax.vmap(graded)(xs, jnp.asarray(NUDGES, nudge.dtype))
    rows = jax.vmap(tree.to_vector)(gradients)
    middle = len(NUDGES) // 2
    widths = 2 * nudge * jnp.asarray(NUDGES[middle + 1 :], nudge.dtype)
    difference = rows[middle + 1 :] - rows[:middle][::-1]
    change = values[middle + 1 :] - values[:middle][::-1]
    _, loss = posed.bound()
    centre = jax.tree.map(lambda v: v[middle], xs)
    slope = jax.grad(lambda x: loss(x, theta))(centre)
    adjoint = jax.tree.map(lambda v: (v[middle + 1] - v[middle - 1]) / widths[0], xs)
    return Levels(difference / widths[:, None], change / widths, tree.norm(slope), adjoint)


@compiled
def descended(
    posed: Any,
    xs: PyTree,
    theta: PyTree,
    nudge: Float[Array, ""],
    tolerance: Float[Array, ""],
    limit: Int[Array, ""],
) -> Solved:
    """Run the algorithm on every nudged problem."""
    algorithm: Algorithm = posed.algorithm

    def one(x, scale):
        problem = Minimization(posed.objective(scale * nudge))
        small = STILL_ROUNDINGS * jnp.finfo(tree.result_dtype(x)).eps

        def unfinished(carry):
            state, count, still = carry
            size = tree.norm(problem.residual(state.x, theta))
            return (size > tolerance) & (count < limit) & ~still

        def step(carry):
            state, count, _ = carry
            new = algorithm.step(problem, state, theta)
            moved = tree.norm(tree.sub(new.x, state.x))
            return new, count + 1, moved <= small * tree.norm(state.x)

        begin = algorithm.init(problem, x, theta), jnp.zeros((), jnp.int32), jnp.array(False)
        state, count, still = jax.lax.while_loop(unfinished, step, begin)
        return state.x, count, still

    xs, counts, still = jax.vmap(one)(xs, jnp.asarray(NUDGES, nudge.dtype))
    return Solved(xs, jnp.sum(counts), jnp.any(still))


@compiled
def _value_and_slope(posed: Any, x: PyTree, theta: PyTree, nudge: Float[Array, ""]) -> tuple:
    return jax.value_and_grad(lambda x: posed.objective(nudge)(x, theta))(x)


def called(
    posed: Any, xs: PyTree, theta: PyTree, nudge: Float[Array, ""], tolerance: float
) -> Solved:
    """Call the user's solver for every nudged problem."""
    calls, answers = 0, []
    for k, scale in enumerate(NUDGES):
        start = jax.tree.map(lambda v, k=k: v[k], xs)

        def fun(x, scale=scale, like=start):
            nonlocal calls
            calls += 1
            x = tree.from_vector(jnp.asarray(x), like)
            value, slope = _value_and_slope(posed, x, theta, nudge * scale)
            return float(value), np.asarray(tree.to_vector(slope), float)

        answer = posed.algorithm(fun, np.asarray(tree.to_vector(start), float), tolerance)
        answer = np.asarray(getattr(answer, "x", answer), float)
        size = tree.size(start)
        if answer.shape != (size,):
            raise ValueError(
                f"`algorithm` must return a vector of {size} numbers, or a SciPy result with one, "
                f"but its shape is {answer.shape}."
            )
        answers.append(tree.from_vector(jnp.asarray(answer), start))
    moved = jax.tree.map(lambda *v: jnp.stack(v), *answers)
    small = STILL_ROUNDINGS * jnp.finfo(tree.result_dtype(moved)).eps
    still = tree.norm(tree.sub(moved, xs)) <= small * tree.norm(moved)
    return Solved(moved, jnp.asarray(calls), still)
