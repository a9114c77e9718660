r"""How wrong a derivative is, estimated without knowing the right one.

Given an inexact solution :math:`x` and any derivative, one Newton correction
:math:`x^+ = x - A(x)^{-1} r(x)` gives a better point, and the implicit derivative there is a better
derivative: its error is of second order in the distance :math:`\|x - x^*\|`. The difference
between the two derivatives estimates the error of the first. A second Newton step shows how
reliable that estimate is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff.accuracy.correction import Correction, correct
from iterdiff.accuracy.estimate_jvp import in_layout, relative_size, with_derivative
from iterdiff.accuracy.forms import Apply, Form, applied, as_caller_has_it, check_layout
from iterdiff.accuracy.overflow import finite_at
from iterdiff.accuracy.points import NewtonPoints
from iterdiff.accuracy.preconditioners import Preconditioner, as_preconditioner
from iterdiff.accuracy.reasons import (
    AWAY,
    DISAGREES,
    FLOOR,
    NO_VALUE,
    NOT_FINITE,
    OF_CORRECTED,
    OK,
    ONE_SIDED,
    REASONS,
    REPELLED,
    SADDLE,
    SINGULAR,
    TOO_FAR,
)
from iterdiff.accuracy.sensitivity import Sensitivity
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import Tolerance, check_tolerance
from iterdiff.jaxtools.closures import attach_jvp
from iterdiff.jaxtools.jit import compiled, quickly_compiled
from iterdiff.jaxtools.snapshot import Snapshot, snapshot, traced
from iterdiff.jaxtools.transformations import transforming
from iterdiff.jaxtools.tree import floating_part
from iterdiff.linalg.any_solver import as_linear_solver
from iterdiff.problems.constrained import PrimalDual
from iterdiff.problems.inputs import check_inputs
from iterdiff.problems.problem import Problem

TRUSTED_MAX_UNCERTAINTY = 0.3
"""An estimate is trusted if its uncertainty is at most this fraction of it."""

NEGLIGIBLE_MAX_ROUNDINGS = 1e3
"""An error whose upper bound is at most this many units of the machine precision, relative to the
derivative, is trusted to be that small. No factor of two is claimed for it."""

TOO_FAR_MIN_QUOTIENT = 0.5
"""If the second Newton correction is not shorter than the first by at least this factor, nothing is
known of the solution."""

MISSTATED = 10
"""If algorithm and residual solve different problems whose solutions are a relative distance d
apart, we assume a relative derivative error of ``MISSTATED * d``."""

NEAR = 0.1
"""A point that should be a solution is suspect if it is farther away than this fraction of it."""


class ErrorEstimate(eqx.Module):
    r"""The estimated error of a derivative.

    All norms are Euclidean (Frobenius for Jacobians).

    Attributes
    ----------
    absolute : scalar
        Estimate of ``||derivative - solution derivative||``.
    relative : scalar
        `absolute` over the norm of the better derivative; infinite where that is zero and
        `absolute` is not.
    uncertainty : scalar
        How wrong `absolute` itself may be, in the same units: the estimated error of `corrected`,
        including rounding and noise. Infinite if nothing is known.
    trusted : bool
        Whether `absolute` should be within a factor of two of the true error: `uncertainty` is
        small compared with it, and the residual fits the solver. Also True if the error is at the
        level of rounding: ``absolute + uncertainty`` is below 1000 units of the machine precision,
        relative to the derivative.
    reason_code : integer scalar
        The index of `reason`.
    corrected : pytree
        The better derivative that the estimate found, with the layout of the given one.
    """

    absolute: Float[Array, ""]
    relative: Float[Array, ""]
    uncertainty: Float[Array, ""]
    trusted: Bool[Array, ""]
    reason_code: Int[Array, ""]
    corrected: PyTree

    @property
    def reason(self) -> str:
        """Why the estimate is not trusted; empty if it is. Not available under ``jit``."""
        code = int(self.reason_code)
        return REASONS[code] + (OF_CORRECTED if code == TOO_FAR else "")

    def __repr__(self) -> str:
        """Return the numbers and the verdict on one line; shapes while JAX traces."""
        return shown(self, "trusted")

    @property
    def upper(self) -> Float[Array, ""]:
        """Upper bound of the error, ``absolute + uncertainty``; infinite if nothing is known."""
        return self.absolute + self.uncertainty

    def known_if(self, finite: Bool[Array, ""]) -> "ErrorEstimate":
        """Return the estimate; unless `finite`, one that knows nothing.

        An overflow makes derivatives zero: two of them agree, and both are wrong.
        """
        infinite = {
            name: jnp.where(finite, getattr(self, name), jnp.inf)
            for name in ("absolute", "relative", "uncertainty")
        }
        reason = jnp.where(finite, self.reason_code, NO_VALUE)
        return dataclasses.replace(
            self, **infinite, trusted=self.trusted & finite, reason_code=reason
        )

    def exceeds(self, rtol: Tolerance, atol: Tolerance = 0.0) -> Bool[Array, ""]:
        """Return whether the error may exceed ``rtol * |truth| + atol``: whether `upper` does.

        The answer is meant for decisions. It does not need `trusted`: whatever makes an estimate
        unreliable is part of `upper`. The size of the truth is that of `corrected`, less its own
        `uncertainty`.
        """
        size = jnp.maximum(tree.norm(self.corrected) - self.uncertainty, 0.0)
        return ~(self.upper <= rtol * size + atol)


def shown(estimate: Any, *verdicts: str) -> str:
    """Return an estimate's numbers, verdicts and reason on one line; shapes while JAX traces."""
    numbers = "relative", "absolute", "uncertainty"
    values = [getattr(estimate, name) for name in (*numbers, *verdicts, "reason_code")]
    if any(tree.is_traced(v) or np.ndim(v) for v in values):
        return eqx.tree_pformat(estimate)
    parts = [f"{name}={float(getattr(estimate, name)):.3g}" for name in numbers]
    parts += [f"{name}={bool(getattr(estimate, name))}" for name in verdicts]
    return f"{type(estimate).__name__}({', '.join(parts)}, reason={estimate.reason!r})"


