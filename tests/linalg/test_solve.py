"""Linear solves: every method on both sides of every switch, and failures that are reported."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.jaxtools.jaxpr import does
from iterdiff.linalg import krylov
from iterdiff.linalg import solve as linear
from iterdiff.linalg.matrix import LinearMap
from iterdiff.linalg.solve import FEWEST, SHARE, SLOWER, SMALL, Structure, inverse, limits
from tests.helpers import compiled, relative_error

SIZE = 12
GENERAL = Structure(symmetric=False, positive_definite=False)
SYMMETRIC = Structure(symmetric=True, positive_definite=False)
DEFINITE = Structure(symmetric=True, positive_definite=True)


def _orthogonal(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(SIZE, SIZE)))[0]


def _with_spectrum(spectrum) -> np.ndarray:
    q = _orthogonal(0)
    matrix = (q * np.asarray(spectrum)) @ q.T
    return (matrix + matrix.T) / 2


SPD = _with_spectrum(np.linspace(1, 10, SIZE))
INDEFINITE = _with_spectrum(np.where(np.arange(SIZE) % 3, 1, -1) * np.linspace(1, 5, SIZE))
NONSYMMETRIC = _with_spectrum(np.linspace(2, 6, SIZE)) + 0.5 * _orthogonal(1)
RHS = np.random.default_rng(2).normal(size=SIZE)

# An indefinite matrix that is said to be definite: Cholesky and conjugate gradients find out.
OPERATORS = {
    "definite": (SPD, DEFINITE),
    "symmetric": (INDEFINITE, SYMMETRIC),
    "not_definite_after_all": (INDEFINITE, DEFINITE),
    "general": (NONSYMMETRIC, GENERAL),
}
# (TINY, SMALL, FALLBACK, SLOWER): the matrix at once, by LU or as the structure says; a Krylov
# method that gives up after a step, since it has no time, then the matrix; a Krylov method with
# time enough; a Krylov method alone
METHODS = {
    "tiny": (SIZE, SIZE, SIZE, 5),
    "dense": (0, SIZE, SIZE, 5),
    "fallback": (0, 0, SIZE, 5),
    "patient": (0, 0, SIZE, 1e-9),
    "krylov": (0, 0, 0, 5),
}


@pytest.fixture(params=METHODS)
def method(request, monkeypatch) -> str:
    """Run the test once for each method."""
    force(monkeypatch, request.param)
    return request.param


def force(monkeypatch, method: str) -> None:
    names = ("TINY", "SMALL", "FALLBACK", "SLOWER")
    for name, value in zip(names, METHODS[method], strict=True):
        monkeypatch.setattr(linear, name, value)
    monkeypatch.setattr(linear, "FEWEST", 0)  # so small a system is worth no trial


def solve(matrix, b, structure, **options):
    b = jnp.asarray(b)
    return inverse(lambda v: matrix @ v, b, structure, **options)(b)


@pytest.mark.parametrize("kind", OPERATORS)
def test_solves_transposes_and_batches(kind, method):
    if kind == "not_definite_after_all" and method == "krylov":
        pytest.skip("nothing to fall back on: see test_gives_up_on_negative_curvature")
    matrix, structure = OPERATORS[kind]
    several = np.stack([RHS, 1e-200 * RHS[::-1], np.zeros(SIZE), 1e150 * RHS])

    @compiled
    def everything(matrix, b, several):
        def inverse(v):
            return solve(matrix, v, structure)

        transposed = jax.vjp(inverse, b)[1](b)[0]
        return inverse(b), transposed, jax.vmap(inverse)(several)

    x, transposed, batch = everything(matrix, RHS, several)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, RHS), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(transposed, np.linalg.solve(matrix.T, RHS), rtol=1e-8, atol=1e-8)
    for row, b in zip(batch, several, strict=True):
        size = np.max(np.abs(b)) or 1.0
        np.testing.assert_allclose(row / size, np.linalg.solve(matrix, b / size), atol=1e-8)


def test_the_switches_are_really_thrown(monkeypatch):
    # told by the factorisations in the program
    def factorisations(method, structure):
        force(monkeypatch, method)
        jaxpr = jax.make_jaxpr(lambda m, b: solve(m, b, structure))(SPD, RHS).jaxpr
        return {name for name in ("lu", "cholesky", "qr") if does(jaxpr, (name,))}

    assert factorisations("dense", GENERAL) == {"lu"}
    assert factorisations("tiny", DEFINITE) == {"lu"}
    assert factorisations("dense", DEFINITE) == {"cholesky", "qr"}
    assert factorisations("fallback", DEFINITE) == {"cholesky", "qr"}
    assert factorisations("krylov", DEFINITE) == set()


def test_gives_up_on_negative_curvature(monkeypatch):
    force(monkeypatch, "krylov")
    # also of a right-hand side so small, or large, that its squared norm is 0 or infinity
    for scale in (1.0, 1e-200, 1e200):
        x = compiled(lambda m, b: solve(m, b, DEFINITE))(INDEFINITE, scale * RHS)
        assert np.all(np.isnan(x))


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_a_singular_operator_is_reported(method, scale):
    if method == "krylov":
        structure, matrix = DEFINITE, _with_spectrum([0.0, *np.linspace(1, 3, SIZE - 1)])
    else:
        structure, matrix = GENERAL, np.diag([0.0, *np.linspace(1, 3, SIZE - 1)])
    quiet = compiled(lambda m, b: solve(m, b, structure))(matrix, scale * RHS)
    assert np.all(np.isnan(quiet))
    loud = compiled(lambda m, b: solve(m, b, structure, throw=True))
    with pytest.raises(RuntimeError, match="residual is singular or nearly so"):
        jax.block_until_ready(loud(matrix, scale * RHS))


def test_what_is_not_finite_passes_through(method):
    # it is somebody else's failure
    b = RHS.copy()
    b[3] = np.nan
    x = compiled(lambda m, b: solve(m, b, GENERAL, throw=True))(NONSYMMETRIC, b)
    assert np.all(np.isnan(x))


def test_batches_of_operators(method):
    # members that need the fallback beside members that do not
    matrices = np.stack([SPD, INDEFINITE, SPD + np.eye(SIZE)])
    structure = DEFINITE if method != "krylov" else SYMMETRIC
    x = compiled(jax.vmap(lambda m, b: solve(m, b, structure), in_axes=(0, None)))(matrices, RHS)
    for row, matrix in zip(x, matrices, strict=True):
        np.testing.assert_allclose(row, np.linalg.solve(matrix, RHS), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("structure", [DEFINITE, GENERAL], ids=["definite", "general"])
def test_second_derivatives_through_the_operator(method, structure):
    weights = np.random.default_rng(3).normal(size=SIZE)

    def value(by, p):
        matrix = SPD + jnp.diag(p[0] * jnp.linspace(0, 1, SIZE)) + p[1] ** 2 * jnp.eye(SIZE)
        return weights @ by(matrix, RHS * p[0])

    def second(by):
        return lambda p: (jax.jacfwd(jax.grad(lambda p: value(by, p)))(p),)

    p = jnp.array([0.7, 0.4])
    found = compiled(second(lambda m, b: solve(m, b, structure)))(p)
    assert relative_error(found, compiled(second(jnp.linalg.solve))(p)) < 1e-8


def test_float32_has_a_tolerance_of_its_own(method):
    matrix, b = SPD.astype(np.float32), RHS.astype(np.float32)
    x = compiled(lambda m, b: solve(m, b, DEFINITE, throw=True))(matrix, b)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, np.linalg.solve(SPD, RHS), atol=1e-5)
    tiny = compiled(lambda m, b: solve(m, b, DEFINITE))(matrix, np.float32(1e-30) * b)
    np.testing.assert_allclose(tiny / np.float32(1e-30), x, atol=1e-5)


# Who goes first: counted work, and observed convergence

LARGE = SMALL + 40


def _spread(condition: float, size: int = LARGE) -> np.ndarray:
    """Return a symmetric matrix with eigenvalues from 1 / condition to 1, in a random basis."""
    basis = np.linalg.qr(np.random.default_rng(6).normal(size=(size, size)))[0]
    return (basis * np.logspace(-np.log10(condition), 0, size)) @ basis.T


def products(method, matrix, limits, b=None):
    """Return how many products a Krylov method took, and whether it came through."""
    calls = []

    def matvec(v):
        jax.debug.callback(lambda: calls.append(1))
        return matrix @ v

    b = jnp.ones(len(matrix)) if b is None else b
    unit = b / jnp.linalg.norm(b)
    _, solved = compiled(lambda: method(matvec, unit, limits, 1e-10))()
    jax.effects_barrier()
    return len(calls), bool(solved)


@pytest.mark.parametrize("method", [krylov.conjugate_gradients, krylov.gmres])
def test_a_krylov_method_gives_up_after_its_trial(method):
    limits = krylov.Limits(trial=6, most=60)
    count, solved = products(method, _spread(1e8), limits)
    assert not solved
    assert count <= limits.trial + 1
    count, solved = products(method, _spread(1.5), limits)
    assert solved
    assert limits.trial < count <= limits.most
    # one whose progress breaks off: what is easy is done, and a little of what is not remains
    half = LARGE // 2
    hard = np.diag(np.concatenate([np.linspace(1, 1.5, half), np.logspace(-8, -1, LARGE - half)]))
    count, solved = products(method, hard, limits, np.repeat([1.0, 1e-4], (half, LARGE - half)))
    assert not solved
    assert limits.trial < count <= limits.most


def test_gmres_starts_anew_and_still_arrives():
    matrix = np.eye(LARGE) + np.diag(np.full(LARGE - 1, 0.8), 1)  # slow: far from normal
    count, solved = products(krylov.gmres, matrix, krylov.Limits(10**4, 10**4))
    assert solved
    assert count > krylov.RESTART


@pytest.mark.parametrize("structure", [DEFINITE, GENERAL], ids=["definite", "general"])
def test_the_trial_is_a_small_share_of_the_dense_method(structure):
    matrix = jnp.asarray(_spread(10.0))
    linear_map = LinearMap.of(lambda v: matrix @ v, matrix[0])
    within = limits(linear_map, structure)
    factoring = (1 if structure.positive_definite else 2) * LARGE**3 / 3
    assert within.trial * SLOWER * 2 * LARGE**2 <= SHARE * factoring
    # of many right-hand sides, each takes its products, and the matrix is factored once
    many = limits(linear_map, structure, LARGE)
    assert many.trial < FEWEST
    # data with many rows: products are dear, but so is the matrix
    tall = jnp.concatenate([matrix] * 8)
    gram = limits(LinearMap.of(lambda v: tall.T @ (tall @ v), matrix[0]), structure)
    assert gram.most > within.most


@pytest.mark.parametrize("condition", [1.5, 1e6])
@pytest.mark.parametrize("structure", [DEFINITE, GENERAL], ids=["definite", "general"])
def test_both_sides_of_the_switch_are_right(monkeypatch, condition, structure):
    monkeypatch.setattr(linear, "FEWEST", 0)
    matrix = _spread(condition)
    weights = np.random.default_rng(7).normal(size=(3, LARGE))

    @compiled
    def everything(matrix, b):
        def inverse(v):
            return solve(matrix, v, structure)

        return inverse(b[0]), jax.vmap(inverse)(b), jax.vjp(inverse, b[0])[1](b[1])[0]

    one, several, transposed = everything(matrix, weights)
    expected = np.linalg.solve(matrix, weights.T).T
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(one / scale, expected[0] / scale, atol=1e-8)
    np.testing.assert_allclose(several / scale, expected / scale, atol=1e-8)
    np.testing.assert_allclose(transposed / scale, expected[1] / scale, atol=1e-8)


def test_many_right_hand_sides_share_one_factorisation():
    matrix = np.eye(LARGE) + _spread(4.0) / 4

    jaxpr = jax.make_jaxpr(jax.vmap(lambda b: solve(matrix, b, GENERAL)))(np.eye(LARGE)).jaxpr
    assert does(jaxpr, ("lu",))
    assert not does(jaxpr, ("while",))  # no Krylov method
    found = compiled(jax.vmap(lambda b: solve(matrix, b, GENERAL)))(np.eye(LARGE))
    np.testing.assert_allclose(found.T, np.linalg.inv(matrix), atol=1e-12)


def test_what_a_batch_needs_not_does_not_run(monkeypatch):
    # The compiler moves what no round changes out of a loop; what is meant to be skipped would
    # run for every member.
    force(monkeypatch, "dense")
    matrices, rows = np.stack([SPD, SPD + np.eye(SIZE)]), np.stack([RHS, RHS])
    batch = jax.jit(jax.vmap(lambda m, b: solve(m, b, DEFINITE, throw=True)))
    text = batch.lower(matrices, rows).compile().as_text()
    always = text[text.index("ENTRY") :]
    assert "potrf" in always
    for skipped in ("geqrf", "callback"):
        assert skipped in text
        assert skipped not in always


# Through the implicit mode and Newton's method

SOLVERS = {
    "lu": lx.AutoLinearSolver(well_posed=True),
    "gmres": lx.GMRES(rtol=1e-12, atol=1e-12),
    "cg": lx.CG(rtol=1e-12, atol=1e-12),
}


def gradient(solver, throw=True, matrix=SPD, definite=True):
    """Return the gradient of ``sum(x*)``, where ``(matrix) x* = theta``."""
    problem = itd.LinearSystem(matrix, lambda theta: theta, positive_definite=definite)

    def total(theta):
        mode = itd.Implicit(linear_solver=solver)
        task = (problem, itd.ConjugateGradient(), jnp.zeros(SIZE), theta)
        stop = itd.Steps(SIZE)
        return jnp.sum(itd.solve(*task, stop=stop, mode=mode, throw=throw).x)

    return compiled(jax.grad(total))(jnp.asarray(RHS))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_of_the_users_is_used(name):
    np.testing.assert_allclose(
        gradient(SOLVERS[name]), np.linalg.solve(SPD, np.ones(SIZE)), atol=1e-9
    )


def test_a_solver_that_fails_is_reported():
    weak = lx.GMRES(rtol=1e-12, atol=1e-12, max_steps=1, restart=2)
    assert np.all(np.isnan(gradient(weak, throw=False)))
    with pytest.raises(RuntimeError, match="Try another `linear_solver`"):
        jax.block_until_ready(gradient(weak))


def test_a_least_squares_solver_differentiates_a_rank_deficient_problem():
    # as the message on failure advises: the pseudo-inverse
    row = np.linspace(1, 2, SIZE)
    problem = itd.Minimization(lambda x, theta: (row @ x - theta) ** 2 / 2)

    def total(solver, throw=True):
        def of(theta):
            task = (problem, itd.GradientDescent(0.03), jnp.zeros(SIZE), theta)
            mode = itd.Implicit(linear_solver=solver)
            return jnp.sum(itd.solve(*task, stop=itd.Steps(60), mode=mode, throw=throw).x)

        return of

    slope = compiled(jax.grad(total(lx.AutoLinearSolver(well_posed=False))))(1.3)
    assert slope == pytest.approx(np.sum(row) / (row @ row), rel=1e-9)
    assert np.isnan(compiled(jax.grad(total(None, throw=False)))(1.3))
    with pytest.raises(RuntimeError, match="residual is singular or nearly so"):
        jax.block_until_ready(compiled(jax.grad(total(None)))(1.3))


def test_a_newton_step_that_fails_ends_the_run():
    problem = itd.RootFinding(lambda x, theta: x**2 - theta)
    task = (problem, itd.Newton(), 0.0, 2.0)  # the slope at the start is zero
    solution = itd.solve(*task, stop=itd.Steps(5), throw=False)
    assert solution.status == itd.Status.DIVERGED
    assert solution.steps == 0
    assert solution.x == 0.0
