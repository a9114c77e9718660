r"""Minimisation under equality and inequality constraints, with multipliers.

The unknowns are the minimiser and the multipliers. With the Lagrangian
:math:`L = f + y^\top h + z^\top g`, the KKT conditions are

.. math::

    \nabla_x L = 0, \quad h = 0, \quad z \ge 0, \quad g \le 0, \quad z^\top g = 0.

They hold if and only if the gradient of

.. math::

    \Phi(x, y, z) = f + y^\top h + \sum_{i \in \mathcal{A}} z_i g_i
        - \tfrac12 \sum_{i \notin \mathcal{A}} z_i^2,
    \qquad \mathcal{A} = \{i : z_i + g_i > 0\},

vanishes while the active set :math:`\mathcal{A}` is held fixed. This gradient is the residual. Its
Jacobian is the symmetric KKT matrix of the active constraints, with -1 on the diagonal for each
inactive one, so that every mode and every error estimate works on it as on any other residual.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.jaxtools.arguments import check_callable
from iterdiff.jaxtools.reverse_only import custom_rules_in
from iterdiff.linalg.operators import Structure
from iterdiff.problems.problem import Problem, ProblemOfFunctions


class Multipliers(NamedTuple):
    """The Lagrange multipliers of a `ConstrainedMinimization` or a `QuadraticProgram`.

    Attributes
    ----------
    equality : pytree or None
        Like the value of the equality constraints; of either sign. None without such constraints.
    inequality : pytree or None
        Like the value of the inequality constraints; not negative. None without such constraints.
    """

    equality: PyTree = None
    inequality: PyTree = None


class PrimalDual(NamedTuple):
    """The unknowns of a problem with constraints: a point and its multipliers.

    Pass one as `x0` to start from known multipliers.
    """

    x: PyTree
    multipliers: Multipliers


@dataclasses.dataclass(frozen=True)
class ConstraintLimits:
    """Up to which sizes the constraints of a problem are examined as a matrix.

    Attributes
    ----------
    jacobian_max_numbers : int
        Constraints with a larger Jacobian are not examined for dependence, and their least-squares
        multipliers are found without forming it. In float64 the default is 34 MB.
    """

    jacobian_max_numbers: int = 2**22


class ConstrainedProblem(Problem):
    """Base class of problems with constraints; see `ConstrainedMinimization`.

    Attributes
    ----------
    equality, inequality : callable or None
        ``equality(x, theta) = 0`` and ``inequality(x, theta) <= 0``.
    pinned : Multipliers, or None
        Positive for constraints whose multipliers are held fixed, because other constraints imply
        them or because they are weakly active; else 0. It holds for values up to that number. Set
        where a solution is differentiated.
    limits : ConstraintLimits
        Up to which sizes the Jacobian of the constraints is formed.
    """

    equality: eqx.AbstractVar[Callable | None]
    inequality: eqx.AbstractVar[Callable | None]
    pinned: eqx.AbstractVar[Multipliers | None]
    limits: eqx.AbstractVar[ConstraintLimits]
    marks_kinks: ClassVar[bool] = True
    residual_is_gradient: ClassVar[bool] = True
    like_x: ClassVar[tuple[str, ...] | None] = ()

    @abc.abstractmethod
    def cost(self, x: PyTree, theta: PyTree) -> Float[Array, ""]:
        """Return the objective at `x`."""

    def value(self, unknowns: PrimalDual, theta: PyTree) -> Float[Array, ""]:
        """Return the objective."""
        return self.cost(self.answer(unknowns), theta)

    @property
    def symmetric(self) -> bool:
        """True: the KKT matrix is symmetric."""
        return True

    def start(self, x0: PyTree, theta: PyTree) -> PyTree:
        """Return the unknowns at the start of a run: `x0` with multipliers of zero."""
        values = eqx.filter_eval_shape(self.constraints, self.answer(x0), theta)
        if isinstance(x0, PrimalDual):
            return _checked(x0, values)
        return PrimalDual(x0, jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), values))

    def answer(self, unknowns: PyTree) -> PyTree:
        """Return the point without its multipliers; a point without any as it is."""
        return unknowns.x if isinstance(unknowns, PrimalDual) else unknowns

    def multipliers(self, unknowns: PyTree) -> Multipliers | None:
        """Return the multipliers; None for a point without any."""
        return unknowns.multipliers if isinstance(unknowns, PrimalDual) else None

    def constraints(self, x: PyTree, theta: PyTree) -> Multipliers:
        """Return the values of the constraints, in the layout of the multipliers."""
        h, g = self.equality, self.inequality
        return Multipliers(None if h is None else h(x, theta), None if g is None else g(x, theta))

    def active(self, unknowns: PrimalDual, theta: PyTree) -> Multipliers:
        """Return which constraints hold with equality, as bool arrays like the multipliers.

        A constraint that is not a number counts as active, so that the residual shows it.
        """
        values = jax.lax.stop_gradient(self.constraints(unknowns.x, theta))
        held = jax.lax.stop_gradient(unknowns.multipliers)
        return Multipliers(
            jax.tree.map(lambda v: jnp.ones(v.shape, bool), values.equality),
            jax.tree.map(lambda z, g: ~(z + g <= 0), held.inequality, values.inequality),
        )

    def residual(self, x: PrimalDual, theta: PyTree) -> PrimalDual:
        """Return the gradient of the function in the module's docstring."""
        return jax.grad(self._potential)(x, theta)

    def _potential(self, unknowns: PrimalDual, theta: PyTree) -> Float[Array, ""]:
        x, multipliers = unknowns
        values = self.constraints(x, theta)
        terms = jax.tree.map(_term, self.active(unknowns, theta), multipliers, values)
        if self.pinned is not None:
            terms = jax.tree.map(_pinned_term, self.pinned, multipliers, values, terms)
        return sum((jnp.sum(v) for v in jax.tree.leaves(terms)), self.cost(x, theta))

    def structure_at(self, x: PyTree, theta: PyTree) -> Structure:
        """Return what is known of the KKT matrix: nothing for certain if a gradient is overridden.

        See `Minimization.structure_at`.
        """
        rules = custom_rules_in(self._potential, x, theta)
        if "custom_vjp" in rules:
            return self.structure.without_claims()
        return self.structure._replace(hessian=not rules)


