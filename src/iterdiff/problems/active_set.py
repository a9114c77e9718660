r"""The active set at a solution: multipliers from a point, weakly active and dependent constraints.

**Multipliers from a point.** Where a solver returns only `x`, they minimise (Glad and Polak 1979)

.. math:: \|\nabla f + J^\top \lambda\|^2 + \|\mathrm{diag}(g) \lambda\|^2,

with the Jacobian `J` of all constraints. At a solution both terms vanish, so that no tolerance
decides which constraints are active. If the multipliers are not unique, these are the shortest.

**Dependent constraints.** If the gradients of the active constraints depend on each other, the KKT
matrix is singular. The multipliers of a maximal independent set are then the only ones that may
move; the rest are *pinned*. The derivative of `x` does not depend on the choice, provided that
theta moves the pinned constraints as the others imply. A combination n of the constraints whose
gradient in `x` vanishes shows this: its derivative in theta has to vanish, too.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.jit import compiled
from iterdiff.jaxtools.lax import only_if
from iterdiff.jaxtools.manual_axes import fori_loop
from iterdiff.linalg.least_squares import safe_length
from iterdiff.problems.constrained import ConstrainedProblem, Multipliers, PrimalDual
from iterdiff.problems.problem import Problem, replaced

DEPENDENT_MAX_EXPONENT = 2 / 3
"""A constraint depends on others if its unit gradient is closer to theirs than eps to this power:
4e-11 in float64, 2e-5 in float32."""

APART_MIN_EXPONENT = 0.4
"""Theta moves dependent constraints apart if the derivative of their combination is larger than
eps to this power, relative to its terms: 5e-7 in float64, 2e-3 in float32."""

SUSPECT_MAX_EXPONENT = 0.4
"""A pivot of the Gram matrix's Cholesky factor below eps to this power calls for the exact, slower
test. The pivots have an error of about the square root of eps."""

KINK_MAX_DISTANCE = {64: 1e-6, 32: 1e-3}
"""Default distance within which a kink counts, by the bits of the dtype; see `weakly_active`."""

VIOLATED_MIN_DISTANCES = 10
"""A weakly active constraint counts as inactive until it is violated by this many times the
distance within which it counts as weakly active."""

FAR = 1.0
"""Weight of a multiplier whose constraint is that far from active, or farther, relative to `x`: a
larger one, of a bound of 1e30 for example, would hide the others from a least-squares solver."""

CG_RTOL = 1e-12
"""Relative residual at which the matrix-free search for multipliers stops."""


class Dependence(NamedTuple):
    """Which constraints at a solution depend on others, as vectors over all constraints.

    Attributes
    ----------
    pinned : bool array
        Active constraints that depend on those before them.
    implied : bool array
        Weakly active inequalities that depend on the active constraints.
    of_pinned, of_implied : array
        A combination of constraints whose gradient in `x` vanishes: irregular weights on the
        pinned (or implied) ones, and what the others need.
    """

    pinned: Bool[Array, " m"]
    implied: Bool[Array, " m"]
    of_pinned: Float[Array, " m"]
    of_implied: Float[Array, " m"]

    @property
    def found(self) -> Bool[Array, ""]:
        """Whether any constraint depends on others, so that the multipliers are not unique."""
        return jnp.any(self.pinned | self.implied)


def completed(problem: Problem, x: PyTree, theta: PyTree) -> PyTree:
    """Return the unknowns of the residual at an answer: multipliers are found if need be."""
    if not isinstance(problem, ConstrainedProblem) or isinstance(x, PrimalDual):
        return x
    return PrimalDual(x, _least_squares_multipliers(problem, x, theta))


@compiled
def _least_squares_multipliers(
    problem: ConstrainedProblem, x: PyTree, theta: PyTree
) -> Multipliers:
    problem, x, theta = still(problem), still(x), still(theta)
    values = problem.constraints(x, theta)
    like = problem.start(x, theta).multipliers
    count = tree.size(like)
    if count == 0:
        return like
    gradient = tree.to_vector(jax.grad(problem.cost)(x, theta))
    largest = jnp.max(jnp.abs(tree.to_vector(x)))
    unit = jnp.where(largest > 0, largest, 1.0)  # makes values and gradients comparable
    weights = jax.tree.map(jnp.zeros_like, values)._replace(inequality=values.inequality)
    weights = jnp.clip(tree.to_vector(weights) / unit, -FAR, FAR)
    if count * gradient.size <= problem.limits.jacobian_max_numbers:
        rows = constraint_gradients(problem, x, theta)
        lengths = safe_length(rows)
        stacked = jnp.concatenate([(rows / lengths[:, None]).T, jnp.diag(weights / lengths)])
        b = jnp.concatenate([-gradient, jnp.zeros(count, gradient.dtype)])
        found = jnp.linalg.lstsq(stacked, b)[0] / lengths
    else:
        push, pull = _both_products(problem, x, theta)
        found = jax.scipy.sparse.linalg.cg(
            lambda v: push(pull(v)) + weights**2 * v, -push(gradient), tol=CG_RTOL
        )[0]
    multipliers = tree.from_vector(found, like)
    signed = jax.tree.map(lambda z: jnp.maximum(z, 0), multipliers.inequality)
    return multipliers._replace(inequality=signed)


def _both_products(problem: ConstrainedProblem, x: PyTree, theta: PyTree):
    """Return the products with the Jacobian of all constraints and with its transpose."""
    vector = tree.to_vector(x)

    def values(v):
        return tree.to_vector(problem.constraints(tree.from_vector(v, x), theta))

    push = jax.linearize(values, vector)[1]
    return push, lambda w: jax.linear_transpose(push, vector)(w)[0]


def constraint_gradients(
    problem: ConstrainedProblem, x: PyTree, theta: PyTree
) -> Float[Array, "m n"]:
    """Return the Jacobian of all constraints: equalities first, one row for each."""

    def values(v):
        return tree.to_vector(problem.constraints(tree.from_vector(v, x), theta))

    vector = tree.to_vector(x)
    count = tree.size(jax.eval_shape(values, vector))
    jacobian = jax.jacrev if count < vector.size else jax.jacfwd
    return jacobian(values)(vector)


def default_distance(x: PyTree) -> float:
    """Return the distance within which a kink counts, for the narrowest dtype in `x`."""
    wide = all(jnp.finfo(leaf.dtype).bits >= 64 for leaf in jax.tree.leaves(x))
    return KINK_MAX_DISTANCE[64 if wide else 32]


def regular_at(problem: Problem, x: PyTree, theta: PyTree) -> tuple[Problem, Dependence | None]:
    """Return the problem as it is differentiated at a solution, and its dependent constraints.

    Their multipliers are pinned, and so are those of weakly active inequalities, which then count
    as inactive until a correction of `x` violates them: the active set was then a wrong one.
    Without constraints, the problem is returned as it is.
    """
    if not isinstance(problem, ConstrainedProblem):
        return problem, None
    fixed, x, theta = still(problem), still(x), still(theta)
    tol = jnp.asarray(default_distance(x), tree.result_dtype(x))
    if tree.size(x.multipliers) == 0:
        return problem, None
    weak, sizes = weak_inequalities(fixed, x, theta, tol)
    found = dependence(fixed, x, theta, weak)
    none = jax.tree.map(jnp.zeros_like, x.multipliers.equality)
    room = tree.to_vector(Multipliers(none, sizes)) * (VIOLATED_MIN_DISTANCES * tol)
    room = jnp.where(_with_equalities(weak, x.multipliers), room, 0)
    if found is not None:
        found = jax.tree.map(jax.lax.stop_gradient, found)
        room = jnp.where(found.pinned, jnp.finfo(room.dtype).max, room)
    pinned = tree.from_vector(jax.lax.stop_gradient(room), x.multipliers)
    return replaced(problem, pinned=pinned), found


@compiled
def weak_constraints(
    problem: ConstrainedProblem, unknowns: PrimalDual, theta: PyTree, tol: Array
) -> PyTree:
    """Return the inequalities at which the solution has only one-sided derivatives.

    These are the weakly active ones, except those that the active constraints imply for every
    theta nearby.
    """
    weak, _ = weak_inequalities(problem, unknowns, theta, tol)
    found = dependence(problem, unknowns, theta, weak)
    if found is None:
        return weak
    moved = moves_apart(problem, unknowns.x, theta, found.of_implied, found.implied)
    flags = _with_equalities(weak, unknowns.multipliers) & ~(found.implied & ~moved)
    numbers = _as_numbers(flags, unknowns.multipliers)
    return jax.tree.map(lambda v: v > 0, numbers.inequality)


def weak_inequalities(
    problem: ConstrainedProblem, unknowns: PrimalDual, theta: PyTree, tol: Array
) -> tuple[PyTree, PyTree]:
    """Return which inequalities hold with equality and have the multiplier zero, to within `tol`.

    The second pytree holds the size by which each value is measured: what it changes by when `x`
    changes by its own size. A multiplier is compared with what the constraint would then add to
    the change of the objective.
    """
    x, multipliers = unknowns
    inequality = problem.inequality
    if inequality is None:
        return None, None
    largest = jnp.max(jnp.abs(tree.to_vector(x)))
    size = jnp.where(largest > 0, largest, 1.0)
    direction = jax.tree.map(lambda leaf: size.astype(leaf.dtype) * tree.irregular(leaf), x)
    values, change = jax.jvp(lambda y: inequality(y, theta), (x,), (direction,))
    slope = jax.grad(problem.cost)(x, theta)
    force = tree.to_vector(jax.tree.map(lambda u, v: jnp.abs(u * v), slope, direction)).sum()
    force += sum(
        jnp.sum(jnp.abs(z * v))
        for z, v in zip(*map(jax.tree.leaves, (multipliers.inequality, change)), strict=True)
    )
    force = jnp.where(force > 0, force, 1.0)

    def weak(z, g, v):
        return (jnp.abs(g) <= tol.astype(g.dtype) * v) & (jnp.abs(z) * v <= tol * force)

    sizes = jax.tree.map(lambda v: jnp.where(v == 0, 1, jnp.abs(v)), change)
    return jax.tree.map(weak, multipliers.inequality, values, sizes), sizes


def dependence(
    problem: ConstrainedProblem, unknowns: PrimalDual, theta: PyTree, weak: PyTree
) -> Dependence | None:
    """Return which active constraints depend on others; None if there are too many to tell.

    Parameters
    ----------
    problem : ConstrainedProblem
    unknowns : PrimalDual
        A solution.
    theta : pytree
    weak : pytree of bool arrays, or None
        The weakly active inequalities.
    """
    count, size = tree.size(unknowns.multipliers), tree.size(unknowns.x)
    if count == 0 or count * size > problem.limits.jacobian_max_numbers:
        return None
    rows = constraint_gradients(problem, unknowns.x, theta)
    lengths = safe_length(rows)
    rows = rows / lengths[:, None]
    active = problem.active(unknowns, theta)
    weak, active = _with_equalities(weak, unknowns.multipliers), _flags(active)
    strong = active & ~weak
    considered = jnp.where((strong | weak)[:, None], rows, 0)
    gram = considered @ considered.T + jnp.diag((~(strong | weak)).astype(rows.dtype))
    pivots = jnp.diagonal(jnp.linalg.cholesky(gram))
    eps = float(jnp.finfo(rows.dtype).eps)
    suspect = ~(jnp.min(pivots) > eps**SUSPECT_MAX_EXPONENT)
    zero = jnp.zeros(count, rows.dtype)
    nothing = Dependence(strong & False, strong & False, zero, zero)
    found = only_if(suspect, lambda: _examined(considered, strong, weak, eps), nothing)
    of_pinned, of_implied = found.of_pinned / lengths, found.of_implied / lengths
    return found._replace(of_pinned=of_pinned, of_implied=of_implied)


def _examined(rows: Array, strong: Array, weak: Array, eps: float) -> Dependence:
    """Return the dependence of unit rows, by Gram-Schmidt over the strongly active ones.

    The combinations are those of unit rows.
    """
    tol = eps**DEPENDENT_MAX_EXPONENT

    def project(i, carry):
        rest, chosen = carry
        length = jnp.sqrt(jnp.sum(rest[i] ** 2))  # of a part of a unit row
        take = strong[i] & (length > tol)
        q = jnp.where(take, rest[i] / jnp.where(take, length, 1.0), 0.0)
        return rest - jnp.outer(rest @ q, q), chosen.at[i].set(take)

    rest, chosen = fori_loop(0, len(rows), project, (rows, jnp.zeros_like(strong)))
    within = jnp.sqrt(jnp.sum(rest**2, axis=1)) <= tol
    pinned, implied = strong & ~chosen, weak & within
    basis = jnp.where(chosen[:, None], rows, 0)
    factor = jax.scipy.linalg.cho_factor(basis @ basis.T + jnp.diag((~chosen).astype(rows.dtype)))

    # Both combinations at once: a program through constraints is compiled faster.
    which = jnp.stack([pinned, implied], axis=1)
    weights = jnp.where(which, tree.irregular(rows[:, 0])[:, None], 0)
    for _ in range(2):  # the second time, for the rounding errors of the first
        rest = jax.scipy.linalg.cho_solve(factor, basis @ (rows.T @ weights))
        weights -= jnp.where(chosen[:, None], rest, 0)
    return Dependence(pinned, implied, weights[:, 0], weights[:, 1])


def _flags(flags: Multipliers) -> Bool[Array, " m"]:
    """Return flags, in the layout of the multipliers, as one vector."""
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(flags)])


def _with_equalities(inequality: PyTree, like: Multipliers) -> Bool[Array, " m"]:
    """Return flags of inequalities as flags of all constraints, False for equalities."""
    none = jax.tree.map(lambda y: jnp.zeros(y.shape, bool), like.equality)
    return _flags(Multipliers(none, inequality))


def _as_numbers(flags: Bool[Array, " m"], like: Multipliers) -> Multipliers:
    """Return flags as ones and zeros, in the layout of the multipliers.

    A flag may have a tangent of dtype float0, with which JAX cannot differentiate a linear solve.
    """
    numbers = jax.lax.select(flags, jnp.ones(flags.shape), jnp.zeros(flags.shape))
    return tree.from_vector(numbers, like)


def moves_apart(
    problem: ConstrainedProblem, x: PyTree, theta: PyTree, weights: Array, which: Array
) -> Bool[Array, ""]:
    """Return whether theta moves dependent constraints apart.

    Parameters
    ----------
    problem, x, theta
        The problem and its solution.
    weights : array of shape (m,)
        A combination of constraints whose gradient in `x` vanishes.
    which : bool array of shape (m,)
        The constraints that depend on the others.
    """
    floating, rest = tree.floating_part(theta)

    def values(floating):
        return tree.to_vector(problem.constraints(x, eqx.combine(floating, rest)))

    pull = jax.vjp(values, floating)[1]
    return apart(lambda w: pull(w)[0], weights, which)


def apart(pull: Callable[[Array], PyTree], weights: Array, which: Array) -> Bool[Array, ""]:
    """Return whether the derivative of a combination does not vanish, relative to its terms.

    Parameters
    ----------
    pull : callable
        Returns the derivative of a combination of the constraints in whatever moves them.
    weights, which : array
        As in `moves_apart`.
    """
    one = tree.norm(pull(jnp.where(which, weights, 0)))
    other = tree.norm(pull(jnp.where(which, 0, weights)))
    tol = float(jnp.finfo(weights.dtype).eps) ** APART_MIN_EXPONENT
    return tree.norm(pull(weights)) > tol * (one + other)


def still(a: PyTree) -> PyTree:
    """Return `a` without derivatives."""
    return jax.tree.map(lambda v: jax.lax.stop_gradient(v) if tree.is_floating(v) else v, a)
