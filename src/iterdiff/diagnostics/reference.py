"""The solution and its Jacobian to machine precision, as the reference for errors."""

from collections.abc import Callable
from typing import NamedTuple, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.accuracy.sensitivity import sensitivity
from iterdiff.algorithms.newton import newton_step
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.jit import compiled
from iterdiff.jaxtools.snapshot import Snapshot, snapshot, traced
from iterdiff.jaxtools.tree import floating_part
from iterdiff.problems.active_set import completed
from iterdiff.problems.constrained import ConstrainedProblem
from iterdiff.problems.leaf_checks import check_x0
from iterdiff.problems.problem import Problem

MAX_NEWTON_STEPS = 100
"""Upper limit of the Newton steps that find the solution."""

MAX_HALVINGS = 30
"""Upper limit of the halvings of each Newton step."""

MAX_LAST_STEP_FLOAT64 = 1e-9
"""Upper limit of the last Newton step at a solution, relative to one plus the solution's norm."""

MAX_LAST_STEP_FLOAT32 = 1e-4
"""The same in float32, and in every shorter precision."""

MAX_ROUNDING = 1e-2
"""Upper limit of the rounding error of a Jacobian, relative to it. Above, the linear system counts
as singular: if it is consistent it still has a solution, so that its residual shows nothing."""


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
    """Return the reference, given by the user or computed.

    Parameters
    ----------
    problem : Problem
        The problem.
    guess : pytree of real floating arrays
        An iterate, near the solution if possible.
    theta : pytree
        The parameters.
    directions : pytree
        Directions in the space of theta's floating leaves, stacked along a first axis.
    given : None, callable or pytree
        None: Newton's method from `guess`, until the residual no longer falls, then the implicit
        derivative. A callable ``theta -> x*``: its value and derivative, unverified. A pytree like
        `guess`: the solution ``x*``, and the implicit derivative there.

    Raises
    ------
    ValueError
        If the solution or its derivative cannot be computed, or `given` does not fit.
    """
    if _is_formula(given, guess):
        taken = snapshot(traced(given, theta)[0])
        x, tangents = _from_formula(given, taken, theta, directions)
        if isinstance(problem, ConstrainedProblem):  # without multipliers, which are not compared
            return Reference(_like(x, problem.answer(guess)), tangents)
        return Reference(_like(x, guess), tangents)
    if given is None:
        x, converged, _ = polish(problem, guess, theta)
        if not bool(converged):
            raise ValueError(
                "`reference`: Newton's method found no solution from the last iterate (it may be "
                "too far away, the solution not isolated, or the problem not smooth there). "
                "Pass `reference=`, the solution or a function `theta -> x*`, or run more `steps`."
            )
    else:
        x = _like(completed(problem, given, theta), guess)
    tangents, regular = implicit_tangents(problem, x, theta, directions)
    if not bool(regular):
        raise ValueError(
            "`reference`: the Jacobian of the residual is singular at the solution, so its "
            "derivative cannot be computed. "
            "Pass `reference=`, a function `theta -> x*` that JAX can differentiate."
        )
    return Reference(x, tangents)


def _is_formula(given: PyTree, guess: PyTree) -> TypeGuard[Callable[..., PyTree]]:
    """Return whether `given` is a function of theta; a network may be a solution, too."""
    is_leaf = jax.tree_util.all_leaves([given])
    return callable(given) and (is_leaf or jax.tree.structure(given) != jax.tree.structure(guess))


def _like(x: PyTree, guess: PyTree) -> PyTree:
    """Return a given reference in the dtypes of `guess`; its structure and shapes must agree."""
    expected, found = jax.tree.structure(guess), jax.tree.structure(x)
    if found != expected:
        raise ValueError(f"`reference` must have the structure of `x0`, {expected}, not {found}.")
    x = check_x0(x, "reference")
    for u, v in zip(jax.tree.leaves(x), jax.tree.leaves(guess), strict=True):
        if u.shape != v.shape:
            raise ValueError(f"`reference` must have the shapes of `x0`: {v.shape}, not {u.shape}.")
        if jnp.iscomplexobj(u):  # the unknowns of a complex `x0` are pairs of real ones
            raise TypeError("`reference` is complex, but `x0` is real; pass its real part.")
    return jax.tree.map(lambda u, v: u.astype(v.dtype), x, guess)


