r"""How wrong a derivative is, without knowing the right one.

Given an inexact solution :math:`x` and any derivative, one Newton correction
:math:`x^+ = x - A(x)^{-1} r(x)` brings a better point, and the implicit derivative there a
better derivative, wrong only to second order in the distance :math:`\|x - x^*\|`. The
difference between the two is the estimate of the first one's error; how far it can be
believed is read off a second Newton step.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff.accuracy.correction import Correction, NewtonPoints, correct
from iterdiff.accuracy.estimate_jvp import Apply, sizes, with_derivative
from iterdiff.accuracy.sensitivity import Sensitivity
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import Tolerance
from iterdiff.jaxtools.tree import floating_part
from iterdiff.problems.checks import check_problem, check_residual, check_theta, check_x0
from iterdiff.problems.problem import Problem

REASONS = (
    "",
    "A linear solve failed: the Jacobian of the residual is singular or nearly so, so that "
    "the solution has no derivative there, or one that cannot be computed in this precision.",
    "Too far from a solution: a Newton correction does not bring the iterate close enough to one "
    "for its derivative to be a yardstick for this one. Run more steps. (A derivative that was "
    "corrected itself may be right all the same.)",
    "At the floor of the floating-point precision: the estimated error is no larger than what "
    "rounding, amplified by the condition of the linear system, may amount to. In float32, use "
    "float64.",
    "On the way past a saddle: the stationary point nearby is no minimum, so that the iterations "
    "may end elsewhere, with another derivative. Run more steps; or, if the saddle is what you "
    "want, state the problem as RootFinding.",
    "The residual does not vanish here: its solution is some way off (see `near`). "
    "Run more steps; or, if the solver has converged, it has solved another problem than the "
    "residual states (iterdiff.check_derivative says more).",
    "The algorithm does not come to rest where the residual vanishes: the two belong to different "
    "problems (iterdiff.check_derivative says more).",
    "One-sided: a coordinate is weakly active, about to enter or leave the active set, so that the "
    "solution has no derivative there but one on either side, and this is at most one of them. "
    "`Solution.weakly_active` says which coordinate.",
    "The derivative that was given is not finite.",
)
OK, SINGULAR, TOO_FAR, FLOOR, SADDLE, AWAY, DISAGREES, ONE_SIDED, NOT_FINITE = range(9)

BELIEVABLE = 0.3
"""An estimate is trusted while its own uncertainty is at most this fraction of it."""

MISSTATED = 10
"""An algorithm and a residual of different problems, which vanish at points so far apart
(relative), are taken to differ in their derivatives by this many times as much."""

NEAR = 0.1
"""Further from a solution than this fraction of it, a point that should be one is suspect."""


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
        How wrong `absolute` itself may be (absolute, in the same units): the estimated error
        of `corrected`, rounding included.
    trusted : bool
        Whether `uncertainty` is small against `absolute` (or both against the derivative), and
        nothing speaks against the residual. Only then is `absolute` meant to be within a factor
        of two of the truth.
    reason_code : integer scalar
        Which of the sentences `reason` gives.
    corrected : pytree
        The better derivative that the estimate found, laid out as the one given.
    """

    absolute: Float[Array, ""]
    relative: Float[Array, ""]
    uncertainty: Float[Array, ""]
    trusted: Bool[Array, ""]
    reason_code: Int[Array, ""]
    corrected: PyTree

    @property
    def reason(self) -> str:
        """Why the estimate is not trusted, or the point no solution; else empty. Not in ``jit``."""
        return REASONS[int(self.reason_code)]

    def exceeds(self, rtol: Tolerance, atol: Tolerance = 0.0) -> Bool[Array, ""]:
        """Return whether the error cannot be said to be within ``rtol * |truth| + atol``.

        A trusted estimate is taken at its word; of another one, the upper end. Where the residual
        does not vanish as it should (`near`), the error counts as too large whatever the estimate.
        """
        allowed = rtol * tree.norm(self.corrected) + atol
        upper = jnp.where(self.trusted, self.absolute, self.absolute + self.uncertainty)
        return ~(jnp.isfinite(upper) & (upper <= allowed)) | (self.reason_code == AWAY)


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
    near: float = NEAR,
) -> ErrorEstimate:
    r"""Estimate the error of `derivative` as solution derivative, however it was obtained.

    With none of the keywords, `derivative` is the Jacobian; with one, what it says.

    Parameters
    ----------
    problem : Problem
        Owns the residual, twice differentiable near the solution.
    x : pytree of real floating arrays
        The point at which the solver stopped.
    theta : pytree
        The parameters.
    derivative : pytree
        The Jacobian, as ``jax.jacobian`` lays it out: a tree like `x` of trees like the floating
        part of `theta` of arrays of shape ``x.shape + theta.shape``.
    tangent : pytree, optional
        Like theta: `derivative` is :math:`J v`, like `x`.
    cotangent : pytree, optional
        Like x: `derivative` is :math:`J^\top w`, like theta.
    loss : callable, optional
        ``loss(x, theta)`` returns a scalar: `derivative` is the gradient in theta of
        :math:`f(x^*(\theta), \theta)`, like theta.
    linear_solver : lineax.AbstractLinearSolver, optional
        As in `Implicit`.
    near : float
        How far from a solution of the residual `x` may be, as a fraction of it (of 1 where it is
        shorter). Further away, the solver may have solved another problem than the residual
        states: the estimate is not trusted, and `exceeds` counts that as an error. Pass infinity
        for a point that is known to be under way to a solution of this residual, as `Checked`
        does.

    Returns
    -------
    ErrorEstimate
        Works under ``jit`` and ``vmap``.

    Raises
    ------
    TypeError, ValueError
        If the arguments do not fit together, or one is of another kind.

    Notes
    -----
    The estimate is :math:`\|J(x^+) - J\|`, where :math:`J(x) = -A(x)^{-1} r_\theta(x)`,
    :math:`x^+ = x + \delta_1` and :math:`\delta_1 = -A(x)^{-1} r(x)`. It is exact where `x`
    enters the residual affinely. Its uncertainty is
    :math:`\|J(x^+) - J(x)\| \, q / (1 - q)` with
    :math:`q = \|\delta_2\| / \|\delta_1\|`, the second Newton step over the first, plus
    rounding errors times an estimated condition number. (The second Newton step is
    estimated with the matrix of the first.) Cost: two factorisations, and a handful of solves
    besides those for the derivatives themselves.

    The estimate itself can be differentiated, in everything; but for its `uncertainty`, whose
    derivative is NaN in all but `derivative`.

    The error against the *iterate derivative*, that of the iterations that ran, is another
    matter: see `iterate_derivative_error`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.RootFinding(lambda x, theta: x**2 - theta)
    >>> x, theta = jnp.array(1.9), jnp.array(4.0)  # the root is 2, its derivative 1 / 4
    >>> estimate = itd.derivative_error(problem, x, theta, 1 / (2 * x))
    >>> float(estimate.absolute.round(4)), bool(estimate.trusted)
    (0.0135, True)
    """
    check_problem(problem)
    x, theta = check_x0(x, "x"), check_theta(theta)
    check_residual(problem, x, theta)
    apply = applied(x, theta, tangent, cotangent, loss)
    check_layout(apply, x, theta, derivative)
    derivative = jax.tree.map(jnp.asarray, derivative)
    correction = correct(problem, x, theta, linear_solver, near=near)
    moving = jax.lax.stop_gradient(floating_part(theta)[0])
    estimate = _estimate(correction, moving, derivative, apply)
    names = "absolute", "relative", "uncertainty", "corrected"
    parts = tuple(getattr(estimate, name) for name in names)
    parts = with_derivative(parts, problem, (derivative, x, theta), apply, linear_solver)
    return dataclasses.replace(estimate, **dict(zip(names, parts, strict=True)))


