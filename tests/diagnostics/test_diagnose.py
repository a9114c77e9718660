"""`diagnose` measures what it says, on problems where that is known."""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.accuracy.estimate import DISAGREES, ONE_SIDED, REASONS, SINGULAR
from iterdiff.cli import main
from iterdiff.diagnostics import diagnose as diagnosing
from iterdiff.diagnostics.diagnosis import ModeDiagnosis
from iterdiff.linalg.spectrum import probe
from iterdiff.loop.task import Task

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
    """Return what is found of it."""
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
    """The error of the last column alone, which holds -x_t."""
    gap = x * (1 - STEP * np.asarray(CURVATURES)) ** t
    return np.linalg.norm(gap) / np.linalg.norm(jacobian)


def test_recommends_the_cheapest_that_gets_there(diagnosis):
    reachable = {k: m for k, m in diagnosis.modes.items() if m.steps_to_rtol is not None}
    least = min(mode.seconds for mode in reachable.values())
    assert reachable[diagnosis.recommended].seconds <= 1.25 * least
    assert "one-step never" in diagnosis.advice


def of_a_mode(seconds, steps, memory):
    return ModeDiagnosis(1e-9, steps, False, seconds, memory)


@pytest.mark.parametrize(
    ("unrolled", "implicit", "expected"),
    [
        ((1.2, 60, 10), (1.0, 70, 10), "unrolled"),  # as fast, with fewer steps
        ((1.0, 70, 20), (1.2, 70, 10), "implicit"),  # as many, with less memory
        ((1.0, 70, 20), (1.3, 60, 10), "unrolled"),  # faster
    ],
)
def test_times_that_hardly_differ_do_not_decide(unrolled, implicit, expected):
    found = {"unrolled": of_a_mode(*unrolled), "implicit": of_a_mode(*implicit)}
    task = Task(*quadratic(), itd.Steps(400))
    system = probe(lambda v: v, jnp.zeros(3))
    assert diagnosing._advise(found, 1e-4, task, system)[0] == expected


def test_steps_are_bounds_where_not_every_step_is_looked_at(diagnosis):
    assert diagnosis.every == 2
    steps = diagnosis.modes["implicit"].steps_to_rtol
    assert f"<= {steps}" in str(diagnosis)
    assert f"within {steps} steps" in diagnosis.advice
    each = itd.diagnose(*quadratic(), rtol=1e-2, budget=150)
    assert each.every == 1 and "<=" not in str(each)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"budget": 0}, ValueError, "`budget` must be at least 1"),
        ({"budget": 2.5}, TypeError, "budget"),
        ({"rtol": "a"}, TypeError, "rtol"),
        ({"rtol": 0.0}, ValueError, "`rtol` must be positive"),
    ],
)
def test_refuses_what_is_no_tolerance_or_budget(arguments, error, message):
    with pytest.raises(error, match=message):
        itd.diagnose(*quadratic(), **arguments)


def test_fits_a_terminal(diagnosis):
    assert max(map(len, str(diagnosis).splitlines())) <= 80


def test_a_diverging_iteration_is_told_of():
    problem, _, x0, theta = quadratic()
    found = itd.diagnose(problem, itd.GradientDescent(2.2), x0, theta, budget=60)
    assert found.contraction_rate == pytest.approx(1.2, rel=1e-9)
    assert "no" in found.advice.lower() or "not converged" in found.advice


class Own(itd.Algorithm):
    """An algorithm whose step belongs to a problem of its own."""

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
def test_says_where_there_is_nothing_to_trust(name):
    run, reason = UNTRUSTED[name]
    found = itd.diagnose(*run, budget=50)
    assert not found.trusted and found.recommended is None
    assert found.reason == REASONS[reason]
    assert max(map(len, str(found).splitlines())) <= 80


def test_spectral_radius_of_what_is_not_symmetric():
    rotation = 0.9 * jnp.array([[0.0, -1.0, 0.3], [1.0, 0.0, 0.0], [0.0, 0.0, 0.2]])
    found = probe(lambda v: rotation @ v, jnp.zeros(3))
    assert found.exact
    assert found.radius == pytest.approx(0.9, rel=1e-9)
    assert found.asymmetry > 0.1


def test_what_grows_beyond_all_bounds_is_infinite():
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
    assert main(["diagnose", "mine:run", "--rtol", "1e-3"]) == 0
    printed = capsys.readouterr().out
    assert "contraction rate   0.673612" in printed and "Use " in printed  # sin(x) at x = cos(x)
    assert main(["diagnose", "mine:run", "--budget", "7"]) == 0
    assert "trial run          7 steps" in capsys.readouterr().out
    assert main(["diagnose", "mine:run", "--budget", "0"]) == 2
    assert "`budget` must be at least 1" in capsys.readouterr().err
    assert main(["diagnose", "mine:nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