@quickly_compiled()
def derivative_error(
    problem: Problem,
    x: PyTree,
    theta: PyTree,
    derivative: PyTree,
    *,
    tangent: PyTree | None = None,
    cotangent: PyTree | None = None,
    loss: Callable[[PyTree, PyTree], Float[Array, ""]] | None = None,
    linear_solver: lx.AbstractLinearSolver | None = None,
    preconditioner: Preconditioner | str | None = None,
    near: float = NEAR,
    args: PyTree = None,
) -> ErrorEstimate:
    r"""Estimate the error of `derivative` as a solution derivative, however it was obtained.

    Without a keyword, `derivative` is the Jacobian. The keywords `tangent`, `cotangent` and `loss`
    select another form.

    Parameters
    ----------
    problem : Problem
        Owns the residual, which has to be twice differentiable near the solution.
    x : pytree
        The point where the solver stopped, like `x0` of `solve`. With constraints, pass a
        `PrimalDual` for the derivative of the multipliers, too; without multipliers they are found
        by least squares.
    theta : pytree
        The parameters.
    derivative : pytree
        The Jacobian, as ``jax.jacobian`` lays it out: a tree like `x` of trees like the floating
        part of `theta` of arrays of shape ``x.shape + theta.shape``. If any of them is complex,
        use one of the keywords, with JAX's conventions for tangents and gradients.
    tangent : pytree, optional
        Like theta: `derivative` is :math:`J v`, like `x`.
    cotangent : pytree, optional
        Like x: `derivative` is :math:`J^\top w`, like theta.
    loss : callable, optional
        ``loss(x, theta)`` returns a scalar: `derivative` is the gradient of
        :math:`f(x^*(\theta), \theta)` in theta (the hypergradient), like theta.
    linear_solver : lineax.AbstractLinearSolver, optional
        As in `Implicit`.
    preconditioner : callable, "diagonal" or "block", optional
        As in `Implicit`. A bad one makes the estimate slow or infinite, but never wrong.
    near : float
        How far `x` may be from a solution of the residual, relative to the solution (absolute if
        that is shorter than 1). Beyond this distance the solver may have solved another problem
        than the residual states: the estimate is not trusted, and `exceeds` returns True. Pass
        infinity for an iterate that is known to be on its way to a solution of this residual, as
        `Checked` does.
    args : pytree, optional
        Data for the problem's functions, as in `iterdiff.solve`.

    Returns
    -------
    ErrorEstimate
        The estimate; the function works under ``jit`` and ``vmap``.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, or the arguments do not fit together.

    Notes
    -----
    The estimate is :math:`\|J(x^+) - J\|`, where :math:`J(x) = -A(x)^{-1} r_\theta(x)`,
    :math:`x^+ = x + \delta_1` and :math:`\delta_1 = -A(x)^{-1} r(x)`. It is exact if `x` enters
    the residual affinely. Its uncertainty is

    .. math:: \|J(x^+) - J(x)\| \, \frac{q}{1 - q} + \nu \, \|J(x^+)\|.

    Here q is the length of the second Newton step over that of the first, or the same quotient of
    a single unknown if that is larger. (The second step is estimated with the matrix of the first.)
    The relative error of a solution, :math:`\nu`, is the machine precision times an estimated
    condition number, or the measured noise of the residual; where terms of a gradient cancel, their
    size takes the place of :math:`\|J(x^+)\|`. See `iterdiff.accuracy.points`. The cost is two
    factorisations, the solves for the derivatives themselves, and a handful of further solves.

    Limits: the root that Newton's method finds is taken for the solution. An iteration that leaves
    this root ends elsewhere, which `Checked` tests and this function cannot. The kinks that are
    looked for lie on the path that the solution takes when theta moves in one fixed direction.

    The estimate can be differentiated in everything it depends on. Only the derivative of its
    `uncertainty` is NaN, except in `derivative`, where it is zero.

    The error relative to the *iterate derivative*, the derivative of the iterations that ran, is a
    different question: see `iterate_derivative_error`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.RootFinding(lambda x, theta: x**2 - theta)
    >>> x, theta = jnp.array(1.9), jnp.array(4.0)  # the root is 2, its derivative 1 / 4
    >>> estimate = itd.derivative_error(problem, x, theta, 1 / (2 * x))
    >>> float(estimate.absolute.round(4)), bool(estimate.trusted)
    (0.0135, True)
    >>> isinstance(estimate, itd.ErrorEstimate)
    True
    """
    solves = as_linear_solver(linear_solver), as_preconditioner(preconditioner)
    check_tolerance("near", near)
    whole = isinstance(x, PrimalDual)
    problem, unknowns, theta = check_inputs(problem, x, theta, args, solved=True)
    x = unknowns if whole else problem.answer(unknowns)
    seen = Form(derivative, tangent, cotangent, loss)
    seen = (seen if problem.layout is None else seen.seen(problem.layout)).arrays()
    form = seen.tangent, seen.cotangent, seen.loss
    check_layout(applied(x, theta, *form), x, theta, seen.derivative)
    taken = None if seen.loss is None else snapshot(traced(seen.loss, x, theta)[0])
    given = _Given(problem, unknowns, theta, seen.derivative, form, taken, whole)
    found = _derivative_error(given, solves, near, transforming())
    back = as_caller_has_it(problem.layout, found.corrected, cotangent, loss)
    return dataclasses.replace(found, corrected=back)


