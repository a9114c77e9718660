"""The accelerated pair of iterate and tangents: right, sooner, in forward mode only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.loop.task import Task
from tests.helpers import compiled, relative_error

ACCELERATED = itd.Unrolled(accelerate=10)
MODES = {"plain": itd.Unrolled(), "pair": ACCELERATED}


def slow_quadratic(kappa, seed=0, n=12, p=2):
    """Return a quadratic whose matrix, with spectrum in [kappa, 1], moves with theta."""
    draw = np.random.default_rng(seed)
    q = np.linalg.qr(draw.normal(size=(n, n)))[0]
    values = np.r_[kappa, 2 * kappa, draw.uniform(kappa, 1, n - 3), 1.0]
    root = q * np.sqrt(values)
    moves = draw.normal(size=(p, n, n)) / np.sqrt(n)
    moves = jnp.asarray(root @ ((moves + moves.transpose(0, 2, 1)) / 2) @ root.T)
    matrix, slopes = jnp.asarray(root @ root.T), jnp.asarray(draw.normal(size=(n, p)) * 0.3)
    right = matrix @ jnp.asarray(draw.normal(size=n))

    def objective(x, theta):
        return x @ (matrix + jnp.tensordot(theta, moves, 1)) @ x / 2 - (right - slopes @ theta) @ x

    def solution(theta):
        return jnp.linalg.solve(matrix + jnp.tensordot(theta, moves, 1), right - slopes @ theta)

    x0 = jnp.asarray(draw.normal(size=n))
    return itd.Minimization(objective), itd.GradientDescent(1.0), x0, jnp.zeros(p), solution


def slow_logistic(seed=1, rows=40, n=6):
    """Return a logistic regression, regularised for every weight by itself."""
    draw = np.random.default_rng(seed)
    data = jnp.asarray(draw.normal(size=(rows, n)) * np.linspace(0.5, 3, n))

    def objective(x, theta):
        return jnp.mean(jax.nn.softplus(-data @ x)) + jnp.sum(jnp.exp(theta) * x**2) / 2

    step = 1 / (np.linalg.eigvalsh(data.T @ data / rows)[-1] / 4 + 0.02)
    theta = jnp.full(n, np.log(0.02))
    return itd.Minimization(objective), itd.GradientDescent(step), jnp.zeros(n), theta, None


def slow_contraction():
    """Return a scalar contraction with rate 0.98."""
    problem = itd.FixedPoint(lambda x, theta: 0.98 * jnp.sin(x) + theta)
    return problem, itd.Picard(), jnp.array(0.0), jnp.array(0.001), None


def relative_errors(data, mode):
    error = data.jacobian_error.sel(mode=mode).values
    return error / data.jacobian_error.attrs["reference_norm"]


@pytest.mark.parametrize(
    ("made", "steps"),
    [(lambda: slow_quadratic(1e-3), 600), (slow_logistic, 300), (slow_contraction, 150)],
    ids=["quadratic", "logistic", "scalar"],
)
def test_the_pair_arrives_in_a_third_of_the_iterations_and_stays(made, steps):
    *task, solution = made()
    data = itd.trace(*task, steps=steps, modes=MODES, every=10, reference=solution)
    plain, pair = (relative_errors(data, mode) <= 1e-6 for mode in MODES)
    assert pair.any()
    first = int(np.argmax(pair))
    assert 3 * first < pair.size and not plain[: 3 * first].any()
    assert first + 10 <= pair.size - 1 and pair[first:].all(), "stays to the end of the run"


def tree_problem(dtype="float64"):
    """Return a pytree problem whose solution is known: x = (theta, exp(theta)) by parts."""

    def objective(x, theta):
        smooth = jnp.sum((x["a"] - theta["t"]) ** 2 * weights) / 2
        return smooth + jnp.sum(jnp.exp(x["b"])) - jnp.sum(x["b"] * theta["s"])

    weights = jnp.asarray([0.05, 0.4, 1.0], dtype)
    x0 = {"a": jnp.zeros(3, dtype), "b": jnp.zeros((), dtype)}
    theta = {"t": jnp.asarray([1.0, -1.0, 2.0], dtype), "s": jnp.asarray(1.3, dtype), "n": "name"}
    return itd.Minimization(objective), itd.GradientDescent(0.6), x0, theta


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_solve_of_a_pytree_in_both_precisions(dtype, tolerance):
    problem, algorithm, x0, theta = tree_problem(dtype)

    def answer(t, s, mode):
        stop = itd.Steps(40)
        return itd.solve(problem, algorithm, x0, {**theta, "t": t, "s": s}, stop=stop, mode=mode).x

    values = theta["t"], theta["s"]
    found = jax.jacfwd(answer, (0, 1))(*values, ACCELERATED)
    zeros = jnp.zeros(3, dtype)
    expected = {"a": (jnp.eye(3, dtype=dtype), zeros), "b": (zeros, 1 / theta["s"])}
    assert relative_error(found, expected) < tolerance
    plain = answer(*values, itd.Unrolled())
    for u, v in zip(
        jax.tree.leaves(answer(*values, ACCELERATED)), jax.tree.leaves(plain), strict=True
    ):
        np.testing.assert_array_equal(u, v)  # the answer is that of the plain run


QUADRATIC = slow_quadratic(1e-2)


def run(theta, stop, mode=ACCELERATED):
    problem, algorithm, x0 = QUADRATIC[:3]
    return itd.solve(problem, algorithm, x0, theta, stop=stop, mode=mode)


def test_solve_gives_what_trace_shows():
    data = itd.trace(*QUADRATIC[:4], steps=25, modes=MODES, reference=QUADRATIC[4])
    theta, truth = QUADRATIC[3], jax.jacfwd(QUADRATIC[4])(QUADRATIC[3])
    for steps in (1, 25):
        found = compiled(jax.jacfwd(lambda theta, n=steps: run(theta, itd.Steps(n)).x))(theta)
        error = float(jnp.linalg.norm(found - truth))
        np.testing.assert_allclose(error, data.jacobian_error.sel(mode="pair")[steps], rtol=1e-6)
    # One step from the start is a plain one; afterwards the pair goes its own way.
    one = data.jacobian_error.sel(iteration=1)
    np.testing.assert_allclose(one[1], one[0], rtol=1e-12)
    late = data.jacobian_error.sel(iteration=25)
    assert late[1] < late[0] / 3


def test_members_of_a_batch_have_pairs_of_their_own():
    stop = itd.ResidualBelow(rtol=1e-6, max_steps=5000)
    batch = jnp.array([[0.0, 0.0], [0.3, -0.2]])

    def both(theta):
        return jax.jacfwd(lambda theta: run(theta, stop).x)(theta), run(theta, stop).steps

    found, steps = compiled(jax.vmap(both))(batch)
    assert steps[0] != steps[1]
    for theta, jacobian in zip(batch, found, strict=True):
        assert relative_error(jacobian, jax.jacfwd(QUADRATIC[4])(theta)) < 1e-9


def test_values_that_the_problem_closes_over_and_the_start_have_derivatives():
    def answer(shift, start, steps):
        problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta * shift) ** 2) / 2)
        stop = itd.Steps(steps)
        algorithm = itd.GradientDescent(0.1)
        return itd.solve(problem, algorithm, start, 3.0, stop=stop, mode=ACCELERATED).x

    start = jnp.array([1.0, 2.0])
    by_shift = jax.jacfwd(answer)(0.5, start, 10)
    np.testing.assert_allclose(by_shift, 3.0, rtol=1e-12)
    # One step: I - h H, as plain; the solution does not depend on the start.
    by_start = jax.jacfwd(answer, 1)
    np.testing.assert_allclose(by_start(0.5, start, 1), 0.9 * jnp.eye(2), rtol=1e-12)
    np.testing.assert_allclose(by_start(0.5, start, 10), 0.0, atol=1e-12)


def test_a_rule_that_judges_the_derivative_stops_sooner():
    stop = itd.DerivativeErrorBelow(1e-6, max_steps=3000)
    taken = compiled(lambda theta: run(theta, stop).steps)(QUADRATIC[3])
    # Plain, the slowest mode alone needs log(1e-6) / log(1 - kappa) = 1375 iterations.
    assert 10 <= taken and 3 * taken <= 1375


@pytest.mark.parametrize(
    "derivative",
    [
        lambda f: jax.grad(f),
        lambda f: jax.jit(jax.grad(f)),
        lambda f: jax.jacfwd(jax.jacfwd(f)),
        lambda f: jax.hessian(f),
    ],
    ids=["grad", "jit of grad", "second, forward", "hessian"],
)
def test_other_derivatives_are_refused(derivative):
    def loss(theta):
        return jnp.sum(run(theta, itd.Steps(3)).x ** 2)

    with pytest.raises(RuntimeError, match=r"forward mode.*jax.jacfwd.*iterdiff.Implicit\(\)"):
        derivative(loss)(QUADRATIC[3])


def test_algorithms_that_remember_more_are_refused():
    problem, _, x0, theta, _ = QUADRATIC
    task = Task(problem, itd.HeavyBall(0.5, 0.5), x0, theta, itd.Steps(3))
    for call in (
        lambda: ACCELERATED.solve(task, throw=True),
        lambda: ACCELERATED.tangents(task, jnp.eye(2)),
    ):
        with pytest.raises(ValueError, match=r"`mode`.*accelerate.*HeavyBall.*Picard"):
            call()


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`accelerate` and `last`"):
        itd.Unrolled(last=3, accelerate=10)
    with pytest.raises(ValueError, match="`accelerate`"):
        itd.Unrolled(accelerate=0)
