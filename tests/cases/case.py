"""The class of a case, and helpers to build one."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

import iterdiff as itd


@dataclasses.dataclass(frozen=True)
class Suited:
    """An algorithm that solves a case, and the number of steps it needs.

    Attributes
    ----------
    algorithm : iterdiff.Algorithm
        The algorithm.
    steps : int
        After this many steps the iterate agrees with the solution to rounding. So does the
        unrolled Jacobian, if the algorithm is ``differentiable`` and has no ``caveat``.
    """

    algorithm: itd.Algorithm
    steps: int

    @property
    def name(self) -> str:
        """The name of the algorithm's class."""
        return type(self.algorithm).__name__

    @property
    def fixed(self) -> itd.Steps:
        """The stopping rule that takes `steps` steps."""
        return itd.Steps(self.steps)

    def adaptive(self, dtype: str) -> itd.ResidualBelow:
        """Return a stopping rule for the residual, with tolerances near rounding."""
        tight = dtype == "float64"
        rtol, atol = (1e-12, 1e-14) if tight else (1e-5, 1e-6)
        return itd.ResidualBelow(rtol=rtol, atol=atol, max_steps=10 * self.steps)


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem with its known solution.

    Attributes
    ----------
    name : str
        Name in test ids.
    problem : iterdiff.Problem
        The problem.
    x0, theta : pytree
        Start, and the parameters to differentiate with respect to.
    solution : callable
        ``solution(theta)`` is ``x*(theta)``, in closed form, differentiable by JAX.
    jacobian : callable
        ``jacobian(theta)`` is its derivative, by hand, in the layout of
        ``jax.jacobian(solution)``.
    algorithms : tuple of Suited
        Algorithms that solve it.
    """

    name: str
    problem: itd.Problem
    x0: PyTree
    theta: PyTree
    solution: Callable[[PyTree], PyTree]
    jacobian: Callable[[PyTree], PyTree]
    algorithms: tuple[Suited, ...]

    def unknowns(self, solution: itd.Solution) -> PyTree:
        """Return the answer of a solve, with its multipliers if the case has any."""
        if isinstance(self.x0, itd.PrimalDual):
            return itd.PrimalDual(solution.x, solution.multipliers)
        return solution.x

    @property
    def dtype(self) -> str:
        """The dtype of all leaves."""
        return str(jax.tree.leaves(self.x0)[0].dtype)


def push(jacobian: PyTree, tangent: PyTree, x: PyTree) -> PyTree:
    """Return ``J v`` in the structure of `x`, for ``v`` in the structure of `theta`."""

    def row(_, blocks):
        terms = jax.tree.map(lambda j, v: jnp.tensordot(j, v, axes=v.ndim), blocks, tangent)
        return functools.reduce(jnp.add, jax.tree.leaves(terms))

    return jax.tree.map(row, x, jacobian)


def draw(seed: int, *shape: int) -> np.ndarray:
    """Return a normal sample that depends only on the seed."""
    return np.random.default_rng(seed).normal(size=shape)


def make(dtype: str) -> Callable[[Any], jax.Array]:
    """Return a function that makes arrays of this dtype."""
    return lambda value: jnp.asarray(value, dtype)
