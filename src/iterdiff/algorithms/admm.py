"""Operator splitting for quadratic programs."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff.algorithms.base import Algorithm, State
from iterdiff.algorithms.status import RUNNING, Status
from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.arguments import check_count, check_range, scalar
from iterdiff.jaxtools.lax import custom_solve, only_if
from iterdiff.linalg.factor import inverse_power_of_two
from iterdiff.problems.constrained import Multipliers, PrimalDual
from iterdiff.problems.problem import Problem
from iterdiff.problems.quadratic_program import QuadraticProgram

EQUALITY_FACTOR = {64: 1e3, 32: 1e2}
"""The penalty of an equality is that of an inequality times this factor, by bits of the dtype."""

PROXIMAL_WEIGHT = {64: 1e-6, 32: 1e-4}
"""The weight of the proximal term in scaled units, by bits of the dtype: it makes the matrix
positive definite where Q is not, and slows the iteration if it is large."""

MIN_PENALTY, MAX_PENALTY = 1e-6, 1e6
"""The penalty stays between these values, in scaled units."""

ADAPT_MIN_FACTOR = 4.0
"""The penalty changes, and the matrix is factored again, only by at least this factor."""

SCALING_ROUNDS = 8
"""Rounds of equilibration. Each brings the largest entries of rows and columns closer to one."""

CERTIFICATE_MAX_ERROR = {64: 1e-5, 32: 1e-3}
"""Relative error to which a step must satisfy the conditions of an infeasibility certificate."""


class StackedProgram(NamedTuple):
    """A quadratic program as dense arrays, its constraints stacked: equalities first.

    Attributes
    ----------
    Q : array of shape (n, n)
        Symmetric.
    c : array of shape (n,)
    M : array of shape (m, n)
    upper : array of shape (m,)
        ``M x <= upper``, with equality in the rows of `equal`.
    equal : bool array of shape (m,)
    """

    Q: Float[Array, "n n"]
    c: Float[Array, " n"]
    M: Float[Array, "m n"]
    upper: Float[Array, " m"]
    equal: Bool[Array, " m"]


class _Scaling(NamedTuple):
    """Powers of two that make rows and columns of the KKT matrix alike.

    The iteration runs in the units of the user; the scales only weight its norms.

    Attributes
    ----------
    columns : array of shape (n,)
    rows : array of shape (m,)
    cost : scalar
    """

    columns: Float[Array, " n"]
    rows: Float[Array, " m"]
    cost: Float[Array, ""]


class _Splitting(State):
    """The state of `ADMM`.

    Attributes
    ----------
    x : PrimalDual
        The iterate, in which the multipliers are the dual variable.
    slack : array of shape (m,)
        The point of the constraint set that ``M x`` is pulled to.
    penalty : scalar
        In scaled units.
    factor : array of shape (n, n)
        Cholesky factor of the matrix of the present penalty.
    scaling : _Scaling
    code : integer scalar
        A `Status` code if the problem has no solution, else RUNNING.
    """

    x: PrimalDual
    slack: Float[Array, " m"]
    penalty: Float[Array, ""]
    factor: Float[Array, "n n"]
    scaling: _Scaling
    code: Int[Array, ""]

    @property
    def verdict(self) -> Int[Array, ""]:
        """How the run has to end, or RUNNING."""
        return self.code


class _Inner(NamedTuple):
    """What one iteration changes."""

    x: Float[Array, " n"]
    slack: Float[Array, " m"]
    dual: Float[Array, " m"]


class ADMM(Algorithm):
    r"""Alternating direction method of multipliers for quadratic programs, in the form of OSQP.

    With the constraints stacked to :math:`M x \in C`, one iteration is

    .. math::

        (Q + \Sigma + M^\top R M) \tilde x = \Sigma x - c + M^\top (R s - \lambda),

    .. math::

        x^+ = \alpha \tilde x + (1 - \alpha) x, \quad
        w = \alpha M \tilde x + (1 - \alpha) s + R^{-1} \lambda,

    .. math::

        s^+ = \Pi_C(w), \quad \lambda^+ = R (w - s^+).

    A step is `iterations` of these. It ends with an update of the penalty :math:`R` that balances
    primal and dual residuals, and a search for a certificate that the problem is infeasible or
    unbounded, which ends the run with that `Status`. The matrix is factored at the start and when
    the penalty changes by a factor of four or more. Penalties and scales are powers of two:
    they are piecewise constant in theta, so that `Unrolled` is exact without their derivatives.

    The method converges for every convex problem, linearly once it has found the active set. The
    unrolled Jacobian then converges at the same rate. `Implicit(refine=1)` polishes the answer:
    a Newton step on the KKT system of the active set. Cost of an iteration: two triangular solves
    with n unknowns and two products with the constraints.

    Parameters
    ----------
    penalty : scalar
        The initial penalty in scaled units, positive.
    relaxation : scalar
        :math:`\alpha`, between 0 and 2.
    iterations : int
        Iterations of a step.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    References
    ----------
    B. Stellato et al., *OSQP: an operator splitting solver for quadratic programs*, Mathematical
    Programming Computation 2020; G. Banjac et al., *Infeasibility detection in the alternating
    direction method of multipliers for convex optimization*, JOTA 2019.
    """

    penalty: Float[Array, ""] = eqx.field(converter=scalar, default=0.125)
    relaxation: Float[Array, ""] = eqx.field(converter=scalar, default=1.6)
    iterations: int = eqx.field(static=True, default=10)
    accepts: ClassVar[tuple[type[Problem], ...]] = (QuadraticProgram,)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check the types and ranges of the fields."""
        check_range("penalty", self.penalty, 0.0)
        check_range("relaxation", self.relaxation, 0.0, 2.0)
        check_count("iterations", self.iterations)

    def init(self, problem: QuadraticProgram, x0: PrimalDual, theta: PyTree) -> _Splitting:
        """Scale the problem and factor its first matrix."""
        program = stacked(problem, x0, theta)
        scaling = jax.lax.stop_gradient(_equilibrated(program))
        penalty = self.penalty.astype(program.c.dtype)
        values = program.M @ tree.to_vector(x0.x)
        slack = jnp.where(program.equal, program.upper, jnp.minimum(values, program.upper))
        factor = _factored(program, scaling, penalty)
        return _Splitting(x0, slack, penalty, factor, scaling, jnp.int32(RUNNING))

    def step(self, problem: QuadraticProgram, state: _Splitting, theta: PyTree) -> _Splitting:
        """Return the state after `iterations` iterations."""
        program = stacked(problem, state.x, theta)
        start = _Inner(
            tree.to_vector(state.x.x),
            state.slack,
            dual_vector(state.x.multipliers, program.c.dtype),
        )
        iterate = self._iteration(program, state)
        before, last = manual_axes.scan(
            lambda pair: (pair[1], iterate(pair[1])), (start, start), self.iterations
        )
        change = _Inner(*(u - v for u, v in zip(last, before, strict=True)))
        penalty = _adapted(program, state, last)

        factor = _refactored(program, state, penalty)
        multipliers = state.x.multipliers
        if program.equal.size:
            multipliers = tree.from_vector(last.dual, multipliers)
        x = PrimalDual(tree.from_vector(last.x, state.x.x), multipliers)
        code = jax.lax.stop_gradient(_certificate(program, state.scaling, change))
        return _Splitting(x, last.slack, penalty, factor, state.scaling, code)

    def _iteration(self, program: StackedProgram, state: _Splitting):
        """Return the map of one iteration, with the penalty of `state`."""
        Q, c, M, upper, equal = program
        proximal, weights = _weights(program, state.scaling, state.penalty)
        factor = jax.lax.stop_gradient(state.factor)
        relaxation = self.relaxation.astype(c.dtype)

        def matvec(v):
            return Q @ v + proximal * v + M.T @ (weights * (M @ v))

        def solve(b):
            return jax.scipy.linalg.cho_solve((factor, True), b)

        def iterate(now: _Inner) -> _Inner:
            b = proximal * now.x - c + M.T @ (weights * now.slack - now.dual)
            ahead = custom_solve(matvec, b, solve, solve)
            x = relaxation * ahead + (1 - relaxation) * now.x
            moved = relaxation * (M @ ahead) + (1 - relaxation) * now.slack + now.dual / weights
            slack = jnp.where(equal | (moved > upper), upper, moved)
            return _Inner(x, slack, weights * (moved - slack))

        return iterate