@compiled
def _from_formula(
    formula: Callable[[PyTree], PyTree], taken: Snapshot, theta: PyTree, directions: PyTree
) -> tuple[PyTree, PyTree]:
    """Return the solution and its tangents; the formula's snapshot only tells programs apart."""
    del taken
    floating, static = floating_part(theta)

    def solution(floating):
        return formula(eqx.combine(floating, static))

    tangents = jax.vmap(lambda v: jax.jvp(solution, (floating,), (v,))[1])(directions)
    return solution(floating), tangents


@compiled
def implicit_tangents(
    problem: Problem, x: PyTree, theta: PyTree, directions: PyTree
) -> tuple[PyTree, Bool[Array, ""]]:
    """Return the tangents, and whether the linear system that they solve is regular."""
    at_x = sensitivity(problem, x, theta)
    tangents = jax.vmap(at_x.forward)(directions)
    rounding = jnp.finfo(tree.result_dtype(x)).eps * at_x.condition()
    # `rounding` is NaN if the system is exactly singular.
    return tangents, tree.all_finite(tangents) & (rounding <= MAX_ROUNDING)


@compiled
def polish(
    problem: Problem, x: PyTree, theta: PyTree
) -> tuple[PyTree, Bool[Array, ""], Bool[Array, ""]]:
    """Take damped Newton steps for as long as the residual falls.

    Returns
    -------
    x : pytree
        The last point.
    converged : bool
        Whether it is a solution to machine precision: the residual is finite and the last step
        was short.
    stuck : bool
        Whether it is no solution, and the residual falls no further along the Newton step.
    """

    def residual_norm(x) -> Float[Array, ""]:
        return tree.norm(problem.residual(x, theta))

    def continues(carry):
        *_, fell, count = carry
        return fell & (count < MAX_NEWTON_STEPS)

    def improve(carry):
        x, height, _, _, count = carry
        direction = tree.sub(newton_step(problem, x, theta), x)
        candidate, candidate_height = _halve_until_lower(residual_norm, x, direction, height)
        fell = candidate_height < height
        x = tree.where(fell, candidate, x)
        height = jnp.where(fell, candidate_height, height)
        return x, height, tree.norm(direction), fell, count + 1

    height = residual_norm(x)
    start = (x, height, jnp.zeros_like(height), jnp.array(True), jnp.array(0))
    x, height, last_step, fell, _ = jax.lax.while_loop(continues, improve, start)
    wide = jnp.finfo(tree.result_dtype(x)).bits >= 64
    limit = MAX_LAST_STEP_FLOAT64 if wide else MAX_LAST_STEP_FLOAT32
    finite = jnp.isfinite(height)
    converged = finite & (last_step <= limit * (1 + tree.norm(x)))
    return x, converged, finite & ~fell & ~converged


def _halve_until_lower(
    residual_norm: Callable[[PyTree], Float[Array, ""]],
    x: PyTree,
    direction: PyTree,
    height: Float[Array, ""],
) -> tuple[PyTree, Float[Array, ""]]:
    """Halve the step from `x` until the residual's norm is below `height`; return both there."""

    def too_long(carry):
        _, shorter_height, halvings = carry
        return ~(shorter_height < height) & (halvings <= MAX_HALVINGS)

    def halve(carry):
        fraction, _, halvings = carry
        shorter = tree.axpy(fraction / 2, direction, x)
        return fraction / 2, residual_norm(shorter), halvings + 1

    # Twice the step, at no height: the first round is the full step, compiled once with the others.
    start = (jnp.full_like(height, 2.0), jnp.full_like(height, jnp.inf), jnp.array(0))
    fraction, shorter_height, _ = jax.lax.while_loop(too_long, halve, start)
    return tree.axpy(fraction, direction, x), shorter_height
