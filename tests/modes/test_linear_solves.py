"""What users hand to the linear solves of `Implicit`: preconditioners, guesses, states, solvers."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov, Limits
from tests.helpers import Counter

SIZE = 60
KRYLOV = DenseOrKrylov(limits=Limits(0, 0, 0, 0))
RNG = np.random.default_rng(0)
# Rows and columns of very different size: a Krylov method needs a preconditioner.
UNITS = np.exp(1.5 * RNG.normal(size=SIZE))
GENERAL = np.diag(UNITS) @ (np.eye(SIZE) + 0.1 * np.tril(RNG.normal(size=(SIZE, SIZE)), -1))
DEFINITE = np.diag(UNITS) + 0.01 * np.ones((SIZE, SIZE))
WEIGHTS = RNG.normal(size=SIZE)
RHS = RNG.normal(size=SIZE)


def system(matrix, **claims):
    return itd.LinearSystem(jnp.asarray(matrix), lambda theta: theta, **claims)


def derivatives(problem, mode, dtype=np.float64):
    """Return ``A^{-1} RHS`` and ``A^{-T} WEIGHTS``, by forward and by reverse mode."""
    x, b, w = (jnp.asarray(v, dtype) for v in (np.zeros(SIZE), RHS, WEIGHTS))

    @jax.jit
    def both(theta):
        answer = lambda theta: mode.attach(problem, x, theta, throw=True)  # noqa: E731
        tangent = jax.jvp(answer, (theta,), (b,))[1]
        return tangent, jax.grad(lambda theta: w @ answer(theta))(theta)

    return both(b)


def gradient(problem, mode):
    """Return the gradient of a loss, ``theta -> A^{-T} WEIGHTS``."""
    w, x = jnp.asarray(WEIGHTS), jnp.zeros(SIZE)
    return jax.grad(lambda theta: w @ mode.attach(problem, x, theta, throw=True))


def inverse_of(matrix):
    return lambda problem, x, theta: lambda v: jnp.asarray(np.linalg.inv(matrix), v.dtype) @ v


@pytest.mark.parametrize("solver", ["ours", "lineax"])
@pytest.mark.parametrize("kind", ["definite", "general"])
def test_a_preconditioner_is_used_in_both_directions(kind, solver):
    definite = kind == "definite"
    matrix = DEFINITE if definite else GENERAL
    problem = system(matrix, positive_definite=definite)
    foreign = lx.CG if definite else lx.GMRES
    few = {"max_steps": 12} if definite else {"max_steps": 10, "restart": 12}
    if solver == "ours":
        mode = itd.Implicit(KRYLOV, preconditioner="diagonal")
    else:
        mode = itd.Implicit(foreign(1e-11, 1e-11, **few), preconditioner=inverse_of(matrix))
    tangent, adjoint = derivatives(problem, mode)
    np.testing.assert_allclose(tangent, np.linalg.solve(matrix, RHS), rtol=1e-7)
    np.testing.assert_allclose(adjoint, np.linalg.solve(matrix.T, WEIGHTS), rtol=1e-6)


def test_the_preconditioner_is_transposed():
    # An iteration that may take five products: only the transposed inverse is good enough.
    dtype = np.float32
    solver = DenseOrKrylov(limits=Limits(0, 0, 0, 0, trial_max_products=5))
    mode = itd.Implicit(solver, preconditioner=inverse_of(GENERAL))
    tangent, adjoint = derivatives(system(GENERAL.astype(dtype)), mode, dtype)
    np.testing.assert_allclose(tangent, np.linalg.solve(GENERAL, RHS), rtol=2e-3)
    np.testing.assert_allclose(adjoint, np.linalg.solve(GENERAL.T, WEIGHTS), rtol=2e-3)


def test_a_wrong_preconditioner_costs_products_only():
    singular = np.diag([1.0] + [0.0] * (SIZE - 1))
    unrelated = np.roll(np.eye(SIZE), 7, 0) * np.linspace(-1, 1, SIZE)

    @jax.jit
    @jax.vmap
    def by(wrong):
        mode = itd.Implicit(KRYLOV, preconditioner=lambda *_: lambda v: wrong @ v)
        return derivatives(system(GENERAL), mode)

    tangents, adjoints = by(jnp.stack([jnp.full((SIZE, SIZE), jnp.nan), singular, unrelated]))
    for tangent, adjoint in zip(tangents, adjoints, strict=True):
        np.testing.assert_allclose(tangent, np.linalg.solve(GENERAL, RHS), rtol=1e-6)
        np.testing.assert_allclose(adjoint, np.linalg.solve(GENERAL.T, WEIGHTS), rtol=1e-6)


def test_the_advice_without_preconditioner():
    solver = lx.GMRES(1e-10, 1e-10, restart=SIZE)
    nan = itd.Implicit(solver, preconditioner=lambda *_: lambda v: jnp.nan * v)
    with pytest.raises(RuntimeError, match="Try `preconditioner=None`"):
        jax.block_until_ready(jax.jit(gradient(system(GENERAL), nan))(jnp.asarray(RHS)))
    found = jax.jit(gradient(system(GENERAL), itd.Implicit(solver)))(jnp.asarray(RHS))
    np.testing.assert_allclose(found, np.linalg.solve(GENERAL.T, WEIGHTS), rtol=1e-6)


def test_equations_and_unknowns_in_other_units_without_a_preconditioner():
    rows, columns = np.exp(4 * RNG.normal(size=(2, SIZE)))
    matrix = rows[:, None] * (np.eye(SIZE) + 0.01 * RNG.normal(size=(SIZE, SIZE))) * columns
    adjoint = jax.jit(gradient(system(matrix), itd.Implicit(KRYLOV)))(jnp.asarray(RHS))
    np.testing.assert_allclose(adjoint, np.linalg.solve(matrix.T, WEIGHTS), rtol=1e-6)


def test_a_batch_has_its_own_preconditioners():
    matrices = jnp.stack([jnp.asarray(GENERAL), jnp.asarray(GENERAL + np.diag(UNITS))])
    mode = itd.Implicit(KRYLOV, preconditioner="diagonal")

    def of(matrix):
        problem = itd.LinearSystem(lambda x, theta: matrix @ x, lambda theta: theta)
        return gradient(problem, mode)(jnp.asarray(RHS))

    for matrix, found in zip(matrices, jax.jit(jax.vmap(of))(matrices), strict=True):
        np.testing.assert_allclose(found, np.linalg.solve(matrix.T, WEIGHTS), rtol=1e-6)


def test_blocks_and_diagonals_are_found_by_products():
    # Blocks of three: with these as preconditioner, an iteration of five products suffices.
    blocks = RNG.normal(size=(20, 3, 3)) + 4 * np.eye(3)
    problem = itd.LinearSystem(
        lambda x, theta: jnp.einsum("mij,mj->mi", jnp.asarray(blocks), x), lambda theta: theta
    )
    solver = DenseOrKrylov(limits=Limits(0, 0, 0, 0, trial_max_products=5))
    x, w = jnp.zeros((20, 3)), jnp.asarray(WEIGHTS.reshape(20, 3))

    mode = itd.Implicit(solver, preconditioner="block")
    loss = lambda t: jnp.vdot(w, mode.attach(problem, x, t, throw=True))  # noqa: E731
    found = jax.jit(jax.grad(loss))(w)
    expected = np.linalg.solve(blocks.transpose(0, 2, 1), WEIGHTS.reshape(20, 3, 1))[..., 0]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("algorithm", [itd.Broyden(), itd.Chord()], ids=["broyden", "chord"])
def test_the_inverse_of_the_run_preconditions_its_derivative(algorithm):
    problem = itd.RootFinding(lambda x, theta: jnp.asarray(GENERAL) @ x + 0.01 * x**3 - theta)
    five = DenseOrKrylov(limits=Limits(0, 0, 0, 0, trial_max_products=5))
    mode = itd.Implicit(five, preconditioner="algorithm")
    stop = itd.ResidualBelow(rtol=1e-10, max_steps=50)

    @jax.jit
    def both(theta):
        def loss(theta, mode):
            x = itd.solve(problem, algorithm, theta, theta, stop=stop, mode=mode).x
            return jnp.asarray(WEIGHTS) @ x

        return jax.grad(loss)(theta, mode), jax.grad(loss)(theta, itd.Implicit())

    found, exact = both(0.01 * jnp.asarray(RHS))
    np.testing.assert_allclose(found, exact, rtol=1e-7)
    iterative = itd.Newton(lambda matvec, b: b)
    run = problem, iterative, jnp.zeros(SIZE), jnp.asarray(RHS)
    with pytest.raises(ValueError, match="Newton holds no inverse"):
        itd.solve(*run, stop=stop, mode=mode)
    with pytest.raises(ValueError, match="`preconditioner='algorithm'`"):
        derivatives(problem, mode)


BAD = {
    "shape": (lambda *_: lambda v: v[:3], ValueError),
    "structure": (lambda *_: lambda v: (v, v), ValueError),
    "not linear": (lambda *_: lambda v: v * v, TypeError),
    "no function": (lambda *_: 3.0, TypeError),
    "a number": (2.0, TypeError),
    "a word": ("jacobi", ValueError),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_preconditioner_is_refused(bad):
    given, error = BAD[bad]
    with pytest.raises(error, match="`preconditioner`"):
        derivatives(system(GENERAL), itd.Implicit(KRYLOV, preconditioner=given))


def test_a_guess_saves_products_and_a_wrong_one_changes_nothing():
    exact = np.linalg.solve(DEFINITE, WEIGHTS)

    @jax.jit
    def by(guess):
        problem = system(DEFINITE, positive_definite=True)
        return gradient(problem, itd.Implicit(KRYLOV, guess=guess))(jnp.asarray(RHS))

    near = exact * (1 + 1e-13 * RNG.normal(size=SIZE))
    found = by(near)
    # The guess meets the tolerance, so that no step is taken: it is returned as it is.
    np.testing.assert_allclose(found, near, rtol=1e-15)
    for guess in (1e3 * RHS, np.full(SIZE, np.nan), np.zeros(SIZE)):
        np.testing.assert_allclose(by(guess), exact, rtol=1e-7)


def test_a_state_is_handed_from_one_derivative_to_the_next():
    matrix = jnp.asarray(GENERAL)

    def loss(theta, state):
        problem = itd.RootFinding(lambda x, t: matrix @ x - t)
        mode = itd.Implicit(KRYLOV, guess=state, preconditioner=inverse_of(GENERAL))
        x = mode.attach(problem, jnp.linalg.solve(matrix, theta), theta, throw=True)
        return jnp.asarray(WEIGHTS) @ x

    step = itd.value_and_grad_with_state(loss)

    def two_steps(theta):
        def body(state, theta):
            _, gradient, state = step(theta, state)
            return state, (gradient, state.solution)

        return jax.lax.scan(body, itd.AdjointState.start(theta), jnp.stack([theta, 2 * theta]))[1]

    gradients, adjoints = jax.jit(jax.vmap(two_steps))(jnp.stack([RHS, -RHS]))
    expected = np.broadcast_to(np.linalg.solve(GENERAL.T, WEIGHTS), (2, 2, SIZE))
    np.testing.assert_allclose(adjoints, expected, rtol=1e-7)
    np.testing.assert_allclose(gradients, expected, rtol=1e-7)


def test_a_check_does_not_take_the_state_for_a_part_of_the_gradient():
    problem = itd.RootFinding(lambda x, theta: jnp.asarray(GENERAL[:5, :5]) @ x - 1e-6 * theta)

    def loss(theta, state):
        mode = itd.Checked(itd.Implicit(guess=state), on_failure="nan")
        x = jnp.linalg.solve(jnp.asarray(GENERAL[:5, :5]), 1e-6 * theta)
        return jnp.sum(itd.solve(problem, itd.Newton(), x, theta, stop=itd.Steps(1), mode=mode).x)

    step = jax.jit(itd.value_and_grad_with_state(loss))
    _, gradient, state = step(jnp.ones(5), itd.AdjointState.start(jnp.zeros(5)))
    adjoint = np.linalg.solve(GENERAL[:5, :5].T, np.ones(5))
    np.testing.assert_allclose(gradient, 1e-6 * adjoint, rtol=1e-9)
    np.testing.assert_allclose(state.solution, adjoint, rtol=1e-9)


def test_a_check_begins_with_the_adjoint_that_the_state_hands_on():
    counter = Counter()
    problem = itd.RootFinding(lambda x, theta: jnp.asarray(GENERAL) @ counter(x) - theta)
    x = jnp.asarray(np.linalg.solve(GENERAL, RHS))

    def loss(theta, state):
        mode = itd.Checked(itd.Implicit(KRYLOV, guess=state), on_failure="nan")
        return jnp.asarray(WEIGHTS) @ mode.attach(problem, x, theta, throw=True)

    step = jax.jit(itd.value_and_grad_with_state(loss))
    state, counts = itd.AdjointState.start(jnp.zeros(SIZE)), []
    for _ in range(2):
        _, found, state = step(jnp.asarray(RHS), state)
        counts.append(counter.take())
        np.testing.assert_allclose(found, np.linalg.solve(GENERAL.T, WEIGHTS), rtol=1e-6)
    mode = itd.Implicit(KRYLOV)
    jax.block_until_ready(jax.jit(gradient(problem, mode))(jnp.asarray(RHS)))
    alone = counter.take()
    # The check's solves stay; of the adjoint's own, only the look at its residual is left.
    assert counts[0] - counts[1] > 0.8 * alone


def test_a_state_of_another_problem_is_refused():
    state = itd.AdjointState.start({"other": jnp.zeros(3)})
    for guess in (state, jnp.zeros(3)):
        with pytest.raises(ValueError, match="`guess`"):
            derivatives(system(GENERAL), itd.Implicit(KRYLOV, guess=guess))


def test_any_function_solves_and_is_checked():
    def dense(matvec, b):
        return jnp.linalg.solve(jax.jacfwd(matvec)(b), b)

    tangent, adjoint = derivatives(system(GENERAL), itd.Implicit(dense))
    np.testing.assert_allclose(tangent, np.linalg.solve(GENERAL, RHS), rtol=1e-9)
    np.testing.assert_allclose(adjoint, np.linalg.solve(GENERAL.T, WEIGHTS), rtol=1e-9)
    with pytest.raises(RuntimeError, match="linear solve"):
        jax.block_until_ready(derivatives(system(GENERAL), itd.Implicit(lambda matvec, b: 2 * b)))
    with pytest.raises(ValueError, match="`linear_solver`"):
        derivatives(system(GENERAL), itd.Implicit(lambda matvec, b: b[:2]))
    with pytest.raises(TypeError, match="`linear_solver`"):
        itd.Implicit(lx.CG)


def test_least_squares_by_name_where_the_equation_leaves_something_open():
    # x is determined up to a constant.
    laplacian = 2 * np.eye(5) - np.roll(np.eye(5), 1, 0) - np.roll(np.eye(5), -1, 0)
    problem = itd.Minimization(
        lambda x, t: 0.5 * x @ jnp.asarray(laplacian) @ x - x @ (t - jnp.mean(t))
    )
    theta = jnp.arange(5.0)
    x = jnp.linalg.pinv(laplacian) @ theta

    def answer(theta, throw=True):
        return itd.Implicit(singular="least_squares").attach(problem, x, theta, throw=throw)

    pinv = np.linalg.pinv(laplacian)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(answer))(theta), pinv, atol=1e-12)
    seen = jax.jit(jax.grad(lambda t: jnp.sum(jnp.diff(answer(t)) ** 2)))(theta)
    difference = np.diff(np.eye(5), axis=0)
    np.testing.assert_allclose(seen, 2 * pinv @ difference.T @ difference @ x, atol=1e-12)
    with pytest.raises(RuntimeError, match="null space"):
        jax.grad(lambda t: answer(t)[0])(theta)
    with pytest.raises(ValueError, match="`singular`"):
        itd.Implicit(lx.SVD(), singular="least_squares")