class _Given(NamedTuple):
    """What `derivative_error` judges.

    The snapshot of the loss, `taken`, only tells programs apart. `whole` is whether the derivative
    is that of all unknowns, rather than of the answer without multipliers.
    """

    problem: Problem
    x: PyTree
    theta: PyTree
    derivative: PyTree
    form: tuple
    taken: Snapshot | None
    whole: bool


@compiled
def _derivative_error(
    given: _Given, solves: tuple, near: float, differentiable: bool
) -> ErrorEstimate:
    problem, x, theta, derivative, form, _, whole = given
    see = (lambda v: v) if whole else problem.answer
    apply = applied(see(x), theta, *form).seen_by(see)
    solver, preconditioner = solves
    correction = correct(problem, x, theta, solver, near=near, preconditioner=preconditioner)
    floating = jax.lax.stop_gradient(floating_part(theta)[0])
    estimate = _estimate(correction, floating, derivative, apply)
    finite = tree.all_finite(correction.at.value) & finite_at(problem, x, theta)
    if form[2] is not None:
        finite &= jnp.isfinite(jax.lax.stop_gradient(form[2](see(x), theta)))
    estimate = estimate.known_if(finite)
    if not differentiable:  # outside all transformations, nobody can ask for a derivative
        return estimate
    names = "absolute", "relative", "uncertainty", "corrected"
    parts = tuple(getattr(estimate, name) for name in names)
    parts = with_derivative(parts, problem, (derivative, x, theta), apply, correction.at.method)
    return dataclasses.replace(estimate, **dict(zip(names, parts, strict=True)))