def _checked(given: PrimalDual, values: Multipliers) -> PrimalDual:
    """Return the given unknowns; raise ValueError unless the multipliers are like the values."""
    wanted = jax.tree.map(jnp.shape, values)
    found = jax.tree.map(jnp.shape, given.multipliers)
    if found != wanted:
        raise ValueError(
            f"`x0`: the multipliers must have the shapes of the constraints, {wanted}, not {found}."
        )
    return given


def _term(active: Bool[Array, "..."], multiplier: Array, value: Array) -> Array:
    """Return what a constraint adds: its product with the multiplier while it is active."""
    value = jnp.where(active, value, 0)  # may be -inf where a bound is infinite
    return jnp.where(active, multiplier * value, -(multiplier**2) / 2)


def _pinned_term(pinned: Array, multiplier: Array, value: Array, term: Array) -> Array:
    """Return the same, with the multiplier held fixed where the constraint is pinned."""
    fixed = jax.lax.stop_gradient(multiplier)
    held = (pinned > 0) & (jax.lax.stop_gradient(value) <= pinned)
    return jnp.where(held, fixed * value - (multiplier - fixed) ** 2 / 2, term)


class ConstrainedMinimization(ConstrainedProblem, ProblemOfFunctions):
    r"""Minimise ``objective(x, theta)`` where ``equality = 0`` and ``inequality <= 0``.

    The answer of `solve` is like `x0`; ``solution.multipliers`` are those of the Lagrangian
    :math:`L = f + y^\top h + z^\top g`, with :math:`z \ge 0`. Both can be differentiated. The
    implicit derivative is that of the KKT system on the active set, of any order: the linear
    systems have one unknown for each number in `x` and each constraint.

    Parameters
    ----------
    objective : callable
        ``objective(x, theta)`` returns a real floating scalar.
    equality : callable, optional
        ``equality(x, theta)`` returns a pytree of floating arrays, which vanish at the solution.
    inequality : callable, optional
        ``inequality(x, theta)`` returns a pytree of floating arrays, which are not positive at the
        solution.
    has_aux : bool
        Whether `objective` returns a pair ``(value, aux)``, as in `Minimization`.
    limits : ConstraintLimits
        Up to which sizes the Jacobian of the constraints is formed; see `iterdiff.extend`.

    Raises
    ------
    TypeError
        If a function is not callable.
    ValueError
        If there is no constraint.

    Notes
    -----
    The derivative of `x` and of the multipliers exists where the gradients of the active
    constraints are linearly independent (LICQ), the multipliers of active inequalities are
    positive (strict complementarity), and the Hessian of the Lagrangian is positive definite on
    the tangent space of the active constraints. At the edges:

    - If an active inequality has the multiplier zero, the derivative is one-sided: it is that of
      the constraint being inactive. ``solution.weakly_active``, like the inequality constraints,
      marks it, and `Checked` reports it.
    - If active constraints depend on each other, the multipliers are not unique. The derivative of
      `x` still exists where theta moves the constraints together, and is returned. The derivative
      of the multipliers is refused: `SolveError` in reverse mode if a loss depends on them, NaN in
      forward mode. If theta moves the constraints apart, the derivative of `x` is refused, too.

    References
    ----------
    A. V. Fiacco, *Introduction to Sensitivity and Stability Analysis in Nonlinear Programming*,
    Academic Press 1983.

    Examples
    --------
    The point of a disk that is closest to theta:

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.ConstrainedMinimization(
    ...     lambda x, theta: jnp.sum((x - theta) ** 2) / 2,
    ...     inequality=lambda x, theta: jnp.sum(x**2) - 1,
    ... )
    >>> algorithm = itd.AugmentedLagrangian(itd.Newton())
    >>> stop = itd.ResidualBelow(rtol=1e-5)
    >>> solution = itd.solve(problem, algorithm, jnp.zeros(2), jnp.array([3.0, 4.0]), stop=stop)
    >>> solution.x.round(3).tolist(), solution.multipliers.inequality.round(3).tolist()
    ([0.600..., 0.800...], 2.0)
    """

    objective: Callable[[PyTree, PyTree], Float[Array, ""]]
    equality: Callable[[PyTree, PyTree], PyTree] | None = eqx.field(kw_only=True, default=None)
    inequality: Callable[[PyTree, PyTree], PyTree] | None = eqx.field(kw_only=True, default=None)
    pinned: Multipliers | None = eqx.field(kw_only=True, default=None, repr=False)
    limits: ConstraintLimits = eqx.field(
        static=True, kw_only=True, default=ConstraintLimits(), repr=False
    )
    functions: ClassVar[dict[str, int]] = {"objective": 2, "equality": 2, "inequality": 2}

    def __check_init__(self):
        """Check that the functions are callable and that there is a constraint."""
        check_callable(objective=self.objective)
        given = {"equality": self.equality, "inequality": self.inequality}
        given = {name: function for name, function in given.items() if function is not None}
        if not given:
            raise ValueError(
                "`equality` and `inequality` are both missing; pass at least one of them, or use "
                "iterdiff.Minimization for a problem without constraints."
            )
        check_callable(**given)

    def cost(self, x: PyTree, theta: PyTree) -> Float[Array, ""]:
        """Return ``objective(x, theta)``."""
        return self.objective(x, theta)

    def aux(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return the auxiliary output at the answer; None without `has_aux`."""
        return ProblemOfFunctions.aux(self, self.answer(x), theta)
