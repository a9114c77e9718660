"""The solution and its Jacobian to machine precision: what errors are measured against."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.accuracy.sensitivity import sensitivity
from iterdiff.algorithms.newton import newton_step
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.jit import compiled
from iterdiff.jaxtools.tree import floating_part
from iterdiff.problems.checks import check_x0
from iterdiff.problems.problem import Problem

MAX_NEWTON_STEPS = 100
MAX_HALVINGS = 30
WORTHLESS = 1e-2
"""Rounding errors this large, relative to the Jacobian, mean that it is singular: a system that
is singular but consistent has answers, and its residual does not tell."""


class Reference(NamedTuple):
    """The solution, and its tangents in k directions.

    Attributes
    ----------
    x : pytree of real floating arrays
        The solution ``x*(theta)``.
    tangents : pytree
        ``J* v`` for each of k directions ``v``, stacked along a first axis.
    """

    x: PyTree
    tangents: PyTree


def find_reference(
    problem: Problem, guess: PyTree, theta: PyTree, directions: PyTree, given: object
) -> Reference:
    """Return the reference, from what the user gives or by computing it.

    Parameters
    ----------
    problem : Problem
        What is solved.
    guess : pytree of real floating arrays
        An iterate, near the solution if possible.
    theta : pytree
        The parameters.
    directions : pytree
        Stacked directions in the space of theta's floating leaves.
    given : None, callable or pytree
        None: damped Newton steps from `guess` until nothing improves, then the implicit
        derivative. A callable ``theta -> x*``: taken as given and differentiated. A pytree like
        `guess`: taken as ``x*``, with the implicit derivative there.

    Raises
    ------
    ValueError
        If the solution or its derivative cannot be computed, or `given` does not fit.
    """
    if callable(given):
        x, tangents = _from_formula(given, theta, directions)
        return Reference(_like(x, guess), tangents)
    if given is None:
        x, converged = polish(problem, guess, theta)
        if not bool(converged):
            raise ValueError(
                "`reference`: Newton's method found no solution to machine precision from the "
                "last iterate (it may be too far away, the solution not isolated, or the "
                "problem not smooth there). Pass `reference=`, the solution or a function "
                "`theta -> x*`, or run more `steps`."
            )
    else:
        x = _like(given, guess)
    tangents, rounding = _implicit_tangents(problem, x, theta, directions)  # NaN: so singular
    if not (bool(tree.all_finite(tangents)) and bool(rounding <= WORTHLESS)):
        raise ValueError(
            "`reference`: the solution has no derivative that could be computed, since the "
            "Jacobian of the residual is singular there. Pass `reference=`, a function "
            "`theta -> x*` that can be differentiated."
        )
    return Reference(x, tangents)


def _like(x: PyTree, guess: PyTree) -> PyTree:
    if jax.tree.structure(x) != jax.tree.structure(guess):
        raise ValueError(
            f"`reference` must have the structure of `x0`, {jax.tree.structure(guess)}, not "
            f"{jax.tree.structure(x)}."
        )
    x = check_x0(x)
    for u, v in zip(jax.tree.leaves(x), jax.tree.leaves(guess), strict=True):
        if u.shape != v.shape:
            raise ValueError(f"`reference` must have the shapes of `x0`: {v.shape}, not {u.shape}.")
    return jax.tree.map(lambda u, v: u.astype(v.dtype), x, guess)


@compiled
def _from_formula(formula: Callable[[PyTree], PyTree], theta: PyTree, directions: PyTree):
    moving, rest = floating_part(theta)

    def solution(moving):
        return formula(eqx.combine(moving, rest))

    push = jax.vmap(lambda v: jax.jvp(solution, (moving,), (v,))[1])
    return solution(moving), push(directions)


@compiled
def _implicit_tangents(problem: Problem, x: PyTree, theta: PyTree, directions: PyTree):
    """Return the tangents, and the relative size of rounding errors in them."""
    at = sensitivity(problem, x, theta)
    eps = jnp.finfo(tree.result_dtype(x)).eps
    return jax.vmap(at.forward)(directions), eps * at.condition()


@compiled
def polish(problem: Problem, x: PyTree, theta: PyTree) -> tuple[PyTree, Bool[Array, ""]]:
    """Take Newton steps, halved until the residual falls, as long as it falls."""

    def residual_norm(x) -> Float[Array, ""]:
        return tree.norm(problem.residual(x, theta))

    def going_on(carry):
        *_, improving, count = carry
        return improving & (count < MAX_NEWTON_STEPS)

    def improve(carry):
        x, height, *_, count = carry
        direction = tree.sub(newton_step(problem, x, theta), x)

        def too_long(trial):
            fraction, new_height, halvings = trial
            return ~(new_height < height) & (halvings < MAX_HALVINGS)

        def halve(trial):
            fraction, _, halvings = trial
            shorter = tree.axpy(fraction / 2, direction, x)
            return fraction / 2, residual_norm(shorter), halvings + 1

        full = residual_norm(tree.add(x, direction))
        start = (jnp.ones_like(height), full, jnp.array(0))
        fraction, new_height, _ = jax.lax.while_loop(too_long, halve, start)
        better = new_height < height
        moved = tree.where(better, tree.axpy(fraction, direction, x), x)
        height = jnp.where(better, new_height, height)
        return moved, height, tree.norm(direction), better, count + 1

    height = residual_norm(x)
    start = (x, height, jnp.zeros_like(height), jnp.array(True), jnp.array(0))
    x, height, last, _, _ = jax.lax.while_loop(going_on, improve, start)
    floor = 1e-9 if jnp.finfo(tree.result_dtype(x)).bits >= 64 else 1e-4
    return x, jnp.isfinite(height) & (last <= floor * (1 + tree.norm(x)))
