"""Methods for stochastic inner problems: SOBA, SABA and AmIGO."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from iterdiff.bilevel.chains import (
    BLOCK,
    Chain,
    Inner,
    OuterGradient,
    Sampled,
    StochasticMethod,
    mean,
)
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_count, scalar


class SOBA(StochasticMethod):
    r"""One step for x, the adjoint and theta at once, with one minibatch of each sum.

    .. math::

        x \leftarrow x - h\, G_x, \qquad v \leftarrow v - h\, (G_{xx} v + F_x), \qquad
        \theta \leftarrow \theta - \gamma\, (F_\theta + G_{\theta x} v).

    Parameters
    ----------
    step_size, outer_step_size : scalar
        The lengths :math:`h` and :math:`\gamma`, positive. A safe h is the inverse of the largest
        curvature of a minibatch.
    decay : scalar
        Step t has lengths divided by :math:`(1 + t)^{decay}`: 0 for constant steps, 1/2 for those
        of the convergence theorem. Below 1.

    Raises
    ------
    ValueError
        If a number is out of its range.

    References
    ----------
    M. Dagréou, P. Ablin, S. Vaiter and T. Moreau, *A framework for bilevel optimization that
    enables stochastic and global variance reduction algorithms*, NeurIPS 2022.
    """

    step_size: Float[Array, ""] = eqx.field(converter=scalar)
    outer_step_size: Float[Array, ""] = eqx.field(converter=scalar)
    decay: Float[Array, ""] = eqx.field(converter=scalar, default=0.0)

    def move(
        self, posed: Sampled, chain: Chain, theta: PyTree, size: Any, batch: int
    ) -> tuple[Chain, PyTree]:
        """Return the chain after one step, and the direction at its start."""
        key, first, second = jax.random.split(chain.key, 3)
        n, m = posed.samples
        inner = posed.inner(chain.x, chain.adjoint, theta, drawn(first, n, batch))
        outer = posed.outer(chain.x, theta, drawn(second, m, batch))
        return _moved(chain._replace(key=key), inner, outer, size)


class AmIGO(StochasticMethod):
    r"""Double loop: several steps for x, several for the adjoint, then one for theta.

    Both inner loops start where the last ones ended.

    Parameters
    ----------
    step_size, outer_step_size, decay
        As in `SOBA`.
    inner_steps, adjoint_steps : int
        Steps of the inner loops, each with a minibatch of its own.

    Raises
    ------
    TypeError, ValueError
        If a number has the wrong type or is out of its range.

    References
    ----------
    M. Arbel and J. Mairal, *Amortized implicit differentiation for stochastic bilevel
    optimization*, ICLR 2022.
    """

    step_size: Float[Array, ""] = eqx.field(converter=scalar)
    outer_step_size: Float[Array, ""] = eqx.field(converter=scalar)
    decay: Float[Array, ""] = eqx.field(converter=scalar, default=0.0)
    inner_steps: int = eqx.field(static=True, default=10)
    adjoint_steps: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        """Check the numbers of steps."""
        check_count("inner_steps", self.inner_steps)
        check_count("adjoint_steps", self.adjoint_steps)

    @property
    def batches(self) -> int:
        """Minibatches of inner samples in one step."""
        return self.inner_steps + self.adjoint_steps + 1

    def move(
        self, posed: Sampled, chain: Chain, theta: PyTree, size: Any, batch: int
    ) -> tuple[Chain, PyTree]:
        """Return the chain after both loops, and the direction there."""
        n, m = posed.samples
        key, first, second, third, last = jax.random.split(chain.key, 5)
        still = tree.zeros_like(chain.x)

        def descend(x, key):
            found = posed.inner(x, still, theta, drawn(key, n, batch))
            return tree.axpy(-size, found.gradient, x), None

        x, _ = jax.lax.scan(descend, chain.x, jax.random.split(first, self.inner_steps))
        slope = posed.outer(x, theta, drawn(second, m, batch))

        def solve(v, key):
            found = posed.inner(x, v, theta, drawn(key, n, batch))
            return tree.axpy(-size, tree.add(found.product, slope.x), v), None

        keys = jax.random.split(third, self.adjoint_steps)
        v, _ = jax.lax.scan(solve, chain.adjoint, keys)
        mixed = posed.inner(x, v, theta, drawn(last, n, batch)).mixed
        return Chain(x, v, chain.memory, key), tree.add(slope.theta, mixed)


class Table(NamedTuple):
    """The last gradients of every sample, and their means."""

    inner: Inner
    outer: OuterGradient
    inner_mean: Inner
    outer_mean: OuterGradient


class SABA(StochasticMethod):
    r"""The steps of `SOBA` with variance reduction: each sample's last gradients are remembered.

    Constant steps then converge. Memory: for each chain, two numbers for each inner sample and
    each unknown, one for each parameter, and one for each outer sample, unknown and parameter.

    Parameters
    ----------
    step_size, outer_step_size, decay
        As in `SOBA`.

    Raises
    ------
    ValueError
        If a number is out of its range.

    References
    ----------
    As `SOBA`; A. Defazio, F. Bach and S. Lacoste-Julien, *SAGA*, NeurIPS 2014.
    """

    step_size: Float[Array, ""] = eqx.field(converter=scalar)
    outer_step_size: Float[Array, ""] = eqx.field(converter=scalar)
    decay: Float[Array, ""] = eqx.field(converter=scalar, default=0.0)

    def init(self, posed: Sampled, x: PyTree, v: PyTree, theta: PyTree) -> Table:
        """Return the gradients of all samples at the start."""
        n, m = (jnp.arange(count)[:, None] for count in posed.samples)
        inner = jax.lax.map(lambda i: posed.inner(x, v, theta, i), n, batch_size=BLOCK)
        outer = jax.lax.map(lambda j: posed.outer(x, theta, j), m, batch_size=BLOCK)
        return Table(inner, outer, mean(inner), mean(outer))

    def move(
        self, posed: Sampled, chain: Chain, theta: PyTree, size: Any, batch: int
    ) -> tuple[Chain, PyTree]:
        """Return the chain after one step, and the direction at its start."""
        key, first, second = jax.random.split(chain.key, 3)
        table = chain.memory
        n, m = posed.samples
        i, j = distinct(first, n, batch), distinct(second, m, batch)
        inner = jax.vmap(lambda i: posed.inner(chain.x, chain.adjoint, theta, i))(i[:, None])
        outer = jax.vmap(lambda j: posed.outer(chain.x, theta, j))(j[:, None])
        kept, inner_mean, inner = _reduced(table.inner, table.inner_mean, inner, i, n)
        held, outer_mean, outer = _reduced(table.outer, table.outer_mean, outer, j, m)
        memory = Table(kept, held, inner_mean, outer_mean)
        return _moved(chain._replace(key=key, memory=memory), inner, outer, size)


def _moved(chain: Chain, inner: Inner, outer: OuterGradient, size: Any) -> tuple[Chain, PyTree]:
    x = tree.axpy(-size, inner.gradient, chain.x)
    v = tree.axpy(-size, tree.add(inner.product, outer.x), chain.adjoint)
    return chain._replace(x=x, adjoint=v), tree.add(outer.theta, inner.mixed)


def _reduced(table: PyTree, average: PyTree, new: PyTree, rows: Any, count: int) -> tuple:
    """Return the table and its mean after some rows are new, and the estimate of the new mean."""
    change = jax.tree.map(lambda new, table: new - table[rows], new, table)
    estimate = jax.tree.map(lambda c, m: jnp.mean(c, axis=0) + m, change, average)
    table = jax.tree.map(lambda table, new: table.at[rows].set(new), table, new)
    average = jax.tree.map(lambda m, c: m + jnp.sum(c, axis=0) / count, average, change)
    return table, average, estimate


def drawn(key: Array, count: int, batch: int) -> Int[Array, " b"]:
    """Return independent indices; all of them, in order, if the batch is as large."""
    if batch >= count:
        return jnp.arange(count)
    return jax.random.randint(key, (batch,), 0, count)


def distinct(key: Array, count: int, batch: int) -> Int[Array, " b"]:
    """Return different indices: neighbours, from a random place on."""
    if batch >= count:
        return jnp.arange(count)
    return (jax.random.randint(key, (), 0, count) + jnp.arange(batch)) % count
