"""Linear solves: every method of the policy, any solver of lineax, and failures that show."""

from functools import lru_cache

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.jaxtools.jaxpr import does
from iterdiff.jaxtools.linear_map import LinearMap
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov, Limits
from iterdiff.linalg.residual_check import ResidualChecked
from iterdiff.linalg.solve import (
    Inverse,
    Structure,
)
from tests.helpers import compiled, relative_error

SIZE = 12
GENERAL = Structure(symmetric=False, positive_definite=False)
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
SINGULAR = _with_spectrum([0.0, *np.linspace(1, 3, SIZE - 1)])
RHS = np.random.default_rng(2).normal(size=SIZE)

# One policy for each method; systems this small would otherwise be worth no trial.
METHODS = {
    "lu": Limits(SIZE, SIZE, SIZE, trial_min_products=0),
    "factored": Limits(0, SIZE, SIZE, trial_min_products=0),
    # The trial has no time for a single product: the dense method solves.
    "fallback": Limits(0, 0, SIZE, trial_min_products=0),
    "krylov": Limits(0, 0, 0),
}
SOLVERS = {name: DenseOrKrylov(limits=limits) for name, limits in METHODS.items()}
every_method = pytest.mark.parametrize("method", METHODS)


def solve(matrix, b, structure, solver, **options):
    """Return the answer to `b`; `solver` is one of lineax or the name of a method."""
    solver = SOLVERS[solver] if isinstance(solver, str) else solver
    b = jnp.asarray(b)
    return Inverse(lambda v: matrix @ v, b, structure, solver=solver, **options)(b)


# An indefinite matrix that is claimed to be definite: Cholesky and conjugate gradients notice.
OPERATORS = {
    "definite": (SPD, DEFINITE),
    "not_definite_after_all": (INDEFINITE, DEFINITE),
    "general": (NONSYMMETRIC, GENERAL),
}


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("definite", "factored"),
        ("definite", "fallback"),
        ("definite", "krylov"),
        ("not_definite_after_all", "factored"),
        ("not_definite_after_all", "fallback"),
        ("not_definite_after_all", "krylov"),
        ("general", "lu"),
        ("general", "fallback"),
        ("general", "krylov"),
    ],
)
def test_solves_transposes_and_batches(kind, method):
    matrix, structure = OPERATORS[kind]
    not_finite = np.where(np.arange(SIZE) == 3, np.nan, RHS)
    several = np.stack([RHS, 1e-200 * RHS[::-1], np.zeros(SIZE), 1e150 * RHS, not_finite])

    @compiled
    def everything(matrix, b, several):
        def by(v):
            return solve(matrix, v, structure, method)

        def loud(v):
            return solve(matrix, v, structure, method, throw=kind != "not_definite_after_all")

        return by(b), jax.vjp(by, b)[1](b)[0], jax.vmap(loud)(several)

    x, transposed, batch = everything(matrix, RHS, several)
    if kind == "not_definite_after_all" and method == "krylov":
        # Conjugate gradients stop at negative curvature, and there is no dense method.
        assert np.all(np.isnan(x)) and np.all(np.isnan(transposed))
        assert np.array_equal(np.isnan(batch).all(axis=1), [True, True, False, True, True])
        return
    np.testing.assert_allclose(x, np.linalg.solve(matrix, RHS), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(transposed, np.linalg.solve(matrix.T, RHS), rtol=1e-8, atol=1e-8)
    for row, b in zip(batch[:-1], several, strict=False):
        size = np.max(np.abs(b)) or 1.0
        np.testing.assert_allclose(row / size, np.linalg.solve(matrix, b / size), atol=1e-8)
    # A right-hand side that is not finite is not a failure of this solve: it does not raise.
    assert np.any(np.isnan(batch[-1]))


def test_each_policy_has_its_factorisations():
    def factorisations(method, structure):
        jaxpr = jax.make_jaxpr(lambda m, b: solve(m, b, structure, method))(SPD, RHS).jaxpr
        return {name for name in ("lu", "cholesky", "qr", "while") if does(jaxpr, (name,))}

    assert factorisations("factored", GENERAL) == {"lu"}
    assert factorisations("lu", DEFINITE) == {"lu"}
    assert factorisations("factored", DEFINITE) == {"cholesky", "qr", "while"}
    assert factorisations("fallback", DEFINITE) == {"cholesky", "qr", "while"}
    assert factorisations("krylov", DEFINITE) == {"while"}


@every_method
def test_a_singular_operator_is_a_failure(method):
    structure = DEFINITE if method == "krylov" else GENERAL
    matrix = SINGULAR if method == "krylov" else np.diag(np.arange(SIZE) / SIZE)
    quiet = compiled(lambda m, b: solve(m, b, structure, method))
    for scale in (1.0, 1e-200, 1e200):  # the square of the norm may be 0 or infinite
        assert np.all(np.isnan(quiet(matrix, scale * RHS)))
    if method in ("factored", "krylov"):
        loud = compiled(lambda m, b: solve(m, b, structure, method, throw=True))
        with pytest.raises(RuntimeError, match="linear solve.*`throw=False`"):
            jax.block_until_ready(loud(matrix, RHS))


@pytest.mark.parametrize("method", ["factored", "fallback", "krylov"])
def test_batches_of_operators(method):
    # Some members need the dense method, others do not.
    matrices = np.stack([SPD, INDEFINITE, SPD + np.eye(SIZE)])
    structure = DEFINITE if method != "krylov" else GENERAL
    batch = compiled(jax.vmap(lambda m, b: solve(m, b, structure, method), in_axes=(0, None)))
    for row, matrix in zip(batch(matrices, RHS), matrices, strict=True):
        np.testing.assert_allclose(row, np.linalg.solve(matrix, RHS), rtol=1e-8, atol=1e-8)


WEIGHTS = np.random.default_rng(3).normal(size=SIZE)


def second_derivatives(by):
    """Return the Hessian of ``w^T A(p)^{-1} b(p)``; ``by(matrix, b)`` solves."""

    def value(p):
        matrix = SPD + jnp.diag(p[0] * jnp.linspace(0, 1, SIZE)) + p[1] ** 2 * jnp.eye(SIZE)
        return WEIGHTS @ by(matrix, RHS * p[0])

    return compiled(jax.jacfwd(jax.grad(value)))(jnp.array([0.7, 0.4]))


@lru_cache
def expected_second_derivatives():
    """Return the Hessian by JAX's own dense solve."""
    return second_derivatives(jnp.linalg.solve)


@pytest.mark.parametrize(
    ("method", "structure"),
    [
        ("factored", DEFINITE),
        ("fallback", GENERAL),
        ("krylov", DEFINITE),
    ],
    ids=["factored", "fallback", "krylov"],
)
def test_second_derivatives_through_the_operator(method, structure):
    found = second_derivatives(lambda m, b: solve(m, b, structure, method))
    assert relative_error(found, expected_second_derivatives()) < 1e-8


@pytest.mark.parametrize("method", ["lu", "factored", "krylov"])
def test_float32_has_its_own_tolerance(method):
    matrix, b = SPD.astype(np.float32), RHS.astype(np.float32)
    by = compiled(lambda m, b: solve(m, b, DEFINITE, method, throw=True))
    x = by(matrix, b)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, np.linalg.solve(SPD, RHS), atol=1e-5)
    tiny = np.float32(1e-30)
    np.testing.assert_allclose(by(matrix, tiny * b) / tiny, x, atol=1e-5)


