"""Tangents of the iterates of an unrolled run, step by step."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools import manual_axes, placement, tree
from iterdiff.jaxtools.jaxpr import depends, flops
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.task import Tangents
from iterdiff.problems.problem import Problem

FORMED_MAX_ROWS = 4096
"""The matrix of a step is never formed if it has more rows."""


class UnrolledTangents(Tangents):
    """The recursion ``J <- A J + B`` in k directions at once, stacked along the first axis."""

    problem: Problem
    algorithm: Algorithm
    x0: PyTree
    theta: PyTree
    directions: PyTree

    def init(self, state: Any) -> PyTree:
        """Return the tangents of the algorithm's initial state."""
        del state
        params, rest = floating_part(self.theta)

        def start(params):
            theta = eqx.combine(params, rest)
            return floating_part(self.algorithm.init(self.problem, self.x0, theta))[0]

        return jax.vmap(lambda v: jax.jvp(start, (params,), (v,))[1])(self.directions)

    def update(self, carry: PyTree, state: Any) -> PyTree:
        """Push the tangents through one step."""
        step = _step_of(self.problem, self.algorithm, self.theta, state)
        params = floating_part(self.theta)[0]
        floating = floating_part(state)[0]

        def push(tangent, v):
            return jax.jvp(step, (floating, params), (tangent, v))[1]

        return jax.vmap(push)(carry, self.directions)

    def value(self, carry: PyTree, state: Any) -> PyTree:
        """Return the tangents of the iterate."""
        return eqx.combine(carry, floating_part(state)[1]).x


class FormedTangents(Tangents):
    """The recursion ``J <- A J + B`` with the matrix A formed: at each step, or only once."""

    problem: Problem
    algorithm: Algorithm
    x0: PyTree
    theta: PyTree
    directions: PyTree
    once: bool = eqx.field(static=True)

    def init(self, state: Any) -> PyTree:
        """Return the tangents of the initial state as rows, and A if it is constant."""
        start = UnrolledTangents(
            self.problem, self.algorithm, self.x0, self.theta, self.directions
        ).init(state)
        return tree.stack_to_matrix(start), self._transposed(state) if self.once else None

    def update(self, carry: PyTree, state: Any) -> PyTree:
        """Push the tangents through one step."""
        rows, transposed = carry
        matrix = self._transposed(state) if transposed is None else transposed
        step = _step_of(self.problem, self.algorithm, self.theta, state)
        floating, params = floating_part(state)[0], floating_part(self.theta)[0]

        def input_only(v):
            return jax.jvp(lambda params: step(floating, params), (params,), (v,))[1]

        return rows @ matrix + tree.stack_to_matrix(
            jax.vmap(input_only)(self.directions)
        ), transposed

    def value(self, carry: PyTree, state: Any) -> PyTree:
        """Return the tangents of the iterate."""
        floating, rest = floating_part(state)
        tangents = jax.vmap(lambda row: tree.from_vector(row, floating))(carry[0])
        return eqx.combine(tangents, rest).x

    def _transposed(self, state: Any) -> PyTree:
        floating = floating_part(state)[0]
        push = linear_step(self.problem, self.algorithm, self.theta, state)
        return tree.stack_to_matrix(jax.vmap(push)(tree.basis(floating)))


