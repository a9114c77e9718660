"""The method of multipliers, for general constraints."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from iterdiff.algorithms.base import Algorithm, State
from iterdiff.algorithms.status import RUNNING, Status
from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.arguments import check_count, check_range, scalar
from iterdiff.problems.constrained import (
    ConstrainedMinimization,
    ConstrainedProblem,
    Multipliers,
    PrimalDual,
)
from iterdiff.problems.problem import Minimization, Problem
from iterdiff.problems.quadratic_program import QuadraticProgram

PENALTY_FACTOR = 8.0
"""The penalty grows by this factor if the violation of the constraints has not shrunk enough."""

SHRINKS_MAX_QUOTIENT = 0.25
"""The violation has shrunk enough if it is at most this fraction of that before the step."""

MAX_PENALTY_GROWTH = {64: 1e8, 32: 1e4}
"""The penalty grows to at most this multiple of its start, by bits of the dtype."""

ROUNDING_ERRORS = 1e3
"""A violation below this many units of the machine precision cannot shrink."""

STATIONARY_MAX_SLOPE = 1e-4
"""The violation is stationary if the slope of its square is this small, relative to the terms."""


class _Multiplied(State):
    """The state of `AugmentedLagrangian`.

    Attributes
    ----------
    x : PrimalDual
        The iterate.
    penalty : scalar
    violation : scalar
        Euclidean norm of the violation of the constraints and of complementarity, at the last
        update of the multipliers; infinite before.
    code : integer scalar
        `Status.LOCALLY_INFEASIBLE`, or RUNNING.
    """

    x: PrimalDual
    penalty: Float[Array, ""]
    violation: Float[Array, ""]
    code: Int[Array, ""]

    @property
    def verdict(self) -> Int[Array, ""]:
        """How the run has to end, or RUNNING."""
        return self.code


class AugmentedLagrangian(Algorithm):
    r"""Method of multipliers, around any algorithm for problems without constraints.

    A step minimises the augmented Lagrangian by `inner_steps` steps of the `inner` algorithm from
    the present point, and then updates the multipliers:

    .. math::

        x^+ \approx \arg\min_x\; f + y^\top h + \tfrac{\rho}{2} \|h\|^2
            + \tfrac{1}{2 \rho} \|\max(0, z + \rho g)\|^2,

    .. math::

        y^+ = y + \rho h(x^+), \quad z^+ = \max(0, z + \rho g(x^+)).

    If the violation of the constraints does not shrink to a quarter, the multipliers stay and the
    penalty :math:`\rho` grows by the factor eight instead. Near a solution that satisfies the
    second-order sufficient conditions the method converges linearly, the faster the larger the
    penalty, and so does the unrolled Jacobian. The inner minimisation does not have to be exact,
    but its steps have to be stable for the largest penalty: `Newton` and quasi-Newton methods are a
    better choice than a fixed step size.

    If the penalty is at its limit, and the violation is not zero but cannot be reduced to first
    order, the run ends with `Status.LOCALLY_INFEASIBLE`. If the equalities are affine and the
    inequalities convex, no point satisfies them. Otherwise another start may lead to one: the
    violation may even be largest where a run of `Newton` ends.

    Parameters
    ----------
    inner : Algorithm
        Solves a `Minimization`, for example ``Newton()``, ``GradientDescent(0.01)``, or a solver
        of another library by `iterdiff.adapters`.
    inner_steps : int
        Steps of `inner` in a step.
    penalty : scalar
        The initial penalty :math:`\rho`, positive.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range, or `inner` cannot solve a
        `Minimization`.

    References
    ----------
    D. P. Bertsekas, *Constrained Optimization and Lagrange Multiplier Methods*, Academic Press
    1982.
    """

    inner: Algorithm
    inner_steps: int = eqx.field(static=True, default=10)
    penalty: Float[Array, ""] = eqx.field(converter=scalar, default=10.0)
    accepts: ClassVar[tuple[type[Problem], ...]] = (ConstrainedMinimization, QuadraticProgram)

    def __check_init__(self):
        """Check the types and ranges of the fields."""
        if not isinstance(self.inner, Algorithm) or Minimization not in self.inner.accepts:
            raise TypeError(
                "`inner` must be an algorithm that solves a Minimization, such as "
                f"iterdiff.Newton(), not {self.inner!r}."
            )
        check_count("inner_steps", self.inner_steps)
        check_range("penalty", self.penalty, 0.0)

    @property
    def consistent(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether every fixed point is known to be a solution: as for the inner algorithm."""
        return self.inner.consistent

    @property
    def differentiable(self) -> bool:
        """Whether the derivative of the steps converges: as for the inner algorithm."""
        return self.inner.differentiable

    @property
    def caveat(self) -> str:
        """What the inner algorithm says of its derivative."""
        return self.inner.caveat

    def init(self, problem: ConstrainedProblem, x0: PrimalDual, theta: PyTree) -> _Multiplied:
        """Return the state at `x0`."""
        del problem, theta
        penalty = self.penalty.astype(tree.result_dtype(x0))
        return _Multiplied(x0, penalty, jnp.full_like(penalty, jnp.inf), jnp.int32(RUNNING))

    def step(self, problem: ConstrainedProblem, state: _Multiplied, theta: PyTree) -> _Multiplied:
        """Return the state after one minimisation and one update of the multipliers."""
        penalty, multipliers = state.penalty, state.x.multipliers

        def augmented(x, theta):
            moved = _moved(problem.constraints(x, theta), multipliers, penalty)
            squares = [jnp.sum(v**2) for v in jax.tree.leaves(moved)]
            return problem.cost(x, theta) + sum(squares) / (2 * penalty)

        inner = Minimization(augmented)

        def advance(now):
            return self.inner.step(inner, now, theta)

        start = self.inner.init(inner, state.x.x, theta)
        arrays, static = eqx.partition(start, eqx.is_array)

        def body(arrays):
            return eqx.filter(advance(eqx.combine(arrays, static)), eqx.is_array)

        x = eqx.combine(manual_axes.scan(body, arrays, self.inner_steps), static).x
        moved = _moved(problem.constraints(x, theta), multipliers, penalty)
        violation = _violation(problem, PrimalDual(x, moved), theta, penalty)
        slow = ~(violation <= SHRINKS_MAX_QUOTIENT * state.violation) & jnp.isfinite(
            state.violation
        )
        slow &= ~(violation <= _rounding(x))
        limit = self.penalty.astype(penalty.dtype)
        limit *= MAX_PENALTY_GROWTH[jnp.finfo(penalty.dtype).bits]
        grows = slow & (penalty < limit)
        stuck = slow & ~grows & _stationary(problem, x, theta)
        code = jnp.where(stuck, Status.LOCALLY_INFEASIBLE, RUNNING).astype(jnp.int32)
        return _Multiplied(
            PrimalDual(x, tree.where(grows, multipliers, moved)),
            penalty * jnp.where(grows, PENALTY_FACTOR, 1.0).astype(penalty.dtype),
            jnp.where(grows, state.violation, violation),
            code,
        )


