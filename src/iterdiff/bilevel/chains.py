r"""Chains of stochastic steps for the inner solution and the adjoint, which share theta.

The inner objective is :math:`G = \frac1n \sum_i G_i(x, \theta)`, the outer loss
:math:`F = \frac1m \sum_j F_j(x, \theta)`. A chain holds an iterate x and an approximation v of the
adjoint, :math:`G_{xx} v = -F_x`. One reverse pass through the inner gradient of a minibatch gives
all that a step needs of it: :math:`G_x`, :math:`G_{xx} v` and :math:`G_{\theta x} v`. The
hypergradient is :math:`F_\theta + G_{\theta x} v`.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_range
from iterdiff.jaxtools.jit import compiled
from iterdiff.jaxtools.snapshot import Snapshot
from iterdiff.jaxtools.tree import floating_part
from iterdiff.problems.inputs import with_data
from iterdiff.problems.problem import Problem

BLOCK = 512
"""Samples in one evaluation of a pass over all data."""


class Sampled(eqx.Module):
    """What is solved inside and minimised outside, by samples.

    Attributes
    ----------
    problem : Minimization
        Its objective receives indices of samples as data, and returns their mean.
    loss : callable
        ``loss(x, theta, indices)``, a mean, too.
    samples : tuple of two int
        Number of inner and of outer samples.
    taken : Snapshot
        Of the loss; it tells programs apart.
    """

    problem: Problem
    loss: Callable
    samples: tuple[int, int] = eqx.field(static=True)
    taken: Snapshot

    def inner(self, x: PyTree, v: PyTree, theta: PyTree, indices: Any) -> "Inner":
        """Return the inner gradient of a minibatch, and its derivatives along `v`."""
        problem = with_data(self.problem, indices)
        floating, rest = floating_part(theta)
        gradient, pull = jax.vjp(
            lambda x, part: problem.residual(x, eqx.combine(part, rest)), x, floating
        )
        return Inner(gradient, *pull(v))

    def outer(self, x: PyTree, theta: PyTree, indices: Any) -> "OuterGradient":
        """Return the gradient of the outer loss of a minibatch."""
        floating, rest = floating_part(theta)
        slopes = jax.grad(
            lambda x, part: self.loss(x, eqx.combine(part, rest), indices), argnums=(0, 1)
        )
        return OuterGradient(*slopes(x, floating))


class Inner(NamedTuple):
    """Inner gradient, and the products of Hessian and mixed derivative with v."""

    gradient: PyTree
    product: PyTree
    mixed: PyTree


class OuterGradient(NamedTuple):
    """Derivatives of the outer loss in x and in theta."""

    x: PyTree
    theta: PyTree


class Chain(NamedTuple):
    """Where a chain stands: iterate, adjoint, memory of the method, key of the random numbers."""

    x: PyTree
    adjoint: PyTree
    memory: PyTree
    key: Array


class StochasticMethod(eqx.Module):
    """How a chain moves, and along which direction theta does.

    Attributes
    ----------
    step_size, outer_step_size : scalar
        Of x and the adjoint, and of theta.
    decay : scalar
        Step t has the sizes divided by ``(1 + t) ** decay``.
    batches : int
        Minibatches of inner samples in one step.
    """

    step_size: eqx.AbstractVar[Array]
    outer_step_size: eqx.AbstractVar[Array]
    decay: eqx.AbstractVar[Array]

    def __check_init__(self):
        """Check the ranges of the step sizes."""
        check_range("step_size", self.step_size, 0.0)
        check_range("outer_step_size", self.outer_step_size, 0.0)
        check_range("decay", self.decay, -1e-300, 1.0)

    @property
    def batches(self) -> int:
        """Minibatches of inner samples in one step."""
        return 1

    def init(self, posed: Sampled, x: PyTree, v: PyTree, theta: PyTree) -> PyTree:
        """Return the memory at the start; by default none."""
        del posed, x, v, theta

    @abc.abstractmethod
    def move(
        self, posed: Sampled, chain: Chain, theta: PyTree, size: Any, batch: int
    ) -> tuple[Chain, PyTree]:
        """Return the chain after a step of length `size`, and a direction for theta."""


def mean(rows: PyTree) -> PyTree:
    """Return the mean over the leading axis of every leaf."""
    return jax.tree.map(lambda v: jnp.mean(v, axis=0), rows)


class Ran(NamedTuple):
    """What came of some steps: the chains, theta, and the means of x and adjoint of each chain."""

    chains: Chain
    theta: PyTree
    x: PyTree
    adjoint: PyTree


class Plan(NamedTuple):
    """How to run: which step is next, whether theta moves, and where it may be."""

    count: Int[Array, ""]
    moves: Array
    lower: PyTree
    upper: PyTree
    projection: Callable[[PyTree], PyTree] | None


class Sizes(eqx.Module):
    """Static numbers of a run: steps, and samples in a minibatch."""

    steps: int = eqx.field(static=True)
    batch: int = eqx.field(static=True)


def begun(
    posed: Sampled, method: StochasticMethod, x0: PyTree, theta: PyTree, keys: Array
) -> Chain:
    """Return independent chains that all start at `x0`, with an adjoint of zero."""
    v = tree.zeros_like(x0)
    memory = method.init(posed, x0, v, theta)
    return jax.vmap(lambda key: Chain(x0, v, memory, key))(keys)


def ran(
    posed: Sampled, method: StochasticMethod, chains: Chain, theta: PyTree, plan: Plan, sizes: Sizes
) -> Ran:
    """Return chains and theta after some steps; all chains share theta."""
    floating, rest = floating_part(theta)

    def step(carry, t):
        chains, part, sums = carry
        theta = eqx.combine(part, rest)
        shrunk = 1 / (1.0 + t.astype(method.decay.dtype)) ** method.decay
        size = method.step_size * shrunk
        chains, directions = jax.vmap(
            lambda chain: method.move(posed, chain, theta, size, sizes.batch)
        )(chains)
        length = jnp.where(plan.moves, method.outer_step_size * shrunk, 0.0)
        part = _projected(tree.axpy(-length, mean(directions), part), rest, plan)
        return (chains, part, tree.add(sums, (chains.x, chains.adjoint))), None

    begin = chains, floating, tree.zeros_like((chains.x, chains.adjoint))
    steps = plan.count + jnp.arange(sizes.steps)
    (chains, part, sums), _ = jax.lax.scan(step, begin, steps)
    return Ran(chains, eqx.combine(part, rest), *tree.scale(1 / sizes.steps, sums))


def _projected(part: PyTree, rest: PyTree, plan: Plan) -> PyTree:
    if plan.projection is not None:
        return floating_part(plan.projection(eqx.combine(part, rest)))[0]
    return jax.tree.map(jnp.clip, part, plan.lower, plan.upper)


class Measured(NamedTuple):
    """Hypergradient and value of each chain, with all data."""

    gradients: PyTree
    values: Float[Array, " c"]


def measured(posed: Sampled, x: PyTree, adjoint: PyTree, theta: PyTree) -> Measured:
    """Return the hypergradient at the means of each chain: exact but for their distance."""
    n, m = posed.samples

    def one(pair):
        x, v = pair
        inner = _over_all(lambda i: posed.inner(x, v, theta, i), n)
        outer = _over_all(lambda j: (posed.loss(x, theta, j), posed.outer(x, theta, j)), m)
        value = outer[0] + tree.dot(v, inner.gradient)
        return tree.add(outer[1].theta, inner.mixed), value

    return Measured(*jax.lax.map(one, (x, adjoint)))


def _over_all(mean_of: Callable, count: int) -> Any:
    """Return the mean over all samples, block by block."""
    blocks, left = divmod(count, BLOCK)
    total: Any = None
    if left:
        total = tree.scale(left / count, mean_of(jnp.arange(blocks * BLOCK, count)))
    if blocks:

        def add(total, start):
            part = mean_of(start + jnp.arange(BLOCK))
            return tree.axpy(BLOCK / count, part, total), None

        if total is None:
            total = tree.zeros_like(jax.eval_shape(mean_of, jnp.arange(BLOCK)))
        total, _ = jax.lax.scan(add, total, BLOCK * jnp.arange(blocks))
    return total


begin_compiled, run_compiled, measure_compiled = compiled(begun), compiled(ran), compiled(measured)