def stacked(problem: QuadraticProgram, at: PrimalDual, theta: PyTree) -> StackedProgram:
    """Return the program at theta as dense arrays."""
    size, dtype = tree.size(at.x), tree.result_dtype(at.x)
    Q = problem.matrix("Q", theta, size)
    c = tree.to_vector(problem.at("c", theta))
    parts = [(name, problem.matrix(name, theta, size)) for name in ("A", "G")]
    sides = [
        jnp.zeros(0, dtype)
        if getattr(problem, name) is None
        else tree.to_vector(problem.at(name, theta))
        for name in ("b", "h")
    ]
    counts = [len(matrix) for _, matrix in parts]
    M = jnp.concatenate([matrix.astype(dtype) for _, matrix in parts])
    equal = jnp.arange(sum(counts)) < counts[0]
    return StackedProgram((Q + Q.T) / 2, c, M, jnp.concatenate(sides), equal)


def dual_vector(multipliers: Multipliers, dtype: Any) -> Float[Array, " m"]:
    """Return the multipliers as one vector."""
    leaves = jax.tree.leaves(multipliers)
    return tree.to_vector(multipliers) if leaves else jnp.zeros(0, dtype)


def _largest(a: Array, axis: int | None = None) -> Array:
    """Return the largest absolute value; zero of none."""
    return jnp.max(jnp.abs(a), axis=axis, initial=0.0)