def test_only_the_failing_branch_of_a_batch_runs():
    # XLA hoists what no round changes out of a loop, where it would run for every member.
    matrices, rows = np.stack([SPD, SPD + np.eye(SIZE)]), np.stack([RHS, RHS])
    batch = jax.jit(jax.vmap(lambda m, b: solve(m, b, DEFINITE, "factored", throw=True)))
    text = batch.lower(matrices, rows).compile().as_text()
    always = text[text.index("ENTRY") :]
    assert "potrf" in always
    for skipped in ("geqrf", "callback"):
        assert skipped in text
        assert skipped not in always


# Which method: counted work, and observed convergence

MIDDLE = 100
# A single right-hand side has time for 15 products if definite, else 31; three for a third of them.
PATIENT = Limits(0, 0, MIDDLE, product_slowdown=1.0, trial_max_time_share=1.0)


def _spread(condition: float) -> np.ndarray:
    """Return a symmetric matrix with eigenvalues from 1 / condition to 1, in a random basis."""
    basis = np.linalg.qr(np.random.default_rng(6).normal(size=(MIDDLE, MIDDLE)))[0]
    return (basis * np.logspace(-np.log10(condition), 0, MIDDLE)) @ basis.T


@pytest.mark.parametrize("definite", [True, False])
def test_the_trial_takes_a_small_share_of_the_time_of_the_dense_method(definite):
    policy, limits = DenseOrKrylov(), Limits()
    size = limits.factored_max_unknowns + 40
    matrix = jnp.ones((size, size))
    linear_map = LinearMap.of(lambda v: matrix @ v, matrix[0])
    budget = policy.budget(linear_map, definite)
    factoring = (1 if definite else 2) * size**3 / 3
    trial_time = budget.trial_products * limits.product_slowdown * 2 * size**2
    assert trial_time <= limits.trial_max_time_share * factoring
    # Each of many right-hand sides takes its products; the matrix is factored once.
    assert policy.budget(linear_map, definite, size).trial_products < limits.trial_min_products
    # With eight times as many rows of data, forming the matrix costs more than eight products.
    tall = jnp.concatenate([matrix] * 8)
    gram = policy.budget(LinearMap.of(lambda v: tall.T @ (tall @ v), matrix[0]), definite)
    assert gram.max_products > budget.max_products