def cheapest_tangents(
    problem: Problem,
    algorithm: Algorithm,
    x0: PyTree,
    theta: PyTree,
    directions: PyTree,
    steps: int,
) -> Tangents:
    """Return the method that propagates k tangents over `steps` steps with the least work.

    A product of A with a tangent costs w, the cost of a linearised step. Forming A takes n
    products; afterwards a product costs 2 n^2. So A is formed at each step if
    ``n w + 2 k n^2 < k w``, and only once if it does not depend on the iterate and that pays over
    all steps.
    """
    every = UnrolledTangents(problem, algorithm, x0, theta, directions)
    state = eqx.filter_eval_shape(algorithm.init, problem, x0, theta)
    arrays, static = eqx.partition(state, lambda v: isinstance(v, jax.ShapeDtypeStruct))
    floating = eqx.filter(arrays, lambda v: jnp.issubdtype(v.dtype, jnp.floating))
    n, k = tree.size(floating), jax.tree.leaves(directions)[0].shape[0]
    if n > FORMED_MAX_ROWS or problem.spread or placement.is_spread(x0):
        return every
    work = 0

    def pieces(arrays):
        nonlocal work
        push = linear_step(problem, algorithm, theta, eqx.combine(arrays, static))
        work = flops(push, floating_part(arrays)[0])
        return jax.tree.leaves(push)

    jaxpr = jax.make_jaxpr(pieces)(arrays).jaxpr
    constant = not any(depends(jaxpr, [True] * len(jaxpr.invars)))
    form, applied, products = n * work, 2 * k * n**2, k * work
    if constant and form / steps + applied < products:
        return FormedTangents(problem, algorithm, x0, theta, directions, once=True)
    if form + applied < products:
        return FormedTangents(problem, algorithm, x0, theta, directions, once=False)
    return every


class LateTangents(Tangents):
    """The tangents of the last k steps: k states are kept, and differentiated on demand."""

    problem: Problem
    algorithm: Algorithm
    theta: PyTree
    directions: PyTree
    last: int = eqx.field(static=True)

    def init(self, state: Any) -> PyTree:
        """Return empty slots for k states, and the number of steps so far."""
        ring = jax.tree.map(
            lambda v: jnp.broadcast_to(v, (self.last, *v.shape)), eqx.filter(state, eqx.is_array)
        )
        return ring, jnp.zeros((), jnp.int32)

    def update(self, carry: PyTree, state: Any) -> PyTree:
        """Keep the state that the step leaves."""
        ring, count = carry
        arrays = eqx.filter(state, eqx.is_array)
        slot = count % self.last
        return jax.tree.map(lambda r, v: r.at[slot].set(v), ring, arrays), count + 1

    def value(self, carry: PyTree, state: Any) -> PyTree:
        """Return the tangents of the iterate after the kept steps; at their start they are zero."""
        ring, count = carry
        taken = jnp.minimum(count, self.last)
        static = eqx.filter(state, eqx.is_array, inverse=True)
        params = floating_part(self.theta)[0]

        def push(i, tangents):
            old = jax.tree.map(lambda r: r[(count - taken + i) % self.last], ring)
            old = eqx.combine(old, static)
            step = _step_of(self.problem, self.algorithm, self.theta, old)
            floating = floating_part(old)[0]
            return jax.vmap(lambda t, v: jax.jvp(step, (floating, params), (t, v))[1])(
                tangents, self.directions
            )

        k = jax.tree.leaves(self.directions)[0].shape[0]
        zero = tree.zero_rows(floating_part(state)[0], k)
        tangents = manual_axes.fori_loop(0, taken, push, zero)
        return eqx.combine(tangents, floating_part(state)[1]).x


def linear_step(problem: Problem, algorithm: Algorithm, theta: PyTree, state: Any) -> Any:
    """Return ``v -> A v``, A the derivative of the step in the floating leaves of `state`."""
    step, params = _step_of(problem, algorithm, theta, state), floating_part(theta)[0]
    return jax.linearize(lambda floating: step(floating, params), floating_part(state)[0])[1]


def _step_of(problem: Problem, algorithm: Algorithm, theta: PyTree, state: Any) -> Any:
    """Return the step as a function of the floating leaves of state and theta."""
    rest, theta_rest = floating_part(state)[1], floating_part(theta)[1]

    def step(floating, params):
        new = algorithm.step(problem, eqx.combine(floating, rest), eqx.combine(params, theta_rest))
        return floating_part(new)[0]

    return step
