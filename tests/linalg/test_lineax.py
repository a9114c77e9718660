"""Our policy as a solver of lineax, and any solver of lineax in our solves."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.linalg.any_solver import AnySolver
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov
from iterdiff.linalg.operators import Structure
from iterdiff.linalg.solve import Inverse, Method
from tests.helpers import compiled, relative_error
from tests.linalg.systems import (
    DEFINITE,
    GENERAL,
    MIDDLE,
    NONSYMMETRIC,
    RHS,
    SINGULAR,
    SIZE,
    SOLVERS,
    SPD,
    WEIGHTS,
    both_ways,
    solve,
    spread,
)

# As a solver of lineax


@pytest.mark.parametrize("method", ["lu", "fallback", "krylov"])
def test_lineax_solves_with_the_policy(method):
    solver = SOLVERS[method]

    @compiled
    def everything(matrix, b):
        def by(matrix, b):
            return lx.linear_solve(lx.MatrixLinearOperator(matrix), b, solver).value

        value, gradients = jax.value_and_grad(lambda *args: WEIGHTS @ by(*args), (0, 1))(matrix, b)
        quiet = lx.linear_solve(lx.MatrixLinearOperator(0 * matrix), b, solver, throw=False)
        failed = quiet.result != lx.RESULTS.successful
        return value, gradients, jax.vmap(by, (None, 0))(matrix, jnp.eye(SIZE)), failed

    value, (by_matrix, by_b), inverse_rows, failed = everything(NONSYMMETRIC, RHS)
    x, adjoint = np.linalg.solve(NONSYMMETRIC, RHS), np.linalg.solve(NONSYMMETRIC.T, WEIGHTS)
    assert value == pytest.approx(WEIGHTS @ x, rel=1e-8)
    np.testing.assert_allclose(by_b, adjoint, atol=1e-8)
    np.testing.assert_allclose(by_matrix, -np.outer(adjoint, x), atol=1e-8)
    np.testing.assert_allclose(inverse_rows.T, np.linalg.inv(NONSYMMETRIC), atol=1e-8)
    assert failed


def test_the_policy_takes_pytrees_and_refuses_what_it_cannot_solve():
    like = jax.eval_shape(lambda: {"a": jnp.ones(()), "b": jnp.ones(3)})

    def function(v):
        return {"a": 2 * v["a"] + jnp.sum(v["b"]), "b": 3 * v["b"] + v["a"]}

    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), like)
    operator = lx.FunctionLinearOperator(function, like)
    found = lx.linear_solve(operator, ones, DenseOrKrylov(), options={}).value
    assert found["a"] == pytest.approx(0.0, abs=1e-15)  # 2 a + 3 b = 1 and a + 3 b = 1
    np.testing.assert_allclose(found["b"], np.full(3, 1 / 3), rtol=1e-14)
    for solver in (DenseOrKrylov(), AnySolver(lx.LU())):
        state = solver.init(lx.MatrixLinearOperator(SPD), {})
        real, _, _ = solver.compute(solver.conj(state, {})[0], jnp.asarray(RHS), {})
        np.testing.assert_allclose(real, np.linalg.solve(SPD, RHS), rtol=1e-12)
        assert solver.assume_full_rank()
    for matrix in (jnp.ones((2, 3)), jnp.eye(2, dtype=complex)):
        with pytest.raises(ValueError, match="`operator`"):
            DenseOrKrylov().init(lx.MatrixLinearOperator(matrix), {})


# Any solver of lineax


class Scripted(lx.AbstractLinearSolver):
    """A dense solver that records its calls, scales its answers, and always reports success."""

    calls: list = eqx.field(static=True)
    scale: float = 1.0
    rtol: float | None = None

    def init(self, operator, options):
        """Return the matrix."""
        del options
        self.calls.append("init")
        return operator.as_matrix()

    def compute(self, state, vector, options):
        """Return the scaled answer."""
        del options
        self.calls.append("compute")
        return self.scale * jnp.linalg.solve(state, vector), lx.RESULTS.successful, {}

    def transpose(self, state, options):
        """Return the transposed matrix."""
        self.calls.append("transpose")
        return state.T, options

    def conj(self, state, options):
        """Return the matrix."""
        return state, options

    def assume_full_rank(self):
        """Return True."""
        return True


OF_LINEAX = {
    "auto": lx.AutoLinearSolver(well_posed=True),
    "svd": lx.AutoLinearSolver(well_posed=False),
    "gmres": lx.GMRES(rtol=1e-12, atol=1e-12),
    "normal_cg": lx.Normal(lx.CG(rtol=1e-12, atol=1e-12)),
}


@pytest.mark.parametrize("name", OF_LINEAX)
def test_any_solver_of_lineax_solves_transposes_and_batches(name):
    matrix, solver = NONSYMMETRIC, OF_LINEAX[name]

    @compiled
    def everything(matrix, b):
        def by(v):
            return solve(matrix, v, GENERAL, solver, throw=True)

        return *both_ways(by, b, b), jax.vmap(by)(jnp.eye(SIZE))

    x, transposed, batch = everything(matrix, RHS)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, RHS), atol=1e-9)
    np.testing.assert_allclose(transposed, np.linalg.solve(matrix.T, RHS), atol=1e-9)
    np.testing.assert_allclose(batch.T, np.linalg.inv(matrix), atol=1e-9)


def test_a_solver_prepares_once_for_all_right_hand_sides():
    solver = Scripted([])
    by = Inverse(lambda v: NONSYMMETRIC @ v, jnp.asarray(RHS), GENERAL, Method(solver))
    first, second = by(jnp.asarray(RHS)), jax.vjp(by, jnp.asarray(RHS))[1](jnp.ones(SIZE))[0]
    np.testing.assert_allclose(first, np.linalg.solve(NONSYMMETRIC, RHS), rtol=1e-10)
    np.testing.assert_allclose(second, np.linalg.solve(NONSYMMETRIC.T, np.ones(SIZE)), rtol=1e-10)
    assert solver.calls.count("init") == 1
    assert {"compute", "transpose"} <= set(solver.calls)


def test_a_wrong_answer_fails_although_the_solver_reports_success():
    by = jax.jit(lambda m, b, scale: solve(m, b, GENERAL, Scripted([], scale)))
    assert np.all(np.isfinite(by(SPD, RHS, 1.0)))
    assert np.all(np.isnan(by(SPD, RHS, 1.0 + 1e-6)))
    with pytest.raises(RuntimeError, match="linear solve.*`throw=False`"):
        solve(SPD, RHS, GENERAL, Scripted([], 1.0 + 1e-6), throw=True)
    # A wrong claim of symmetry makes lineax return the operator as its own transpose.
    claimed = Structure(symmetric=True, positive_definite=False)
    cotangent = jax.vjp(lambda b: solve(NONSYMMETRIC, b, claimed, lx.GMRES(1e-12, 1e-12)), RHS)[1]
    assert np.all(np.isnan(cotangent(jnp.asarray(RHS))[0]))


def test_the_check_allows_the_tolerance_that_the_user_chose():
    loose = jax.jit(lambda m, b, scale: solve(m, b, GENERAL, Scripted([], scale, 1e-6)))
    np.testing.assert_allclose(
        loose(SPD, RHS, 1.0 + 1e-5), np.linalg.solve(SPD, RHS) * (1 + 1e-5), rtol=1e-12
    )
    assert np.all(np.isnan(loose(SPD, RHS, 1.0 + 1e-3)))
    krylov = dataclasses.replace(SOLVERS["krylov"], rtol=1e-2)
    for solver in (lx.CG(rtol=1e-2, atol=1e-2), krylov):
        matrix, b = spread(3.0), jnp.ones(MIDDLE)
        x = solve(matrix, b, DEFINITE, solver, throw=True)
        assert 1e-8 < relative_error(matrix @ x, b) <= 1e-2
    # The tolerances of a wrapped solver count, too.
    wrapped = solve(SPD, RHS, GENERAL, lx.Normal(Scripted([], 1.0 + 1e-5, 1e-6)))
    assert np.all(np.isfinite(wrapped))


def test_a_least_squares_solver_needs_a_consistent_system():
    def by(b):
        return solve(SINGULAR, b, DEFINITE, OF_LINEAX["svd"])

    both = compiled(lambda b: both_ways(by, b, b))
    consistent = SINGULAR @ RHS
    tangent, adjoint = both(consistent)
    np.testing.assert_allclose(adjoint, np.linalg.pinv(SINGULAR) @ consistent, atol=1e-12)
    assert np.all(np.isnan(tangent))  # one of many
    assert np.all(np.isnan(both(RHS)))


# Through the implicit mode and Newton's method


def gradient(solver, throw=True):
    """Return the gradient of ``sum(x*)``, where ``SPD x* = theta``."""
    problem = itd.LinearSystem(SPD, lambda theta: theta, positive_definite=True)
    mode = itd.Implicit(linear_solver=solver)

    def total(theta):
        task = (problem, itd.ConjugateGradient(), jnp.zeros(SIZE), theta)
        return jnp.sum(itd.solve(*task, stop=itd.Steps(SIZE), mode=mode, throw=throw).x)

    return compiled(jax.grad(total))(jnp.asarray(RHS))


def test_the_implicit_mode_uses_the_users_solver():
    expected = np.linalg.solve(SPD, np.ones(SIZE))
    np.testing.assert_allclose(gradient(SOLVERS["krylov"]), expected, atol=1e-9)
    weak = lx.GMRES(rtol=1e-12, atol=1e-12, max_steps=1, restart=2)
    assert np.all(np.isnan(gradient(weak, throw=False)))
    with pytest.raises(RuntimeError, match="linear solve.*`throw=False`"):
        jax.block_until_ready(gradient(weak))


def test_a_least_squares_solver_differentiates_what_a_rank_deficient_problem_determines():
    row = np.linspace(1, 2, SIZE)
    problem = itd.Minimization(lambda x, theta: (row @ x - theta) ** 2 / 2)
    mode = itd.Implicit(linear_solver=OF_LINEAX["svd"])

    def slope(weights):
        def loss(theta):
            task = (problem, itd.GradientDescent(0.03), jnp.zeros(SIZE), theta)
            return weights @ itd.solve(*task, stop=itd.Steps(60), mode=mode).x

        return compiled(jax.grad(loss))(1.3)

    # The problem determines row @ x = theta, and no other combination of the unknowns.
    assert slope(row) == pytest.approx(1.0, rel=1e-9)
    with pytest.raises(RuntimeError, match="linear solve"):
        jax.block_until_ready(slope(np.ones(SIZE)))


def test_the_answer_to_a_zero_cotangent_is_zero():
    # A member of a batch whose solve failed, and that the loss ignores
    zero = jnp.zeros(SIZE)
    by = lambda b: solve(SINGULAR, b, GENERAL, None, throw=True)  # noqa: E731
    pull = compiled(lambda w: jax.vjp(by, zero)[1](w)[0])
    np.testing.assert_array_equal(pull(zero), np.zeros(SIZE))
    # In forward mode, zero does not determine the tangent.
    with pytest.raises(RuntimeError, match="linear solve"):
        jax.block_until_ready(compiled(by)(zero))
    root = itd.RootFinding(lambda x, theta: x**2 - theta)

    def loss(theta):
        stop = itd.ResidualBelow(atol=1e-6, rtol=0.0, max_steps=20)
        found = itd.solve(root, itd.Newton(), jnp.array(1.0), theta, stop=stop, throw=False)
        return jnp.where(found.status == itd.Status.CONVERGED, found.x, 0.0)

    slopes = compiled(jax.vmap(jax.grad(loss)))(jnp.array([4.0, -1.0]))
    np.testing.assert_allclose(slopes, [0.25, 0.0], rtol=1e-6)


def test_a_newton_step_that_fails_ends_the_run():
    problem = itd.RootFinding(lambda x, theta: x**2 - theta)
    task = (problem, itd.Newton(), 0.0, 2.0)  # the slope at the start is zero
    solution = itd.solve(*task, stop=itd.Steps(5), throw=False)
    assert solution.status == itd.Status.DIVERGED
    assert solution.steps == 0
    assert solution.x == 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_tiny_right_hand_side_is_solved(dtype):
    # The answer has entries down to the smallest normal number, and smaller ones within the solve.
    matrix, rhs = jnp.asarray(NONSYMMETRIC, dtype), jnp.asarray(RHS, dtype)
    by = compiled(lambda b: solve(matrix, b, GENERAL, None))
    unit = 2 * jnp.finfo(dtype).tiny
    np.testing.assert_allclose(by(unit * rhs) / unit, by(rhs), atol=0.5)
