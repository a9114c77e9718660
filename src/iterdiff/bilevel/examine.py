r"""The outer loss at an inner iterate: its value and gradient, each with an error bar.

Let x be an inner iterate, r the residual, :math:`A = r_x`, and L the outer loss. One adjoint solve,
:math:`A^\top u = L_x`, gives both

.. math::

    \text{the value } L - u^\top r, \qquad \text{the gradient } L_\theta - r_\theta^\top u .

The error of the gradient is of first order in the distance from the inner solution, the error of
the value of second order. Both are compared with what the Newton correction
:math:`x^+ = x - A^{-1} r` gives, see `iterdiff.accuracy.correction`. What it gives is better by one
order, and a second correction shows how wrong that still is.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff.accuracy.correction import correct
from iterdiff.accuracy.estimate import TOO_FAR_MIN_QUOTIENT, compare
from iterdiff.accuracy.overflow import finite_at
from iterdiff.accuracy.points import NewtonPoints
from iterdiff.accuracy.reasons import NO_VALUE, ONE_SIDED
from iterdiff.accuracy.sensitivity import Sensitivity
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.tree import floating_part
from iterdiff.linalg.solve import Inverse
from iterdiff.modes.implicit import Implicit
from iterdiff.problems.problem import Problem

Loss = Callable[[PyTree, PyTree], Float[Array, ""]]
"""``loss(x, theta)``, the outer loss."""

ROUNDINGS = 10
"""Rounding errors of a value, in units of the machine precision times its terms."""

DESCENT_SHARE = 0.5
"""Least decrease of the inner objective by a Newton correction, as a part of that of a parabola."""

GRADIENTS_PER_CHECK = 4
"""Residuals that an examination evaluates: at the iterate, at its two corrections, and beside the
first one to measure noise."""

PRODUCTS_PER_CHECK = 6
"""Hessian products of an examination besides those that form the matrix."""


class Examined(eqx.Module):
    """The outer loss at an inner iterate.

    Attributes
    ----------
    x : pytree
        The iterate.
    nearest : pytree
        The corrected point; the iterate itself where it may be better.
    improves : bool
        Whether the run may go on from the corrected point: Newton's method converges, or decreases
        the inner objective.
    value : scalar
        The adjoint-corrected value.
    value_change, value_slack : scalar
        By how much the value at the corrected point differs, and how wrong that value is.
    gradient, corrected : pytree
        The gradient at the iterate, and the one at its Newton correction; like theta.
    uncertainty : scalar
        How wrong `corrected` may be: absolute, in Euclidean norm.
    trusted : bool
        As in `ErrorEstimate`.
    reason_code : integer scalar
        As in `ErrorEstimate`.
    adjoint : pytree
        The solution of the adjoint system, like x.
    products : scalar
        Hessian products that this took; NaN if iterative solves do not tell.
    """

    x: PyTree
    nearest: PyTree
    improves: Bool[Array, "*b"]
    value: Float[Array, "*b"]
    value_change: Float[Array, "*b"]
    value_slack: Float[Array, "*b"]
    gradient: PyTree
    corrected: PyTree
    uncertainty: Float[Array, "*b"]
    trusted: Bool[Array, "*b"]
    reason_code: Int[Array, "*b"]
    adjoint: PyTree
    products: Float[Array, "*b"]

    @property
    def error(self) -> Float[Array, ""]:
        """The estimated error of `gradient`: absolute, in Euclidean norm."""
        difference = tree.norm(tree.sub(self.corrected, self.gradient))
        return jnp.where(self.reason_code == NO_VALUE, jnp.inf, difference)

    @property
    def upper(self) -> Float[Array, ""]:
        """Upper bound of the error of `gradient`."""
        return self.error + self.uncertainty

    @property
    def size(self) -> Float[Array, ""]:
        """The least norm that the true gradient may have."""
        return jnp.maximum(tree.norm(self.corrected) - self.uncertainty, 0.0)

    @property
    def value_error(self) -> Float[Array, "*b"]:
        """The error bar of `value`: absolute."""
        return jnp.abs(self.value_change) + self.value_slack

    @property
    def better_value(self) -> Float[Array, "*b"]:
        """The value at the corrected point, which is wrong by at most `value_slack`."""
        return self.value + self.value_change

    @property
    def one_sided(self) -> Bool[Array, "*b"]:
        """Whether the inner solution is at a kink, where the gradient is one of two."""
        return self.reason_code == ONE_SIDED

    def known_if(self, finite: Bool[Array, ""]) -> "Examined":
        """As `ErrorEstimate.known_if`."""
        return dataclasses.replace(
            self,
            value_slack=jnp.where(finite, self.value_slack, jnp.inf),
            uncertainty=jnp.where(finite, self.uncertainty, jnp.inf),
            trusted=self.trusted & finite,
            reason_code=jnp.where(finite, self.reason_code, NO_VALUE),
        )

    def mean(self) -> "Examined":
        """Return the mean of a batch: its losses are one loss, their mean.

        Errors may cancel, as far as they are known. Uncertainties add up.
        """
        averaged = jax.tree.map(
            lambda v: jnp.mean(v, axis=0),
            (self.value, self.value_change, self.value_slack, self.gradient, self.corrected),
        )
        worst = jnp.argmin(self.trusted)  # the first that is not trusted
        return Examined(
            self.x,
            self.nearest,
            jnp.all(self.improves),
            *averaged,
            uncertainty=jnp.mean(self.uncertainty),
            trusted=jnp.all(self.trusted),
            reason_code=self.reason_code[worst],
            adjoint=self.adjoint,
            products=jnp.sum(self.products),
        )


def examine(
    problem: Problem,
    loss: Loss,
    x: PyTree,
    theta: PyTree,
    mode: Implicit,
    guess: PyTree,
) -> Examined:
    """Return value and gradient of the outer loss at `x`, and how wrong they are.

    Parameters
    ----------
    problem : Problem
        The inner problem.
    loss : callable
        The outer loss.
    x : pytree
        The inner iterate.
    theta : pytree
        The parameters.
    mode : Implicit
        How the linear systems are solved.
    guess : pytree
        An approximation of the adjoint, from the evaluation before.
    """
    floating, rest = floating_part(theta)
    graded = jax.value_and_grad(lambda x, part: loss(x, eqx.combine(part, rest)), argnums=(0, 1))
    given = mode.linear_solver
    correction = correct(problem, x, theta, given, preconditioner=mode.preconditioner)
    at, points = correction.at, correction.points
    value, (slope, partial) = graded(x, floating)
    adjoint = _adjoint(at, slope, guess)
    gradient = tree.add(partial, at.pulled(adjoint))
    there, (slope_there, partial_there) = graded(points.corrected, floating)
    pulled, loose, terms = correction.reverse(slope_there, adjoint)
    corrected = tree.add(partial_there, pulled)
    terms += tree.norm(partial_there)
    estimate = compare(gradient, gradient, corrected, points, loose, terms)
    finite = jnp.isfinite(value) & tree.all_finite(at.value) & finite_at(problem, x, theta)
    moved = -tree.dot(adjoint, at.value)
    moved = jnp.where(jnp.isfinite(moved), moved, 0.0)  # too far for an adjoint: the plain loss

    def value_at(y, loss_there):
        return loss_there - tree.dot(adjoint, at.residual(y, at.theta))

    better = value_at(points.corrected, there)
    better = jnp.where(jnp.isfinite(better), better, value + moved)
    best = value_at(points.twice, loss(points.twice, theta))
    known = (points.quotient < TOO_FAR_MIN_QUOTIENT) & tree.all_finite(points.corrected)
    converges = known & (estimate.uncertainty < estimate.absolute)
    improves = (converges | _descends(problem, theta, at, points)) & finite
    rounding = _rounding(at, jnp.abs(value) + jnp.abs(moved), adjoint)
    slack = jnp.abs(best - better) + rounding
    slack = jnp.where(known & jnp.isfinite(slack), slack, jnp.inf)
    formed = tree.size(x) if at.inverse.factors is not None else jnp.nan
    dtype = tree.result_dtype(x)
    found = Examined(
        x=x,
        nearest=tree.where(known | improves, points.corrected, x),
        improves=improves,
        value=value + moved,
        value_change=better - (value + moved),
        value_slack=slack,
        gradient=gradient,
        corrected=corrected,
        uncertainty=estimate.uncertainty,
        trusted=estimate.trusted,
        reason_code=estimate.reason_code,
        adjoint=adjoint,
        products=jnp.asarray(formed + PRODUCTS_PER_CHECK, dtype),
    )
    return found.known_if(finite)


def _descends(
    problem: Problem, theta: PyTree, at: Sensitivity, points: NewtonPoints
) -> Bool[Array, ""]:
    """Return whether the Newton correction decreases a convex objective as a parabola would."""
    if not (problem.residual_is_gradient and at.structure.positive_definite):
        return jnp.array(False)
    before, after = (problem.value(x, theta) for x in (at.x, points.corrected))
    if before is None or after is None:
        return jnp.array(False)
    factors = at.inverse.factors
    convex = ~points.saddle
    if factors is not None and factors.definite is not None:
        convex &= factors.definite
    predicted = tree.dot(at.value, tree.sub(at.x, points.corrected)) / 2
    return convex & (predicted > 0) & (after < before - DESCENT_SHARE * predicted)


def _adjoint(at: Sensitivity, slope: PyTree, guess: PyTree) -> PyTree:
    """Return the solution of the adjoint system; an iterative solve starts at the guess."""
    if at.inverse.factors is not None:
        return at.inverse.transposed(slope)
    method = at.method._replace(guess=guess)
    return Inverse(at.operator, at.x, at.structure, method).transposed(slope)


def _rounding(at: Sensitivity, terms: Float[Array, ""], adjoint: PyTree) -> Float[Array, ""]:
    """Return the rounding error of a value: of the loss, and of the residual's terms."""
    terms += tree.norm(adjoint) * tree.norm(at.operator(at.x))
    return ROUNDINGS * jnp.finfo(tree.result_dtype(at.x)).eps * terms