def applied(x: PyTree, theta: PyTree, tangent, cotangent, loss) -> Apply:
    """Return how to take, of a map ``theta -> x``, the derivative that was asked for."""
    given = [k for k in (tangent, cotangent, loss) if k is not None]
    if len(given) > 1:
        raise ValueError("pass at most one of `tangent`, `cotangent` and `loss`.")
    moving, rest = floating_part(theta)
    if tangent is not None:
        direction = _matching("tangent", floating_part(tangent)[0], moving, "theta")
        return lambda solution, at: jax.jvp(solution, (at,), (direction,))[1]
    if cotangent is not None:
        w = _matching("cotangent", cotangent, x, "x")
        return lambda solution, at: jax.vjp(solution, at)[1](w)[0]
    if loss is not None:
        if not callable(loss):
            raise TypeError(f"`loss` must be a function (x, theta) -> scalar, not {loss!r}.")
        f = loss
        return lambda solution, at: jax.grad(lambda m: f(solution(m), eqx.combine(m, rest)))(at)
    jacobian = jax.jacrev if tree.size(x) < tree.size(moving) else jax.jacfwd
    return lambda solution, at: jacobian(solution)(at)


def _matching(name: str, given: PyTree, like: PyTree, of: str) -> PyTree:
    if jax.tree.structure(given) != jax.tree.structure(like):
        raise ValueError(
            f"`{name}` must have the structure of `{of}`'s floating leaves, "
            f"{jax.tree.structure(like)}, not {jax.tree.structure(given)}."
        )

    def cast(u, v):
        if jnp.shape(u) != jnp.shape(v):
            raise ValueError(f"`{name}` must have the shapes of `{of}`: {v.shape}.")
        return jnp.asarray(u, v.dtype)

    return jax.tree.map(cast, given, like)