@pytest.mark.parametrize("structure", [DEFINITE, GENERAL], ids=["definite", "general"])
def test_slow_and_fast_convergence_end_in_the_same_answer(structure):
    weights = np.random.default_rng(7).normal(size=(3, MIDDLE))
    policy = DenseOrKrylov(limits=PATIENT)

    @compiled
    def everything(matrix, b):
        def by(v):
            return solve(matrix, v, structure, policy)

        return by(b[0]), jax.vmap(by)(b), jax.vjp(by, b[0])[1](b[1])[0]

    for condition in (1.5, 1e6):
        matrix = _spread(condition)
        one, several, transposed = everything(matrix, weights)
        expected = np.linalg.solve(matrix, weights.T).T
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(one / scale, expected[0] / scale, atol=1e-8)
        np.testing.assert_allclose(several / scale, expected / scale, atol=1e-8)
        np.testing.assert_allclose(transposed / scale, expected[1] / scale, atol=1e-8)
        # The backward error tells the methods apart: an iteration stops at its tolerance.
        backward = np.linalg.norm(matrix @ one - weights[0])
        backward /= np.linalg.norm(one) + np.linalg.norm(weights[0])
        assert (backward > 1e-14) == (condition == 1.5)


def test_many_right_hand_sides_share_one_factorisation():
    # One alone is worth a trial of a Krylov method.
    matrix, solver = _spread(1.5), DenseOrKrylov(limits=PATIENT)

    def by(b):
        return solve(matrix, b, GENERAL, solver)

    assert does(jax.make_jaxpr(by)(np.ones(MIDDLE)).jaxpr, ("while",))
    jaxpr = jax.make_jaxpr(jax.vmap(by))(np.eye(MIDDLE)).jaxpr
    assert does(jaxpr, ("lu",))
    assert not does(jaxpr, ("while",))
    found = compiled(jax.vmap(by))(np.eye(MIDDLE))
    np.testing.assert_allclose(found.T, np.linalg.inv(matrix), atol=1e-12)


@pytest.mark.parametrize("structure", [DEFINITE, GENERAL], ids=["definite", "general"])
def test_one_factorisation_serves_several_solves(structure):
    # Three products cost more than one with their product: the factors keep that matrix.
    def operator(v):
        return {"x": SPD @ (SPD @ (SPD @ v["x"]))}

    b, matrix = {"x": jnp.asarray(RHS)}, SPD @ SPD @ SPD
    assert Inverse(operator, b, structure, solver=lx.LU(), factor=True).factors is None
    by = Inverse(operator, b, structure, factor=True)
    assert by.factors is not None
    assert (by.factors.definite is None) == (structure is GENERAL)
    expected = np.linalg.solve(matrix, RHS)
    np.testing.assert_allclose(by.factored(b)["x"], expected, atol=1e-8)
    np.testing.assert_allclose(by(b)["x"], expected, atol=1e-8)
    np.testing.assert_allclose(by.product(b)["x"], matrix @ RHS, rtol=1e-12)
    by.factors = by.factors._replace(matrix=None)
    np.testing.assert_allclose(by.product(b)["x"], matrix @ RHS, rtol=1e-12)


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
    for solver in (DenseOrKrylov(), ResidualChecked(lx.LU())):
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

        return by(b), jax.vjp(by, b)[1](b)[0], jax.vmap(by)(jnp.eye(SIZE))

    x, transposed, batch = everything(matrix, RHS)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, RHS), atol=1e-9)
    np.testing.assert_allclose(transposed, np.linalg.solve(matrix.T, RHS), atol=1e-9)
    np.testing.assert_allclose(batch.T, np.linalg.inv(matrix), atol=1e-9)


def test_a_solver_prepares_once_for_all_right_hand_sides():
    solver = Scripted([])
    by = Inverse(lambda v: NONSYMMETRIC @ v, jnp.asarray(RHS), GENERAL, solver=solver)
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
    for solver, rtol in ((lx.CG(rtol=1e-2, atol=1e-2), None), (SOLVERS["krylov"], 1e-2)):
        matrix, b = _spread(3.0), jnp.ones(MIDDLE)
        x = solve(matrix, b, DEFINITE, solver, throw=True, rtol=rtol)
        assert 1e-8 < relative_error(matrix @ x, b) <= 1e-2
    # The tolerances of a wrapped solver count, too.
    wrapped = solve(SPD, RHS, GENERAL, lx.Normal(Scripted([], 1.0 + 1e-5, 1e-6)))
    assert np.all(np.isfinite(wrapped))


def test_a_least_squares_solver_needs_a_consistent_system():
    by = compiled(lambda b: solve(SINGULAR, b, DEFINITE, OF_LINEAX["svd"]))
    consistent = SINGULAR @ RHS
    np.testing.assert_allclose(by(consistent), np.linalg.pinv(SINGULAR) @ consistent, atol=1e-12)
    assert np.all(np.isnan(by(RHS)))


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


def test_the_answer_to_zero_is_zero():
    # A member of a batch whose solve failed, and that the loss ignores
    by = compiled(lambda b: solve(SINGULAR, b, GENERAL, None, throw=True))
    np.testing.assert_array_equal(by(jnp.zeros(SIZE)), np.zeros(SIZE))
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
