"""The derivative of stochastic gradient descent's iterates, with a confidence interval."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from iterdiff.bilevel.intervals import student
from iterdiff.bilevel.stochastic_methods import drawn
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_callable, check_count
from iterdiff.jaxtools.jit import compiled
from iterdiff.jaxtools.tree import floating_part
from iterdiff.problems.inputs import check_inputs, with_data
from iterdiff.problems.problem import Minimization, Problem

RECORDS = 60
"""At most this many numbers of steps are recorded, evenly spaced in their logarithm."""


@dataclasses.dataclass(frozen=True)
class UnrolledSGD:
    """Iterates of stochastic gradient descent and their Jacobians: one row for each record.

    Attributes
    ----------
    steps : int array of shape (k,)
        Numbers of steps.
    x : array of shape (k, n)
        The mean iterate, as a vector.
    x_spread : array of shape (k,)
        The root mean square distance of a chain's iterate from the mean one.
    jacobian, half_width : array of shape (k, n, p)
        The mean Jacobian with respect to the floating numbers of theta, and half of the confidence
        interval of each entry.
    spread : array of shape (k,)
        The root mean square distance of a chain's Jacobian from the mean one, in Frobenius norm.
    """

    steps: np.ndarray
    x: np.ndarray
    x_spread: np.ndarray
    jacobian: np.ndarray
    half_width: np.ndarray
    spread: np.ndarray


def unrolled_sgd(
    problem: Problem,
    x0: PyTree,
    theta: PyTree,
    step_sizes: Callable[[Array], Array],
    *,
    samples: int,
    batch: int = 1,
    steps: int = 1000,
    chains: int = 32,
    key: Array | int = 0,
    every: int | None = None,
) -> UnrolledSGD:
    r"""Differentiate stochastic gradient descent through its steps, in independent chains.

    A chain draws minibatches :math:`I_k` that do not depend on theta, and steps
    :math:`x_{k+1} = x_k - h_k G_x(x_k, \theta; I_k)`. Its Jacobian follows
    :math:`J_{k+1} = J_k - h_k (G_{xx} J_k + G_{x\theta})`, with the same minibatch.

    Parameters
    ----------
    problem : Minimization
        Its objective ``objective(x, theta, indices)`` returns the mean over these samples.
    x0, theta : pytree
        Where to start, and the parameters.
    step_sizes : callable
        ``step_sizes(k)`` returns the length of step k = 0, 1, ..., a floating scalar: constant or
        decreasing.
    samples : int
        The number of samples.
    batch, steps, chains, key
        As in `minimize_stochastic`, without rounds.
    every : int, optional
        Record after every so many steps; by default at most 60 times, evenly in the logarithm.

    Returns
    -------
    UnrolledSGD
        Mean iterate and Jacobian over the chains, with the interval of the mean at 95 %.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; the message names it.

    Notes
    -----
    For strongly convex sums with smooth terms, the Jacobians converge in mean square to that of the
    solution: up to :math:`O(h)` with constant steps :math:`h`, with the rate
    :math:`O(\log^2 k / k)` with steps of order :math:`1 / k`, and exponentially if one x minimises
    all terms.

    References
    ----------
    F. Iutzeler, E. Pauwels and S. Vaiter, *Derivatives of stochastic gradient descent in
    parametric optimization*, NeurIPS 2024, arXiv 2405.15894.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> data = jnp.array([1.0, 2.0, 3.0])
    >>> problem = itd.Minimization(
    ...     lambda x, theta, i: jnp.mean((x - data[i]) ** 2) / 2 + theta * x**2 / 2
    ... )
    >>> found = itd.bilevel.unrolled_sgd(
    ...     problem, 0.0, 1.0, lambda k: 1 / (k + 3), samples=3, steps=500
    ... )
    >>> bool(abs(found.jacobian[-1, 0, 0] + 0.5) < 0.05)  # x = 2 / (1 + theta)
    True
    """
    if not isinstance(problem, Minimization):
        raise TypeError(
            "`problem` must be an iterdiff.Minimization whose objective takes indices, not "
            f"{problem!r}."
        )
    check_callable(step_sizes=step_sizes)
    check_count("steps", steps)
    counts = check_count("samples", samples), check_count("batch", batch)
    many = check_count("chains", chains, least=2)
    one = jnp.zeros(1, jnp.arange(1).dtype)
    _, x0, theta = check_inputs(problem, x0, theta, one)
    if every is None:
        recorded = np.unique(np.geomspace(1, steps, min(RECORDS, steps)).round().astype(int))
    else:
        recorded = np.arange(check_count("every", every), steps + 1, every)
    keys = jax.random.split(jax.random.key(key) if isinstance(key, int) else key, many)
    dtype = tree.result_dtype(x0)
    sizes = jnp.asarray(jax.vmap(step_sizes)(jnp.arange(steps, dtype=dtype)), dtype)
    xs, jacobians = _chains(problem, x0, theta, sizes, keys, jnp.asarray(recorded), counts)
    xs, jacobians = np.asarray(xs), np.asarray(jacobians)
    mean, half = student(jacobians)
    x_spread, spread = (
        np.sqrt(np.mean(np.sum((v - v.mean(axis=0)) ** 2, axis=tuple(range(2, v.ndim))), axis=0))
        for v in (xs, jacobians)
    )
    return UnrolledSGD(recorded, xs.mean(axis=0), x_spread, mean, half, spread)


@compiled
def _chains(
    problem: Problem,
    x0: PyTree,
    theta: PyTree,
    sizes: Array,
    keys: Array,
    recorded: Array,
    counts: tuple[int, int],
) -> tuple[Any, Any]:
    samples, batch = counts
    floating, rest = floating_part(theta)
    vector, parameters = tree.to_vector(x0), tree.to_vector(floating)

    def gradient(x, part, indices):
        bound = with_data(problem, indices)
        whole = tree.from_vector(part, floating)
        slope = bound.residual(tree.from_vector(x, x0), eqx.combine(whole, rest))
        return tree.to_vector(slope)

    def step(carry, size, key):
        x, jacobian = carry
        indices = drawn(key, samples, batch)

        def moved(x, part):
            return x - size * gradient(x, part, indices)

        def along(column, direction):
            return jax.jvp(moved, (x, parameters), (column, direction))[1]

        columns = jax.vmap(along, in_axes=(1, 0), out_axes=1)(
            jacobian, jnp.eye(parameters.size, dtype=x.dtype)
        )
        return moved(x, parameters), columns

    def chain(key):
        start = vector, jnp.zeros((vector.size, parameters.size), vector.dtype)
        every = jax.random.split(key, len(sizes))
        ends = jnp.concatenate([jnp.zeros(1, recorded.dtype), recorded])

        def record(carry, bounds):
            first, last = bounds

            def body(k, carry):
                return step(carry, sizes[k], every[k])

            carry = jax.lax.fori_loop(first, last, body, carry)
            return carry, carry

        return jax.lax.scan(record, start, (ends[:-1], ends[1:]))[1]

    return jax.vmap(chain)(keys)