def check_layout(apply: Apply, x: PyTree, theta: PyTree, derivative: PyTree) -> None:
    """Refuse a derivative that is not laid out as what `apply` takes.

    Raises
    ------
    TypeError
        If a leaf is not real.
    ValueError
        With the shapes that are expected.
    """
    moving = floating_part(theta)[0]
    expected = eqx.filter_eval_shape(lambda m: apply(lambda _: x, m), moving)
    shapes = [leaf.shape for leaf in jax.tree.leaves(expected)]
    given = [jnp.shape(leaf) for leaf in jax.tree.leaves(derivative)]
    if shapes != given:
        raise ValueError(
            f"`derivative` must have leaves of shapes {shapes} (a Jacobian as jax.jacobian lays it "
            "out; with `tangent` like `x`, with `cotangent` or `loss` like the floating leaves of "
            f"`theta`), but it has {given}."
        )
    for leaf in jax.tree.leaves(derivative):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(f"`derivative` must be real, but a leaf is {jnp.result_type(leaf)}.")


def _estimate(
    correction: Correction, moving: PyTree, derivative: PyTree, apply: Apply
) -> ErrorEstimate:
    """Compare `derivative` with the implicit ones at the point and at its correction."""

    def taken(at: Sensitivity) -> PyTree:
        @jax.custom_jvp
        def solution(moving):
            del moving
            return at.x

        solution.defjvp(lambda _, dots: (at.x, at.forward(dots[0])))
        return apply(solution, moving)

    here, better = taken(correction.at), taken(correction.exactly())
    return compare(derivative, here, better, correction.points)


def compare(
    derivative: PyTree,
    here: PyTree,
    better: PyTree,
    points: NewtonPoints,
    slack: Float[Array, ""] | float = 0.0,
) -> ErrorEstimate:
    """Return the estimate, from the implicit derivatives at the iterate and at its correction.

    `slack` is the error of `better` relative to the difference of the two.
    """
    absolute, relative = sizes(derivative, better)
    size = tree.norm(better)
    floor = points.rounding * size
    q = jnp.minimum(points.quotient, 0.9)
    uncertainty = tree.norm(tree.sub(better, here)) * (q / (1 - q) + slack) + floor
    finite = tree.all_finite(derivative)
    singular = ~jnp.isfinite(size + tree.norm(here) + points.quotient + points.rounding)
    singular |= finite & ~jnp.isfinite(absolute)
    unknown = singular | ~finite
    too_far = (points.quotient >= 0.5) | (uncertainty - floor > BELIEVABLE * absolute + floor)
    at_floor = floor > BELIEVABLE * absolute
    found = [
        (singular, SINGULAR),
        (~finite, NOT_FINITE),
        (points.one_sided, ONE_SIDED),
        (points.disagrees, DISAGREES),
        (too_far, TOO_FAR),
        (points.saddle, SADDLE),
        (points.away, AWAY),
        (at_floor, FLOOR),
    ]
    reason = jnp.select([holds for holds, _ in found], [code for _, code in found], OK)
    hopeless = (points.quotient >= 0.5) | points.saddle | (too_far & points.away)
    hopeless |= points.one_sided
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
