"""Which answers are accepted: never one of many, never one in other units, rarely none."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov, Limits
from tests.helpers import compiled, relative_error
from tests.linalg.systems import (
    GENERAL,
    MIDDLE,
    NONSYMMETRIC,
    RHS,
    SINGULAR,
    SIZE,
    both_ways,
    every_method,
    orthogonal,
    solve,
    spread,
)


def answers_by(solver, structure=GENERAL):
    """Return the program of the answers to `b` of a system and of its transpose."""
    return compiled(
        lambda matrix, b: both_ways(lambda v: solve(matrix, v, structure, solver), b, b)
    )


def ladder(condition, dtype):
    """Return a matrix without symmetry whose singular values fall from 1 to 1 / condition."""
    right = np.linalg.qr(np.random.default_rng(8).normal(size=(MIDDLE, MIDDLE)))[0]
    return jnp.asarray(spread(condition) @ right, dtype)


@every_method
def test_a_tangent_has_to_be_unique_and_a_cotangent_does_not(method):
    consistent = SINGULAR @ RHS
    answers = answers_by(method)
    tangent, adjoint = answers(SINGULAR, consistent)
    assert np.all(np.isnan(tangent))
    np.testing.assert_allclose(SINGULAR @ adjoint, consistent, atol=1e-9)
    assert np.max(np.abs(adjoint)) < 1e3
    _, adjoint = answers(SINGULAR, RHS)
    assert np.all(np.isnan(adjoint))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("solver", [None, lx.LU(), lx.AutoLinearSolver(well_posed=False)])
def test_singular_matrices_of_every_kind_have_no_tangent(solver, dtype):
    rng = np.random.default_rng(4)
    few = rng.normal(size=(5, SIZE))
    twice = rng.normal(size=(50, SIZE))
    twice[:, 3] = twice[:, 7]
    stochastic = rng.uniform(size=(SIZE, SIZE))
    stochastic /= stochastic.sum(axis=1, keepdims=True)
    matrices = np.stack([few.T @ few, twice.T @ twice, np.eye(SIZE) - stochastic])
    matrices = jnp.asarray(matrices, dtype)
    batch = compiled(jax.vmap(lambda m, x: solve(m, m @ x, GENERAL, solver), (0, None)))
    assert np.all(np.isnan(batch(matrices, jnp.asarray(RHS, dtype))))


@pytest.mark.parametrize(("dtype", "unit"), [(jnp.float32, 1e-5), (jnp.float64, 1e-10)])
@every_method
def test_equations_and_unknowns_in_other_units(method, dtype, unit):
    rows, columns = np.ones(SIZE), np.ones(SIZE)
    rows[2], columns[5] = unit, 1 / unit
    matrix = jnp.asarray(rows[:, None] * NONSYMMETRIC * columns[None], dtype)
    truth = RHS / columns
    b = jnp.asarray(rows * (NONSYMMETRIC @ RHS), dtype)
    answer = compiled(lambda m, b: solve(m, b, GENERAL, method))(matrix, b)
    if method == "krylov":  # which has nothing to fall back on
        assert np.all(np.isnan(answer)) or relative_error(answer * columns, RHS) < 1e-3
    else:
        np.testing.assert_allclose(answer, truth, rtol=1e3 * float(jnp.finfo(dtype).eps))


KRYLOV = Limits(0, 0, 0, 0)


def test_a_weak_equation_among_many():
    size = 501
    ones = jnp.ones(size, jnp.float32)

    def weakened(weight):
        return jnp.diag(ones.at[0].set(weight)).at[7, 300].set(0.5)

    # In float32, GMRES finds the known answer no better than to eps times the condition number.
    for weight, solver in ((1e-5, None), (1e-4, lx.GMRES(rtol=1e-5, atol=1e-5))):
        matrix = weakened(weight)
        found = compiled(lambda b, m=matrix, solver=solver: solve(m, b, GENERAL, solver))
        np.testing.assert_allclose(found(matrix @ ones), ones, rtol=1e-2)
    matrix = weakened(1e-5)
    stops_early = DenseOrKrylov(limits=KRYLOV)
    found = compiled(lambda b: solve(matrix, b, GENERAL, stops_early))
    assert np.all(np.isnan(found(matrix @ ones)))


@pytest.mark.parametrize(("dtype", "condition"), [(jnp.float32, 1e6), (jnp.float64, 1e12)])
@pytest.mark.parametrize("solver", [None, lx.LU()])
def test_a_backward_stable_answer_of_an_ill_conditioned_system_is_accepted(
    solver, dtype, condition
):
    matrix = ladder(condition, dtype)
    for b in (jnp.ones(MIDDLE, dtype), matrix @ jnp.ones(MIDDLE, dtype)):
        for answer, m in zip(answers_by(solver)(matrix, b), (matrix, matrix.T), strict=True):
            bound = 100 * jnp.finfo(dtype).eps * (jnp.linalg.norm(answer) + jnp.linalg.norm(b))
            assert jnp.linalg.norm(m @ answer - b) <= bound


def test_a_system_scaled_as_a_whole_is_the_same_system():
    answer = compiled(lambda m, b: solve(m, b, GENERAL, None))
    for scale in (1e-200, 1e-30, 1e30, 1e200):
        np.testing.assert_allclose(
            answer(scale * NONSYMMETRIC, scale * RHS), np.linalg.solve(NONSYMMETRIC, RHS), rtol=1e-9
        )


# Where a Krylov method stagnates


def laplacian(size, below):
    """Return the matrix of the second difference; without symmetry unless `below` is one."""
    return np.diag(np.full(size, 2.0)) - np.eye(size, k=1) - below * np.eye(size, k=-1)


def test_a_tridiagonal_system_is_solved_directly():
    size = 400
    matrix, b = laplacian(size, 1 - 1e-5), np.ones(size)
    tangent, adjoint = answers_by(DenseOrKrylov(limits=KRYLOV))(matrix, b)
    np.testing.assert_allclose(tangent, np.linalg.solve(matrix, b), rtol=1e-8)
    np.testing.assert_allclose(adjoint, np.linalg.solve(matrix.T, b), rtol=1e-8)


def test_the_dense_method_is_the_last_resort_while_memory_allows():
    size = 400
    order = np.random.default_rng(1).permutation(size)
    matrix = laplacian(size, 1.0)[order][:, order]  # no longer tridiagonal
    b = np.ones(size)
    exact = np.linalg.solve(matrix, b)
    for limit, allowed in ((8 * size**2, True), (8 * size**2 - 1, False)):
        solver = DenseOrKrylov(limits=Limits(0, 0, 0, limit, trial_max_products=200))
        answer = compiled(lambda b, solver=solver: solve(matrix, b, GENERAL, solver))(b)
        if allowed:
            np.testing.assert_allclose(answer, exact, rtol=1e-8)
        else:
            assert np.all(np.isnan(answer))


# Through the implicit mode


def test_a_rank_deficient_minimisation():
    rng = np.random.default_rng(0)
    data, y = jnp.asarray(rng.normal(size=(3, 6))), jnp.asarray(rng.normal(size=3))
    problem = itd.Minimization(lambda w, s: jnp.sum((data @ w - s * y) ** 2) / 2)
    attached = itd.implicit(problem, throw=False)(lambda _, s: s * jnp.linalg.pinv(data) @ y)

    @compiled
    def derivatives(s):
        answer = lambda s: attached(jnp.zeros(6), s)  # noqa: E731
        fitted = jax.grad(lambda s: jnp.sum(jnp.cumsum(data @ answer(s))))(s)
        return jax.jacfwd(answer)(s), fitted, jax.grad(lambda s: answer(s)[0])(s)

    tangent, fitted, entry = derivatives(1.0)
    assert np.all(np.isnan(tangent))
    assert fitted == pytest.approx(float(jnp.sum(jnp.cumsum(y))), rel=1e-10)
    assert np.isnan(entry)  # depends on what the data leave open


def test_a_residual_that_ignores_the_unknowns():
    problem = itd.Minimization(lambda x, t: jnp.sum(t**2) + 0 * jnp.sum(x))
    answer = itd.implicit(problem)(lambda x0, t: x0)
    ones = jnp.ones(3)
    for transform in (jax.jacfwd, jax.jacrev):  # here d residual / d theta is zero, too
        with pytest.raises(itd.SolveError, match="singular"):
            transform(lambda t: answer(ones, t))(ones)
    quiet = itd.implicit(problem, throw=False)(lambda x0, t: x0)
    for transform in (jax.jacfwd, jax.jacrev):
        assert np.all(np.isnan(transform(lambda t: quiet(ones, t))(ones)))


def test_a_double_root_has_no_derivative_in_either_mode():
    # d residual / d theta vanishes there, too, but the solution is theta.
    answer = itd.implicit(itd.RootFinding(lambda x, t: (x - t) ** 2))(lambda x0, t: t)
    for transform in (jax.jacfwd, jax.jacrev):
        with pytest.raises(itd.SolveError, match="singular"):
            transform(lambda t: answer(t, t))(jnp.ones(2))


def test_the_value_of_an_optimum_that_is_not_unique():
    # Optimal transport: potentials up to a constant. The cotangent of the value is rounding.
    rng = np.random.default_rng(0)
    cost = jnp.asarray(rng.uniform(size=(5, 4)))
    lse = jax.scipy.special.logsumexp

    def other(g, cost):
        return -lse(g[None] - cost - jnp.log(4.0), axis=1)

    def update(g, cost):
        return -lse(other(g, cost)[:, None] - cost - jnp.log(5.0), axis=0)

    def value(cost, mode):
        problem = itd.FixedPoint(update)
        run = (problem, itd.Picard(), jnp.zeros(4), cost)
        g = itd.solve(*run, stop=itd.Steps(100), mode=mode).x
        return jnp.mean(other(g, cost)) + jnp.mean(g), g[0] - g[1], g[0]

    @compiled
    def gradients(cost):
        pairs = [(0, itd.Implicit()), (0, itd.Unrolled()), (1, itd.Implicit()), (1, itd.Unrolled())]
        return [jax.grad(lambda c, i=i, m=m: value(c, m)[i])(cost) for i, m in pairs]

    by_value, expected, by_difference, expected_difference = gradients(cost)
    np.testing.assert_allclose(by_value, expected, atol=1e-12)
    np.testing.assert_allclose(by_difference, expected_difference, atol=1e-10)
    with pytest.raises(RuntimeError, match="linear solve"):
        jax.block_until_ready(jax.jit(jax.grad(lambda c: value(c, itd.Implicit())[2]))(cost))


# The advice in the message


def failing(problem, solver, mode=None):
    """Return the gradient of the first unknown, as a function of theta."""
    answer = itd.implicit(problem, mode=mode)(solver)
    return jax.jit(jax.grad(lambda theta: answer(0 * theta, theta)[0]))


def test_the_advice_float64():
    matrix = np.asarray(orthogonal(0) * np.logspace(-8, 0, SIZE)) @ orthogonal(1)
    problem = itd.LinearSystem(itd.MatrixOperator(lambda _: matrix), lambda theta: theta)
    for dtype in (jnp.float32, jnp.float64):
        cast = jnp.asarray(matrix, dtype)
        problem = itd.LinearSystem(cast, lambda theta: theta)
        slope = failing(problem, lambda x0, theta, cast=cast: jnp.linalg.solve(cast, theta))
        theta = jnp.asarray(matrix @ np.ones(SIZE), dtype)
        if dtype == jnp.float64:
            np.testing.assert_allclose(slope(theta), np.linalg.inv(matrix)[0], rtol=1e-6)
        else:
            with pytest.raises(RuntimeError, match="float64"):
                jax.block_until_ready(slope(theta))


def test_the_advice_equations():
    rates = jnp.array([2.0, 3.0])

    def flow(x, k):
        return k[0] * x[0] - k[1] * x[1]

    def steady(_, k):
        return jnp.stack([k[1], k[0]]) / (k[0] + k[1])

    open_total = itd.RootFinding(lambda x, k: jnp.stack([-flow(x, k), flow(x, k)]))
    with pytest.raises(RuntimeError, match="equations"):
        jax.block_until_ready(failing(open_total, steady)(rates))
    closed = itd.RootFinding(lambda x, k: jnp.stack([flow(x, k), x[0] + x[1] - 1.0]))
    np.testing.assert_allclose(failing(closed, steady)(rates), [-0.12, 0.08], rtol=1e-12)


def test_the_advice_structure_and_solver():
    size = 400
    order = np.random.default_rng(1).permutation(size)
    symmetric = laplacian(size, 1.0)[order][:, order]
    matrix = jnp.asarray(symmetric)
    theta, exact = jnp.ones(size), np.linalg.inv(symmetric)[0]
    stuck = DenseOrKrylov(limits=Limits(0, 0, 0, 0, trial_max_products=200))

    def slope(mode, **claims):
        problem = itd.LinearSystem(matrix, lambda theta: theta, **claims)
        return failing(problem, lambda x0, theta: jnp.linalg.solve(matrix, theta), mode)(theta)

    with pytest.raises(RuntimeError, match=r"`positive_definite`.*`linear_solver`"):
        jax.block_until_ready(slope(itd.Implicit(stuck)))
    np.testing.assert_allclose(slope(itd.Implicit(stuck), positive_definite=True), exact, rtol=1e-6)
    np.testing.assert_allclose(slope(itd.Implicit(lx.LU())), exact, rtol=1e-6)