def _equilibrated(program: StackedProgram) -> _Scaling:
    """Return the scales: Ruiz equilibration of the KKT matrix, then the size of the cost."""
    Q, c, M, _, _ = program

    def improve(_, scales):
        columns, rows = scales
        of_columns = jnp.maximum(
            _largest(_scaled(columns, Q, columns), 0), _largest(_scaled(rows, M, columns), 0)
        )
        of_rows = _largest(_scaled(rows, M, columns), 1)
        return columns / _root(of_columns), rows / _root(of_rows)

    ones = jnp.ones(Q.shape[0], c.dtype), jnp.ones(M.shape[0], c.dtype)
    columns, rows = manual_axes.fori_loop(0, SCALING_ROUNDS, improve, ones)
    columns, rows = inverse_power_of_two(1 / columns), inverse_power_of_two(1 / rows)
    of_columns = _largest(_scaled(columns, Q, columns), 0)
    size = jnp.maximum(jnp.mean(of_columns), _largest(columns * c))
    return _Scaling(columns, rows, inverse_power_of_two(jnp.where(size > 0, size, 1.0)))


def _scaled(rows: Array, matrix: Array, columns: Array) -> Float[Array, "m n"]:
    """Return a matrix whose rows and columns are scaled."""
    return rows[:, None] * matrix * columns[None]


def _root(sizes: Array) -> Array:
    """Return square roots; 1 of zero."""
    return jnp.sqrt(jnp.where(sizes > 0, sizes, 1.0))