def _rounding(x: PyTree) -> Float[Array, ""]:
    """Return the violation of the constraints that counts as rounding."""
    size = jax.lax.stop_gradient(tree.norm(x))
    return ROUNDING_ERRORS * jnp.finfo(size.dtype).eps * (1 + size)


def _moved(values: Multipliers, multipliers: Multipliers, penalty: Array) -> Multipliers:
    """Return the multipliers after an update."""
    moved = jax.tree.map(lambda v, m: m + penalty.astype(m.dtype) * v, values, multipliers)
    positive = jax.tree.map(lambda z: jnp.where(z > 0, z, 0), moved.inequality)
    return moved._replace(inequality=positive)


def _violation(
    problem: ConstrainedProblem, at: PrimalDual, theta: PyTree, penalty: Array
) -> Float[Array, ""]:
    """Return the norm of the equalities and of the inequalities, these no less than -z / penalty.

    The larger of an inequality and minus its scaled multiplier vanishes if and only if
    complementarity holds.
    """
    at, theta, penalty = jax.lax.stop_gradient((at, theta, penalty))
    values = problem.constraints(at.x, theta)
    held = jax.tree.map(
        lambda g, z: jnp.maximum(g, -z / penalty.astype(z.dtype)),
        values.inequality,
        at.multipliers.inequality,
    )
    return jax.lax.stop_gradient(tree.norm(values._replace(inequality=held)))


def _stationary(problem: ConstrainedProblem, x: PyTree, theta: PyTree) -> Array:
    """Return whether the violation of the constraints is positive and stationary."""

    def excess(x):
        values = problem.constraints(x, theta)
        positive = jax.tree.map(lambda g: jnp.maximum(g, 0), values.inequality)
        return values._replace(inequality=positive)

    values, pull = jax.vjp(excess, x)
    slope, violation = tree.norm(pull(values)[0]), tree.norm(values)
    terms = tree.norm(pull(jax.tree.map(jnp.abs, values))[0])
    size = jnp.sqrt(jnp.finfo(violation.dtype).eps)
    return (violation > size) & (slope <= STATIONARY_MAX_SLOPE * jnp.maximum(terms, violation))
