"""`diagnose` measures what it reports, on problems where that is known."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.accuracy.reasons import DISAGREES, ONE_SIDED, REASONS, SINGULAR, TOO_FAR
from iterdiff.cli import main
from iterdiff.diagnostics.advice import Structure, explain, recommend
from iterdiff.diagnostics.diagnose import NO_ROOT, WHY
from iterdiff.diagnostics.diagnosis import ModeDiagnosis
from iterdiff.linalg.spectrum import probe

CURVATURES = jnp.array([0.1, 0.4, 1.0])
STEP = 1.0


def quadratic():
    """Return gradient descent on a quadratic: rate 1 - 0.1, theta = (b, the log of a factor)."""

    def objective(x, theta):
        return jnp.exp(theta[3]) * jnp.sum(CURVATURES * x**2) / 2 - theta[:3] @ x

    theta = jnp.array([1.0, 2.0, 3.0, 0.0])
    return itd.Minimization(objective), itd.GradientDescent(STEP), jnp.zeros(3), theta


@pytest.fixture(scope="module")
def diagnosis():
    """Diagnose it once."""
    return itd.diagnose(*quadratic(), rtol=1e-4, budget=400)


def test_measures_rate_structure_and_steps(diagnosis):
    assert diagnosis.trusted
    assert diagnosis.contraction_rate == pytest.approx(0.9, rel=1e-9)
    assert diagnosis.symmetric and diagnosis.positive_definite
    assert diagnosis.distance < 1e-9
    # the slowest mode: errors 0.9^t of J*, and t 0.9^(t - 1) for the curvature's derivative
    errors = diagnosis.modes["implicit"], diagnosis.modes["unrolled"]
    assert all(mode.error < 1e-12 and not mode.extrapolated for mode in errors)
    x, jacobian = _truth()
    expected = next(t for t in range(400) if _implicit_error(t, x, jacobian) <= 1e-4)
    assert abs(diagnosis.modes["implicit"].steps_to_rtol - expected) <= 2
    assert diagnosis.modes["one-step"].steps_to_rtol is None
    assert all(mode.seconds > 0 for mode in diagnosis.modes.values())


def _truth():
    x = np.array([1.0, 2.0, 3.0]) / np.asarray(CURVATURES)
    return x, np.column_stack([np.diag(1 / np.asarray(CURVATURES)), -x])


def _implicit_error(t, x, jacobian):
    """The error of the last column, which holds -x_t."""
    gap = x * (1 - STEP * np.asarray(CURVATURES)) ** t
    return np.linalg.norm(gap) / np.linalg.norm(jacobian)


def test_recommends_the_cheapest_that_gets_there(diagnosis):
    reachable = {k: m for k, m in diagnosis.modes.items() if m.steps_to_rtol is not None}
    least = min(mode.seconds for mode in reachable.values())
    assert reachable[diagnosis.recommended].seconds <= 1.25 * least
    assert "one-step never" in diagnosis.advice


def of_a_mode(seconds=1.0, steps=60, memory=10, extrapolated=False):
    return ModeDiagnosis(1e-9, steps, extrapolated, seconds, memory)


@pytest.mark.parametrize(
    ("unrolled", "implicit", "expected"),
    [
        ((1.2, 60, 10), (1.0, 70, 10), "unrolled"),  # as fast, with fewer steps
        ((1.0, 70, 20), (1.2, 70, 10), "implicit"),  # as many, with less memory
        ((1.0, 70, 20), (1.3, 60, 10), "unrolled"),  # faster
        ((1.0, None, 10), (2.0, 60, 10), "implicit"),  # the only one
        ((1.0, None, 10), (2.0, None, 10), None),
    ],
)
def test_times_that_hardly_differ_do_not_decide(unrolled, implicit, expected):
    modes = {"unrolled": of_a_mode(*unrolled), "implicit": of_a_mode(*implicit)}
    assert recommend(modes) == expected


SOUND = Structure(
    symmetric=True, positive_definite=True, declared_symmetric=True, minimization=True
)
CONVERGED = {"rtol": 1e-3, "rate": 0.9, "distance": 1e-9, "structure": SOUND}
WARNED_OF = {
    "saddle": ({"structure": SOUND._replace(positive_definite=False)}, "saddle point"),
    "symmetry": ({"structure": SOUND._replace(symmetric=False)}, "symmetric"),
    "not converged": ({"distance": 0.2}, "not converged"),
    "distance unknown": ({"distance": float("nan")}, "not converged"),
}


@pytest.mark.parametrize("name", WARNED_OF)
def test_advice_warns(name):
    changed, words = WARNED_OF[name]
    modes = {"implicit": of_a_mode()}
    sound = explain("implicit", modes, **CONVERGED)
    assert "Implicit()" in sound and "Warning" not in sound
    advice = explain("implicit", modes, **CONVERGED | changed)
    assert advice.startswith(sound)
    assert "Warning" in advice and words in advice


def test_advice_compares_the_modes():
    modes = {
        "unrolled": of_a_mode(steps=80, extrapolated=True),
        "one-step": of_a_mode(steps=None),
        "implicit": of_a_mode(),
    }
    advice = explain("implicit", modes, **CONVERGED)
    assert "within 60 steps" in advice
    assert "unrolled after about 80 steps" in advice and "one-step never" in advice


def test_steps_are_bounds_if_not_every_step_is_recorded(diagnosis):
    assert diagnosis.every == 2
    steps = diagnosis.modes["implicit"].steps_to_rtol
    assert f"<= {steps}" in str(diagnosis)
    assert f"within {steps} steps" in diagnosis.advice
    assert "<=" not in str(dataclasses.replace(diagnosis, every=1))


def test_fits_a_terminal(diagnosis):
    assert max(map(len, str(diagnosis).splitlines())) <= 80


PRINTED = {
    "bytes": ({"memory": 999}, {}, "999 B"),
    "gigabytes": ({"memory": 4 * 10**9}, {}, "4 GB"),
    "extrapolated": ({"extrapolated": True}, {}, "~60"),
    "absolute": ({}, {"relative": False}, "abs. error"),
    "burn-in": ({}, {"burn_in": 12, "burn_in_peak": 3.5}, "12 iterations, peak 3.5"),
    "burn-in without end": ({}, {"burn_in": 12, "burn_in_peak": float("inf")}, "unknown"),
    "indefinite": ({}, {"positive_definite": False}, "symmetric, indefinite"),
    "not symmetric": ({}, {"symmetric": False}, "not symmetric"),
}


@pytest.mark.parametrize("name", PRINTED)
def test_prints(name, diagnosis):
    mode, fields, words = PRINTED[name]
    changed = dataclasses.replace(diagnosis, modes={"implicit": of_a_mode(**mode)}, **fields)
    assert words in str(changed) and words not in str(diagnosis)


@pytest.mark.parametrize(
    ("arguments", "error", "argument"),
    [
        ({"budget": 0}, ValueError, "`budget`"),
        ({"budget": 2.5}, TypeError, "budget"),
        ({"rtol": "a"}, TypeError, "rtol"),
        ({"rtol": 0.0}, ValueError, "`rtol`"),
    ],
)
def test_a_wrong_call(arguments, error, argument):
    with pytest.raises(error, match=argument):
        itd.diagnose(*quadratic(), **arguments)


def test_a_diverging_iteration():
    problem, _, x0, theta = quadratic()
    found = itd.diagnose(problem, itd.GradientDescent(2.2), x0, theta, budget=60)
    assert found.contraction_rate == pytest.approx(1.2, rel=1e-9)
    assert found.trusted and found.recommended is None
    # The iterates leave at the rate 1.2; the unrolled Jacobian's last column gains a factor t.
    assert found.distance > 1.2**50
    assert found.burn_in == 60 and found.burn_in_peak > 1.2**50
    assert all(mode.steps_to_rtol is None for mode in found.modes.values())


def test_a_derivative_of_zero_in_many_parameters():
    problem = itd.Minimization(lambda x, theta: (1 + jnp.sum(theta**2)) * x**2)
    theta = jnp.full(20, 0.1)
    found = itd.diagnose(problem, itd.GradientDescent(0.2), jnp.array(1.0), theta, budget=50)
    assert found.every == 1 and not found.relative
    # x_t = rho^t with rho = 1 - 0.4 * 1.2, and the error is absolute.
    rho = 1 - 0.4 * 1.2
    assert found.distance == pytest.approx(rho**50, rel=1e-6)
    # dx_t/dtheta = -0.8 theta t rho^(t - 1): zero at first, then 1, 2 rho > 1, 3 rho^2 < 1, ...
    assert found.burn_in == 2
    assert found.burn_in_peak == pytest.approx(2 * rho, rel=1e-9)


def test_an_algorithm_whose_steps_have_no_derivative():
    problem = itd.RootFinding(lambda x, theta: 2 * x - theta)
    run = (problem, itd.Bisection(0.0, 2.0), jnp.array(0.0), jnp.array(1.0))
    found = itd.diagnose(*run, budget=60)
    assert list(found.modes) == ["implicit"] and found.recommended == "implicit"
    assert found.modes["implicit"].steps_to_rtol == 0  # the derivative is 1 / 2 everywhere


class Own(itd.Algorithm):
    """An algorithm that solves another problem."""

    accepts: ClassVar[tuple[type[itd.Problem], ...]] = (itd.Problem,)

    def init(self, problem, x0, theta):
        """Return the iterate."""
        del problem, theta
        return itd.Iterate(x0)

    def step(self, problem, state, theta):
        """Step towards theta."""
        del problem
        return itd.Iterate(state.x - 0.5 * (state.x - theta))


UNTRUSTED = {
    "singular": (
        (
            itd.Minimization(lambda x, theta: (jnp.sum(x) - theta) ** 2),
            itd.GradientDescent(0.1),
            jnp.zeros(2),
            jnp.array(1.0),
        ),
        SINGULAR,
    ),
    "no solution": (
        (
            itd.Minimization(lambda x, theta: theta * jnp.logaddexp(0.0, -x)),
            itd.GradientDescent(100.0),
            jnp.array(0.0),
            jnp.array(1.0),
        ),
        TOO_FAR,
    ),
    "kink": (
        (
            itd.CompositeMinimization(
                lambda x, theta: jnp.sum((x - theta) ** 2) / 2,
                lambda v, theta, step: itd.prox.soft_threshold(v, step),
            ),
            itd.ProximalGradient(0.5),
            jnp.zeros(2),
            jnp.array([1.0, 3.0]),
        ),
        ONE_SIDED,
    ),
    "another problem": (
        (itd.RootFinding(lambda x, theta: x - 1.02 * theta), Own(), jnp.zeros(2), jnp.ones(2)),
        DISAGREES,
    ),
}


@pytest.mark.parametrize("name", UNTRUSTED)
def test_recommends_nothing_if_errors_cannot_be_measured(name):
    run, reason = UNTRUSTED[name]
    found = itd.diagnose(*run, budget=50)
    assert not found.trusted and found.recommended is None
    assert found.reason == REASONS[reason] and found.reason in found.advice
    assert "unknown" in str(found)
    assert max(map(len, str(found).splitlines())) <= 80


def test_spectral_radius_of_a_matrix_that_is_not_symmetric():
    rotation = 0.9 * jnp.array([[0.0, -1.0, 0.3], [1.0, 0.0, 0.0], [0.0, 0.0, 0.2]])
    found = probe(lambda v: rotation @ v, jnp.zeros(3))
    assert found.exact
    assert found.radius == pytest.approx(0.9, rel=1e-9)
    assert found.asymmetry > 0.1


def test_an_overflow_counts_as_infinite():
    found = probe(lambda v: 1e200 * v, jnp.zeros(3))
    assert found.radius == np.inf and found.asymmetry == np.inf


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp\nimport iterdiff as itd\n"
        "def run():\n"
        "    problem = itd.FixedPoint(lambda x, theta: jnp.cos(theta * x))\n"
        "    return problem, itd.Picard(), jnp.array(0.5), jnp.array(1.0)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["diagnose", "mine:run", "--rtol", "1e-9", "--budget", "40"]) == 0
    printed = capsys.readouterr().out
    assert "trial run          40 steps" in printed and "Use " in printed
    assert "~" in printed  # 1e-9 is not reached in 40 steps, but will be
    assert "contraction rate   0.673612" in printed  # sin(x) at x = cos(x)
    assert main(["diagnose", "mine:run", "--budget", "0"]) == 2
    assert "`budget`" in capsys.readouterr().err
    assert main(["diagnose", "mine:nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_an_equation_without_a_root_is_told_from_a_run_that_is_too_short():
    problem = itd.RootFinding(lambda x, theta: x**2 + theta)
    found = itd.diagnose(problem, itd.Newton(), jnp.ones(1), jnp.ones(1), budget=20)
    assert not found.trusted and found.reason == WHY[NO_ROOT]
    assert "more steps" not in found.advice and found.reason in found.advice


def test_what_a_state_only_carries_along_has_no_rate():
    # rho(I - D^-1 A) of the matrix; the state also holds the diagonal, which a step copies
    matrix = jnp.array([[3.0, 1.0], [1.0, 4.0]])
    problem = itd.LinearSystem(matrix, lambda theta: theta)
    found = itd.diagnose(problem, itd.Jacobi(), jnp.zeros(2), jnp.ones(2), budget=60)
    assert found.contraction_rate == pytest.approx((1 / 12) ** 0.5, rel=1e-6)


def test_steps_that_no_longer_move_have_no_rate():
    matrix = jnp.array([[3.0, 1.0], [1.0, 4.0]])
    problem = itd.LinearSystem(matrix, lambda theta: theta, positive_definite=True)
    run = problem, itd.ConjugateGradient(), jnp.zeros(2), jnp.ones(2)
    found = itd.diagnose(*run, budget=20)
    assert np.isnan(found.contraction_rate) and "no longer move" in str(found)
    assert found.recommended is not None and "Warning" not in found.advice


class Searching(itd.Algorithm):
    """Gradient descent that halves its step until the residual falls: a loop of unknown length."""

    accepts: ClassVar[tuple[type[itd.Problem], ...]] = (itd.Minimization,)

    def init(self, problem, x0, theta):
        """Return `x0`."""
        return itd.Iterate(x0)

    def step(self, problem, state, theta):
        """Return the state after one step."""
        slope = problem.residual(state.x, theta)

        def too_long(step):
            return jnp.abs(problem.residual(state.x - step * slope, theta)) > jnp.abs(slope)

        step = jax.lax.while_loop(too_long, lambda step: step / 2, 0.9 + 0 * slope)
        return itd.Iterate(state.x - step * slope)


def test_a_line_search_is_timed_in_forward_mode():
    problem = itd.Minimization(lambda x, theta: (x - theta) ** 2)
    found = itd.diagnose(problem, Searching(), jnp.array(0.0), jnp.array(1.0), budget=30)
    assert found.modes["unrolled"].forward_only and not found.modes["implicit"].forward_only
    assert "forward mode" in found.advice