def _weights(
    program: StackedProgram, scaling: _Scaling, penalty: Array
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """Return the proximal weights and the penalties, in the units of the user."""
    bits = jnp.finfo(program.c.dtype).bits
    proximal = PROXIMAL_WEIGHT[bits] / (scaling.cost * scaling.columns**2)
    weights = penalty * scaling.rows**2 / scaling.cost
    return proximal, jnp.where(program.equal, EQUALITY_FACTOR[bits] * weights, weights)


def _factored(program: StackedProgram, scaling: _Scaling, penalty: Array) -> Float[Array, "n n"]:
    """Return the Cholesky factor of the matrix; it serves as the inverse and has no derivative."""
    program, penalty = jax.lax.stop_gradient((program, penalty))
    proximal, weights = _weights(program, scaling, penalty)
    matrix = program.Q + jnp.diag(proximal) + program.M.T @ (weights[:, None] * program.M)
    return jax.lax.linalg.cholesky(matrix, symmetrize_input=False)


def _refactored(program: StackedProgram, state: _Splitting, penalty: Array) -> Float[Array, "n n"]:
    """Return the factor for a penalty, which may be that of `state`."""
    # Without any derivative: JAX cannot transpose the loop.
    program, state, penalty = jax.lax.stop_gradient((program, state, penalty))
    return only_if(
        penalty != state.penalty,
        lambda: _factored(program, state.scaling, penalty),
        state.factor,
    )


def _adapted(program: StackedProgram, state: _Splitting, now: _Inner) -> Float[Array, ""]:
    """Return the penalty that would balance the residuals, if it differs enough."""
    program, scaling, penalty, now = jax.lax.stop_gradient(
        (program, state.scaling, state.penalty, now)
    )
    Q, c, M, _, _ = program
    values, forces = M @ now.x, M.T @ now.dual
    slopes = Q @ now.x
    primal = _largest(scaling.rows * (values - now.slack))
    of_primal = jnp.maximum(_largest(scaling.rows * values), _largest(scaling.rows * now.slack))
    dual = _largest(scaling.columns * (slopes + c + forces))
    sizes = [_largest(scaling.columns * v) for v in (slopes, c, forces)]
    of_dual = jnp.maximum(jnp.maximum(*sizes[:2]), sizes[2])
    floor = jnp.finfo(c.dtype).eps
    ratio = (primal / of_primal + floor) / (dual / of_dual + floor)
    wanted = jnp.clip(penalty * jnp.sqrt(ratio), MIN_PENALTY, MAX_PENALTY)
    wanted = 1 / inverse_power_of_two(wanted)
    far = jnp.maximum(wanted / penalty, penalty / wanted) >= ADAPT_MIN_FACTOR
    known = jnp.isfinite(ratio) & (of_primal > 0) & (of_dual > 0)
    return jnp.where(far & known, wanted, state.penalty)


def _certificate(program: StackedProgram, scaling: _Scaling, change: _Inner) -> Int[Array, ""]:
    """Return `Status.INFEASIBLE` or `Status.UNBOUNDED` if the last change proves it."""
    Q, c, M, upper, equal = program
    error = CERTIFICATE_MAX_ERROR[jnp.finfo(c.dtype).bits]
    dual = change.dual
    length = _largest(dual / scaling.rows)
    bounded = jnp.isfinite(upper)
    products = jnp.where(bounded, upper, 0) * dual
    gap, terms = jnp.sum(products), jnp.sum(jnp.abs(products))
    signed = jnp.all(equal | (dual >= -error * length * scaling.rows))
    infeasible = (_largest(scaling.columns * (M.T @ dual)) <= error * length) & signed
    infeasible &= (gap < -error * length) & (gap < -error * terms)
    direction = change.x
    length = _largest(direction / scaling.columns)
    values = scaling.rows * (M @ direction)
    values = jnp.where(bounded, jnp.where(equal, jnp.abs(values), values), -jnp.inf)
    slope = jnp.sum(c * direction) * scaling.cost
    unbounded = scaling.cost * _largest(scaling.columns * (Q @ direction)) <= error * length
    unbounded &= jnp.max(values, initial=-jnp.inf) <= error * length
    unbounded &= slope < -error * length
    code = jnp.where(unbounded, Status.UNBOUNDED, RUNNING)
    return jnp.where(infeasible, Status.INFEASIBLE, code).astype(jnp.int32)
