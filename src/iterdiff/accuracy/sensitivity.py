"""The residual linearised at a point, and the implicit derivative there."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import hoist
from iterdiff.jaxtools.tree import floating_part
from iterdiff.linalg.solve import Structure, apply_factored, factors_of, inverse, solve_factored
from iterdiff.problems.problem import Problem, structure_of

LOOSE = 1e-2
"""What solves that serve an estimate alone may leave, relative to what they change (and a tenth
of it, as residual, where they are iterative)."""


SHORT = 20_000
"""A random vector of up to so many numbers is part of the program: drawing it takes longer than
some derivatives."""


Residual = Callable[[PyTree, PyTree], PyTree]
"""``residual(x, moving)``: all that it depends on besides `x` and `moving` is bound."""


class Sensitivity:
    """The residual linearised at a point, and the implicit derivative there.

    Parameters
    ----------
    residual : callable
        ``residual(x, moving)``.
    x, moving : pytree
        The point, and what the derivative is taken in.
    structure : linear.Structure
        Of ``d residual / dx``.
    solver : lineax.AbstractLinearSolver, optional
        As in `Implicit`.
    throw : bool
        Whether a solve that fails raises; else its answer is NaN.
    """

    def __init__(
        self,
        residual: Residual,
        x: PyTree,
        moving: PyTree,
        structure: Structure,
        *,
        solver: lx.AbstractLinearSolver | None = None,
        throw: bool = False,
    ):
        self.x, self.structure = x, structure
        self.residual, self.moving = residual, moving
        self._in_moving = lambda m: residual(x, m)
        self.value, self.operator = jax.linearize(lambda y: residual(y, moving), x)
        self.factors = None if solver else factors_of(self.operator, x, structure)
        self._options = {"solver": solver, "throw": throw, "factors": self.factors}

    def solve(self, b: PyTree) -> PyTree:
        """Return ``A^{-1} b``, checked."""
        return inverse(self.operator, self.x, self.structure, **self._options)(b)

    def adjoint(self, w: PyTree) -> PyTree:
        """Return ``A^{-T} w``, checked."""
        return jax.linear_transpose(self.solve, self.x)(w)[0]

    def pushed(self, v: PyTree) -> PyTree:
        """Return ``r_theta v``."""
        return jax.jvp(self._in_moving, (self.moving,), (v,))[1]

    def forward(self, v: PyTree) -> PyTree:
        """Return ``J v``."""
        return tree.scale(-1.0, self.solve(self.pushed(v)))

    def pulled(self, adjoint: PyTree) -> PyTree:
        """Return ``J^T w``, given `adjoint`'s answer to ``w``."""
        return tree.scale(-1.0, jax.vjp(self._in_moving, self.moving)[1](adjoint)[0])

    def loosely(self, b: PyTree) -> PyTree:
        """Return ``A^{-1} b`` for an estimate: loosely where solves are iterative."""
        if self.factors is not None:
            return solve_factored(self.factors, b)
        if self._options["solver"] is not None:
            return self.solve(b)
        return inverse(self.operator, self.x, self.structure, rtol=LOOSE / 10)(b)

    def product(self, v: PyTree) -> PyTree:
        """Return ``A v``, from the matrix where that is less work."""
        if self.factors is None:
            return self.operator(v)
        return apply_factored(self.factors, self.operator, v)

    def condition(self) -> Float[Array, ""]:
        """Estimate the condition number of ``A``, from below."""
        random = _random(self.x)
        return self.condition_from(random, self.loosely(_unit(self.loosely(random))))

    def condition_from(self, random: PyTree, inverse_direction: PyTree) -> Float[Array, ""]:
        """Estimate it, given ``A^{-1}`` applied to a direction that it stretches."""
        stretch = tree.norm(self.product(_unit(self.product(random))))
        return jnp.maximum(stretch * tree.norm(inverse_direction), 1.0)


def sensitivity(
    problem: Problem,
    x: PyTree,
    theta: PyTree,
    linear_solver: lx.AbstractLinearSolver | None = None,
) -> Sensitivity:
    """Return the residual linearised at `x`; derivatives are taken in theta's floating part."""
    x = jax.lax.stop_gradient(x)
    residual, inputs = explicit(problem, x, theta)
    (of_problem, of_theta), closed_over = jax.lax.stop_gradient(inputs)

    def in_moving(y, moving):
        return residual(y, ((of_problem, eqx.combine(moving, of_theta)), closed_over))

    moving = floating_part(of_theta)[0]
    return Sensitivity(in_moving, x, moving, structure_of(problem), solver=linear_solver)


def _random(like: PyTree) -> PyTree:
    """Return a random vector; a short one is a constant of the program."""

    def drawn():
        stacked = tree.random_directions(jax.random.key(0), like, 1)
        return jax.tree.map(lambda v: v[0], stacked)

    if tree.size(like) > SHORT:
        return drawn()
    with jax.ensure_compile_time_eval():
        return drawn()


def _unit(a: PyTree) -> PyTree:
    length = tree.norm(a)
    return tree.scale(1 / jnp.where(length > 0, length, 1.0), a)


def explicit(problem: Problem, x: PyTree, theta: PyTree) -> tuple[Callable, Any]:
    """Make every input of the residual explicit, values that it closes over included.

    Returns
    -------
    residual : callable
        ``residual(x, inputs)``.
    inputs : pytree of arrays
        The array leaves of the problem and of theta, and the closed-over values.
    """
    arrays, static = eqx.partition((problem, theta), eqx.is_array)

    def of_arrays(x, arrays):
        problem, theta = eqx.combine(arrays, static)
        return problem.residual(x, theta)

    converted, closed_over = hoist(of_arrays, x, arrays)

    def residual(x, inputs):
        arrays, closed_over = inputs
        return converted(closed_over, x, arrays)

    return residual, (arrays, closed_over)
