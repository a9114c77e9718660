"""What a case is, and what the cases are made with."""

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
    """An algorithm that solves a case, and how long it takes.

    Attributes
    ----------
    algorithm : iterdiff.Algorithm
        The algorithm.
    steps : int
        So many steps bring the iterate to within rounding of the solution, and the unrolled
        Jacobian too, where ``algorithm.differentiable`` and it has no ``caveat``.
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
        """Return a stopping rule that looks at the residual, as tight as `dtype` bears."""
        tight = dtype == "float64"
        rtol, atol = (1e-12, 1e-14) if tight else (1e-5, 1e-6)
        return itd.ResidualBelow(rtol=rtol, atol=atol, max_steps=10 * self.steps)


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem with its known answer.

    Attributes
    ----------
    name : str
        For test ids.
    problem : iterdiff.Problem
        What is solved.
    x0, theta : pytree
        Where to start, and the parameters to differentiate in.
    solution : callable
        ``solution(theta)`` is ``x*(theta)``, in closed form, differentiable by JAX.
    jacobian : callable
        ``jacobian(theta)`` is its derivative as ``jax.jacobian(solution)`` lays it out, by hand.
    algorithms : tuple of Suited
        What solves it.
    """

    name: str
    problem: itd.Problem
    x0: PyTree
    theta: PyTree
    solution: Callable[[PyTree], PyTree]
    jacobian: Callable[[PyTree], PyTree]
    algorithms: tuple[Suited, ...]

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
    """Return a normal sample that is the same wherever it is asked for."""
    return np.random.default_rng(seed).normal(size=shape)


def make(dtype: str) -> Callable[[Any], jax.Array]:
    return lambda value: jnp.asarray(value, dtype)
