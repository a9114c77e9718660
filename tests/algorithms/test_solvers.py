"""Each algorithm on a problem with a known rate, and what must not be unrolled."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.algorithms.base import Iterate
from tests.cases import build

ROUNDING = 1e-12


def iterates(problem, algorithm, x0, theta, steps):
    """Return the iterates 0 ... steps, stacked, as a NumPy array."""

    def body(state, _):
        return algorithm.step(problem, state, theta), state.x

    @jax.jit
    def run(x0, theta):
        start = algorithm.init(problem, x0, theta)
        end, xs = jax.lax.scan(body, start, None, steps)
        return jnp.concatenate([xs, end.x[None]])

    return np.asarray(run(x0, theta))


def laplacian(size):
    return 2 * np.eye(size) - np.eye(size, k=1) - np.eye(size, k=-1)


def tridiagonal(size):
    matrix = laplacian(size)
    return itd.LinearSystem(matrix, lambda b: b, positive_definite=True), matrix


square = itd.RootFinding(lambda x, theta: x**2 - theta)


# Rates

CURVATURES = jnp.array([4.0, 1.0])  # the faster component vanishes within 25 steps


def bowl(x, theta):
    return jnp.sum(CURVATURES * (x - theta) ** 2) / 2


def root(step_size, momentum, *, ahead):
    """Return the largest root of the recursion of a momentum method at curvature 1."""
    kept = 1 - step_size
    middle = (1 + momentum) * kept if ahead else momentum + kept
    return max(np.abs(np.roots([1, -middle, momentum * (kept if ahead else 1)])))


MINIMUM = itd.Minimization(bowl)
SYSTEM = itd.LinearSystem(jnp.diag(CURVATURES), lambda theta: CURVATURES * theta)
SPARSE_MINIMUM = itd.CompositeMinimization(
    bowl, lambda x, step_size, theta: itd.prox.soft_threshold(x, 1.5 * step_size)
)
LINEAR_RATES = {
    # problem, algorithm, solution at theta = 1, rate
    "GradientDescent": (MINIMUM, itd.GradientDescent(0.3), (1, 1), 0.7),
    "HeavyBall": (MINIMUM, itd.HeavyBall(0.2, 0.1), (1, 1), root(0.2, 0.1, ahead=False)),
    "Nesterov": (MINIMUM, itd.Nesterov(0.2, 0.1), (1, 1), root(0.2, 0.1, ahead=True)),
    "Richardson": (SYSTEM, itd.Richardson(0.3), (1, 1), 0.7),
    "Picard": (
        itd.FixedPoint(lambda x, theta: -0.6 * x + 1.6 * theta),
        itd.Picard(0.5),
        (1, 1),
        0.2,
    ),
    # the second coordinate, which descent would approach at rate 0.7, is not in the support
    "ProximalGradient": (SPARSE_MINIMUM, itd.ProximalGradient(0.3), (0.625, 0), 0.2),
}


@pytest.mark.parametrize("name", LINEAR_RATES)
def test_linear_rates(name):
    problem, algorithm, solution, known = LINEAR_RATES[name]
    steps = 25 if known > 0.5 else 12
    x = iterates(problem, algorithm, jnp.array([2.0, -1.0]), jnp.ones(2), steps)
    assert abs(rate(np.linalg.norm(x - np.array(solution), axis=1)) - known) < 1e-6


def test_newton_is_quadratic():
    # e_{t+1} = e_t^2 / (2 x_t) for x^2 = 1
    errors = iterates(square, itd.Newton(), jnp.array(1.25), jnp.array(1.0), 3) - 1
    assert np.max(np.abs(errors[1:] / errors[:-1] ** 2 * 2 * (1 + errors[:-1]) - 1)) < 1e-5


def test_conjugate_gradients_keep_their_bound_and_end_in_n_steps():
    problem, matrix = tridiagonal(8)
    b = jnp.array([1.0, -2.0, 0.5, 3.0, 0.0, 1.0, 4.0, -1.0])
    errors = iterates(problem, itd.ConjugateGradient(), jnp.zeros(8), b, 8)
    errors = errors - np.linalg.solve(matrix, b)
    energies = np.sqrt(np.einsum("ti,ij,tj->t", errors, matrix, errors))
    root_of_condition = np.sqrt(np.linalg.cond(matrix))
    factor = (root_of_condition - 1) / (root_of_condition + 1)
    assert np.all(energies <= 2 * factor ** np.arange(9.0) * energies[0])
    assert np.linalg.norm(errors[8]) < ROUNDING
    assert np.linalg.norm(errors[6]) > 1e-3


def test_chord_converges_at_the_rate_of_its_first_jacobian():
    # r = x^2 - 1 from 5/4: the error shrinks by 1 - r'(1) / r'(5/4) = 1/5
    errors = np.abs(iterates(square, itd.Chord(), jnp.array(1.25), jnp.array(1.0), 9) - 1)
    assert abs(errors[9] / errors[8] - 0.2) < 1e-5


def test_broyden_in_one_unknown_is_the_secant_method():
    # e_{t+1} = r'' / (2 r') e_t e_{t-1} to leading order; r'' / (2 r') = 1/2 at the root 1
    errors = iterates(square, itd.Broyden(), jnp.array(1.25), jnp.array(1.0), 5) - 1
    assert abs(errors[4] / (errors[3] * errors[2]) - 0.5) < 1e-3
    assert 0 < abs(errors[4]) < 1e-7


@pytest.mark.parametrize("start", [0.3, -5.0])
def test_bisection_halves_its_bracket(start):
    bisection = itd.Bisection(0.0, 4.0)
    x = iterates(square, bisection, jnp.array(start), jnp.array(2.0), 40)
    bounds = 4.0 / 2.0 ** np.arange(1.0, 41.0)
    assert np.all(np.abs(x[1:] - np.sqrt(2.0)) <= bounds)
    met = iterates(square, bisection, jnp.array(2.0), jnp.array(4.0), 3)
    assert np.all(met == 2.0)  # and kept


def test_anderson_with_a_long_window_ends_in_n_plus_one_steps():
    case = build("affine_contraction")
    x = iterates(case.problem, itd.Anderson(4), case.x0, case.theta, 5)
    errors = np.linalg.norm(x - np.asarray(case.solution(case.theta)), axis=1)
    assert errors[5] < ROUNDING
    assert errors[4] > 1e-6


def rate(errors):
    return errors[-1] / errors[-2]


def test_gauss_seidel_squares_the_rate_of_jacobi():
    problem, matrix = tridiagonal(4)
    b = jnp.array([1.0, -2.0, 0.5, 3.0])
    truth = np.linalg.solve(matrix, b)
    x = iterates(problem, itd.Jacobi(), jnp.zeros(4), b, 60)
    errors = np.linalg.norm(x - truth, axis=1)  # of both signs: two steps at a time
    assert abs(errors[-1] / errors[-3] - np.cos(np.pi / 5) ** 2) < 1e-6
    x = iterates(problem, itd.GaussSeidel(), jnp.zeros(4), b, 25)
    assert abs(rate(np.linalg.norm(x - truth, axis=1)) - np.cos(np.pi / 5) ** 2) < 1e-6
    same = iterates(problem, itd.SOR(1.0), jnp.zeros(4), b, 25)
    assert np.array_equal(x, same)


def test_jacobi_takes_a_diagonal_that_is_given():
    problem, matrix = tridiagonal(4)
    b = jnp.array([1.0, -2.0, 0.5, 3.0])
    given = itd.Jacobi(diagonal=lambda b: jnp.full_like(b, 2.0))
    x, same = (iterates(problem, a, jnp.zeros(4), b, 3) for a in (itd.Jacobi(), given))
    assert np.array_equal(x, same)
    assert np.max(np.abs(x[1] - np.asarray(b) / 2)) < ROUNDING


def test_sor_converges_at_youngs_rate():
    problem, matrix = tridiagonal(5)
    b = jnp.array([1.0, -2.0, 0.5, 3.0, 1.0])
    x = iterates(problem, itd.SOR(1.2), jnp.zeros(5), b, 40)
    errors = np.linalg.norm(x - np.linalg.solve(matrix, b), axis=1)
    wide = 1.2 * np.cos(np.pi / 6)
    young = (wide + np.sqrt(wide**2 - 4 * 0.2)) ** 2 / 4
    assert abs(rate(errors) - young) < 1e-6


def test_gmres_minimises_the_residual_over_the_krylov_space():
    case = build("dominant_system")
    matrix, b = np.asarray(case.theta["matrix"]), np.asarray(case.theta["rhs"])
    x = iterates(case.problem, itd.GMRES(2), case.x0, case.theta, 2)
    krylov = np.stack([b, matrix @ b], axis=1)
    weights = np.linalg.lstsq(matrix @ krylov, b)[0]
    assert np.max(np.abs(x[1] - krylov @ weights)) < ROUNDING
    full = iterates(case.problem, itd.GMRES(50), case.x0, case.theta, 2)
    assert np.max(np.abs(full[1:] - np.asarray(case.solution(case.theta)))) < ROUNDING


def test_fista_keeps_its_bound_and_starts_as_proximal_gradient():
    case, step = build("lasso"), 0.1
    x = iterates(case.problem, itd.FISTA(step), case.x0, case.theta, 60)
    plain = iterates(case.problem, itd.ProximalGradient(step), case.x0, case.theta, 60)
    truth = np.asarray(case.solution(case.theta))

    def objective(x):
        return case.problem.smooth(x, case.theta) + case.problem.penalty(x, case.theta)

    gaps = np.asarray(jax.jit(jax.vmap(objective))(np.concatenate([x, truth[None]])))
    bounds = 2 * np.sum(truth**2) / (step * np.arange(1.0, 62.0) ** 2)
    assert np.all(gaps[:-1] - gaps[-1] <= bounds)
    assert np.array_equal(x[1], plain[1])
    assert np.linalg.norm(x[15] - truth) < np.linalg.norm(plain[15] - truth) / 2


# At the solution, and what must not be unrolled

SAFE = {
    "sqrt": (itd.Chord(), itd.Broyden()),
    "cosine": (itd.Anderson(2),),
    "dominant_system": (itd.GaussSeidel(), itd.SOR(0.9), itd.GMRES(2)),
    "lasso": (itd.FISTA(0.5),),
}


@pytest.mark.parametrize("name", SAFE)
def test_steps_from_the_solution_stay_and_have_finite_derivatives(name):
    case = build(name)
    x = case.solution(case.theta)
    tangent = jax.tree.map(jnp.ones_like, case.theta)

    @jax.jit
    def run(theta):
        def ends(theta):
            out = []
            for algorithm in SAFE[name]:
                state = algorithm.init(case.problem, x, theta)
                for _ in range(2):
                    state = algorithm.step(case.problem, state, theta)
                out.append(state.x)
            return out

        return jax.jvp(ends, (theta,), (tangent,))

    ends, moves = run(case.theta)
    for end, move in zip(ends, moves, strict=True):
        assert np.max(np.abs(np.asarray(end) - np.asarray(x))) < ROUNDING
        assert np.all(np.isfinite(move))


@pytest.mark.parametrize("mode", [itd.Unrolled(), itd.OneStep()])
def test_bisection_cannot_be_unrolled(mode):
    assert not itd.Bisection(0.0, 4.0).differentiable
    with pytest.raises(ValueError, match=r"`mode`.*Bisection.*iterdiff.Implicit"):
        itd.solve(
            square,
            itd.Bisection(0.0, 4.0),
            jnp.array(1.0),
            jnp.array(2.0),
            stop=itd.Steps(5),
            mode=mode,
        )


def test_anderson_warns_when_it_is_unrolled():
    case = build("cosine")
    assert itd.Anderson(2).differentiable
    with pytest.warns(UserWarning, match="Anderson"):
        itd.solve(
            case.problem,
            itd.Anderson(2),
            case.x0,
            case.theta,
            stop=itd.Steps(3),
            mode=itd.Unrolled(),
        )


def test_bisection_without_a_sign_change_is_a_status():
    def end(lower):
        method = itd.Bisection(lower, 4.0)
        return itd.solve(
            square, method, jnp.array(3.0), jnp.array(2.0), stop=itd.Steps(60), throw=False
        )

    found = jax.vmap(end)(jnp.array([2.0, 0.0]))
    assert found.status.tolist() == [itd.Status.DIVERGED, itd.Status.STEPS_DONE]
    np.testing.assert_allclose(found.x, [3.0, 2.0**0.5], rtol=1e-12)
    assert "`lower` and `upper`" in itd.Status.DIVERGED.advice


MATRIX = jnp.array([[4.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 2.0]])


@pytest.mark.parametrize("dtype, scale", [("float32", 1e-25), ("float32", 1e18), ("float64", 1.0)])
def test_conjugate_gradients_rest_after_convergence(dtype, scale):
    matrix, ones = MATRIX.astype(dtype), jnp.ones(3, dtype)
    system = itd.LinearSystem(
        lambda x, theta: matrix @ x + theta * x,
        lambda theta: jnp.asarray(scale, dtype) * ones,
        positive_definite=True,
    )

    def total(theta):
        method, mode = itd.ConjugateGradient(), itd.Unrolled()
        stop = itd.Steps(40)
        return jnp.sum(itd.solve(system, method, 0 * ones, theta, stop=stop, mode=mode).x) / scale

    inverse = np.linalg.inv(np.asarray(MATRIX) + np.eye(3))
    value, slope = jax.value_and_grad(total)(jnp.ones((), dtype))
    tolerance = 100 * jnp.finfo(dtype).eps
    np.testing.assert_allclose(value, inverse.sum(), rtol=tolerance)
    np.testing.assert_allclose(slope, -(inverse @ inverse).sum(), rtol=tolerance)


# A user's own algorithm


class Halving(itd.Algorithm):
    """An algorithm whose step JAX cannot trace."""

    by_numpy: bool
    accepts = (itd.Minimization,)

    def init(self, problem, x0, theta):
        """Return the start."""
        del problem, theta
        return Iterate(x0)

    def step(self, problem, state, theta):
        """Return half the iterate."""
        del problem, theta
        if self.by_numpy:
            return Iterate(jnp.asarray(np.asarray(state.x) / 2))
        return Iterate(state.x / 2 if state.x[0] > 0 else state.x)


def advice_in(error):
    """Return whether a note on the error names the algorithm and the alternative."""
    return any("Halving" in note and "@iterdiff.implicit" in note for note in error.__notes__)


@pytest.mark.parametrize("by_numpy", [True, False])
def test_a_step_that_jax_cannot_trace_raises_with_advice(by_numpy):
    with pytest.raises(jax.errors.JAXTypeError) as caught:
        itd.solve(MINIMUM, Halving(by_numpy), jnp.ones(2), jnp.ones(2), stop=itd.Steps(2))
    assert caught.traceback[-1].name != "solve"  # the user's line is in the traceback
    assert any(entry.name == "step" and entry.path == Path(__file__) for entry in caught.traceback)
    assert advice_in(caught.value)


def test_measuring_such_a_step_raises_with_the_same_advice():
    run = MINIMUM, Halving(by_numpy=True), jnp.ones(2), jnp.ones(2)
    unrolled = {"unrolled": itd.Unrolled()}
    for measure in (
        lambda: itd.trace(*run, steps=2, modes=unrolled),
        lambda: itd.trace(*run, steps=2, modes=unrolled, reference=jnp.zeros(2)),
        lambda: itd.diagnose(*run),
    ):
        with pytest.raises(jax.errors.JAXTypeError) as caught:
            measure()
        assert advice_in(caught.value)