def _estimate(
    correction: Correction, floating: PyTree, derivative: PyTree, apply: Apply
) -> ErrorEstimate:
    """Compare `derivative` with the implicit ones at the point and at its correction."""

    def implicit(at: Sensitivity, pushed: Callable[[PyTree], PyTree]) -> PyTree:
        def solution(there):
            return attach_jvp(at.x, there, lambda _, perturbed: pushed(perturbed.all_tangents()))

        return apply(solution, floating)

    def mixed(tangents):
        signs = tree.irregular(exactly.x)
        return exactly.inverse(jax.tree.map(jnp.multiply, signs, exactly.pushed(tangents)))

    at, exactly, terms = correction.at, correction.exactly(), 0.0
    here, better = implicit(at, at.forward_unchecked), implicit(exactly, exactly.forward)
    if apply.transposes:  # the adjoint solve is the same as that of `better`
        terms = tree.norm(implicit(exactly, mixed))
    return compare(derivative, here, better, correction.points, terms=terms)


def compare(
    derivative: PyTree,
    here: PyTree,
    better: PyTree,
    points: NewtonPoints,
    slack: Float[Array, ""] | float = 0.0,
    terms: Float[Array, ""] | float = 0.0,
) -> ErrorEstimate:
    """Return the estimate, given the implicit derivatives at the iterate and at its correction.

    Parameters
    ----------
    derivative, here, better : pytree
        The derivative to judge, and the implicit ones at the iterate and at its correction.
    points : NewtonPoints
        The two points.
    slack : scalar
        The error of `better`, relative to the difference of the implicit ones.
    terms : scalar
        The size of the terms whose sum is `better`, which may cancel.
    """
    derivative, here = (in_layout(better, d) for d in (derivative, here))
    differences = tree.sub(better, derivative), tree.sub(better, here)
    absolute, change, size, size_here = tree.norms(*differences, better, here)
    relative = relative_size(absolute, size)
    floor = points.rounding * jnp.maximum(size, terms)
    uncertainty = change * (points.remaining + slack) + floor
    finite = tree.all_finite(derivative)
    singular = ~jnp.isfinite(size + size_here + points.quotient + points.rounding)
    singular |= finite & ~jnp.isfinite(absolute)
    unknown = singular | ~finite
    eps = jnp.finfo(tree.result_dtype(better)).eps
    rounded = absolute + uncertainty <= NEGLIGIBLE_MAX_ROUNDINGS * eps * size
    lost = points.quotient >= TOO_FAR_MIN_QUOTIENT
    smooth = jnp.minimum(points.quotient, TOO_FAR_MIN_QUOTIENT)  # without noise
    spread = change * (smooth / (1 - smooth) + slack)
    too_far = lost | ((spread > TRUSTED_MAX_UNCERTAINTY * absolute + floor) & ~rounded)
    at_floor = (uncertainty > TRUSTED_MAX_UNCERTAINTY * absolute) & ~rounded
    found = [
        (singular, SINGULAR),
        (~finite, NOT_FINITE),
        (points.one_sided, ONE_SIDED),
        (points.disagrees, DISAGREES),
        (points.repelled, REPELLED),
        (too_far, TOO_FAR),
        (points.saddle, SADDLE),
        (points.away, AWAY),
        (at_floor, FLOOR),
    ]
    reason = jnp.select([holds for holds, _ in found], [code for _, code in found], OK)
    hopeless = lost | points.saddle | points.away | points.one_sided | points.repelled
    uncertainty = jnp.where(hopeless, jnp.inf, uncertainty)
    misstated = jnp.where(points.disagrees, MISSTATED * points.distance * size, 0.0)
    uncertainty = uncertainty + misstated
    return ErrorEstimate(
        absolute=jnp.where(unknown, jnp.inf, absolute),
        relative=jnp.where(unknown, jnp.inf, relative),
        uncertainty=jnp.where(unknown, jnp.inf, uncertainty),
        trusted=reason == OK,
        reason_code=reason,
        corrected=better,
    )
