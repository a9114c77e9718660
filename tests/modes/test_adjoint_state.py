"""What one derivative leaves to the next: adjoints and factors; the factors of a Newton run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov, Limits
from iterdiff.linalg.handed import STALE_MAX_PRODUCTS
from tests.helpers import Counter

SIZE = 40
KRYLOV = DenseOrKrylov(limits=Limits(0, 0, 0, 0))
RNG = np.random.default_rng(1)
UNITS = np.exp(RNG.normal(size=SIZE))
MATRIX = np.diag(UNITS) @ (np.eye(SIZE) + 0.1 * np.tril(RNG.normal(size=(SIZE, SIZE)), -1))
CHANGE = 0.05 * UNITS[:, None] * RNG.normal(size=(SIZE, SIZE))
WEIGHTS, RHS = RNG.normal(size=(2, SIZE))


def matrix_at(t):
    return MATRIX + t * CHANGE


def along(times, solver, hermitian=False, preconditioner=None, **kept):
    """Return the products of each gradient along a path; each gradient is compared."""
    counter = Counter()

    def loss(theta, state, t):
        matrix = matrix_at(t)
        matrix = matrix @ matrix.T if hermitian else matrix
        if hermitian:
            problem: Any = itd.Minimization(lambda x, b: x @ (matrix @ counter(x)) / 2 - x @ b)
        else:
            problem = itd.RootFinding(lambda x, b: matrix @ counter(x) - b)
        x = jnp.linalg.solve(matrix, theta)
        mode = itd.Implicit(solver, guess=state, preconditioner=preconditioner)
        return jnp.asarray(WEIGHTS) @ mode.attach(problem, x, theta, throw=True)

    step = jax.jit(itd.value_and_grad_with_state(loss))
    state, counts = itd.AdjointState.start(jnp.zeros(SIZE), **kept), []
    for t in times:
        _, gradient, state = step(jnp.asarray(RHS), state, t)
        counts.append(counter.take())
        matrix = matrix_at(t) @ matrix_at(t).T if hermitian else matrix_at(t).T
        np.testing.assert_allclose(gradient, np.linalg.solve(matrix, WEIGHTS), rtol=1e-6)
    return counts


def of_units(problem, x, theta):
    """Precondition by the diagonal part of the matrix at time zero."""
    del problem, x, theta
    return lambda v: v / jnp.asarray(UNITS)


def test_recycled_adjoints_save_products_along_a_smooth_path():
    times = 0.3 + 0.002 * np.arange(8)
    warm = along(times, KRYLOV, preconditioner=of_units)
    recycled = along(times, KRYLOV, preconditioner=of_units, recycle=3)
    # Four of the products are those with the adjoints.
    assert sum(recycled[4:]) < 0.7 * sum(warm[4:])


@pytest.mark.parametrize("hermitian", [False, True])
def test_factors_serve_until_the_matrix_is_too_far(hermitian):
    times = [0.0, 0.02, 0.03, 5.0, 5.001]
    first, *near, far, after = along(times, None, hermitian, factors=True)
    assert first >= SIZE
    of_residual = 2 if hermitian else 1  # a gradient takes two products
    assert max(*near, after) <= of_residual * (STALE_MAX_PRODUCTS + 4)  # with the checks
    assert far >= SIZE


def test_a_batch_of_states_and_a_state_that_is_not_finite():
    start = itd.AdjointState.start(jnp.zeros(SIZE), recycle=2, factors=True)
    spoilt = jax.tree.map(lambda v: v.at[..., 0].set(jnp.nan), start)
    states = jax.tree.map(lambda *v: jnp.stack(v), start, spoilt)

    def loss(theta, state, t):
        problem = itd.RootFinding(lambda x, b: matrix_at(t) @ x - b)
        x = jnp.linalg.solve(matrix_at(t), theta)
        mode = itd.Implicit(guess=state)
        return jnp.asarray(WEIGHTS) @ mode.attach(problem, x, theta, throw=True)

    @jax.jit
    @jax.vmap
    def twice(state, times):
        def body(state, t):
            step = itd.value_and_grad_with_state(loss)
            _, gradient, state = step(jnp.asarray(RHS), state, t)
            return state, (gradient, state.solution)

        return jax.lax.scan(body, state, times)[1]

    times = np.array([[0.0, 0.01], [0.5, 0.51]])
    gradients, adjoints = twice(states, times)
    exact = [[np.linalg.solve(matrix_at(t).T, WEIGHTS) for t in pair] for pair in times]
    np.testing.assert_allclose(gradients, exact, rtol=1e-6)
    np.testing.assert_allclose(adjoints, exact, rtol=1e-6)


def unconditional(jaxpr, name: str) -> int:
    """Return how many equations of this name run whatever happens: none of a loop."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == name
        if equation.primitive.name in ("while", "cond"):
            continue
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += unconditional(inner, name)
    return total


def test_the_derivative_of_a_newton_run_needs_no_factors_of_its_own():
    problem = itd.RootFinding(lambda x, b: jnp.asarray(MATRIX) @ x + 0.05 * x**3 - b)

    def answer(theta, steps, mode):
        run = problem, itd.Newton(), theta, theta
        return itd.solve(*run, stop=itd.Steps(steps), mode=mode).x

    handed = itd.Implicit(preconditioner="algorithm")

    @jax.jit
    def derivatives(theta):
        def loss(theta):  # after one step, the factors are those of a matrix that is far
            x = answer(theta, 1, handed)
            return jnp.asarray(WEIGHTS) @ x, x

        of_all = lambda theta: (answer(theta, 6, handed),) * 2  # noqa: E731
        return jax.grad(loss, has_aux=True)(theta), jax.jacfwd(of_all, has_aux=True)(theta)

    def jacobian_at(x):
        return MATRIX + np.diag(0.15 * np.square(x))

    (gradient, early), (derivative, x) = derivatives(jnp.asarray(RHS))
    np.testing.assert_allclose(gradient, np.linalg.solve(jacobian_at(early).T, WEIGHTS), rtol=1e-7)
    np.testing.assert_allclose(derivative @ jacobian_at(x), np.eye(SIZE), atol=1e-7)
    first = lambda theta, mode: answer(theta, 6, mode)[0]  # noqa: E731
    programs = [jax.make_jaxpr(jax.grad(first), 1)(RHS, mode) for mode in (handed, itd.Implicit())]
    assert [unconditional(program.jaxpr, "lu") for program in programs] == [0, 1]


def test_states_and_methods_that_do_not_fit_are_refused():
    problem = itd.RootFinding(lambda x, b: jnp.asarray(MATRIX) @ x - b)

    def differentiate(mode):
        loss = lambda b: jnp.sum(mode.attach(problem, jnp.zeros(SIZE), b, throw=True))  # noqa: E731
        jax.grad(loss)(jnp.asarray(RHS))

    start = itd.AdjointState.start
    good = start(jnp.zeros(SIZE), recycle=1, factors=True)
    other = start(jnp.zeros(3), recycle=1, factors=True)
    for part in ("solution", "earlier", "factors"):
        wrong = itd.AdjointState(**{**vars(good), part: getattr(other, part)})
        with pytest.raises(ValueError, match="`guess`"):
            differentiate(itd.Implicit(guess=wrong))
    with pytest.raises(ValueError, match="`guess` with factors"):
        differentiate(itd.Implicit(lambda matvec, b: b, guess=good))
    with pytest.raises(ValueError, match="`factors`"):
        start(jnp.zeros(20_000), factors=True)
    with pytest.raises(ValueError, match="`recycle`"):
        start(jnp.zeros(3), recycle=-1)
    with pytest.raises(ValueError, match="`keep_factors`"):
        itd.Newton(lambda matvec, b: b, keep_factors=True)
    with pytest.raises(ValueError, match="`keep_factors`"):
        itd.solve(
            itd.RootFinding(lambda x, b: x - b),
            itd.Newton(keep_factors=True),
            jnp.zeros(4000),
            jnp.zeros(4000),
            stop=itd.Steps(1),
        )
