"""Look at an iteration and its derivatives, and say which mode to use and what it costs."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from iterdiff.accuracy.consistency import disagree, remembers
from iterdiff.accuracy.correction import NewtonPoints, correct
from iterdiff.accuracy.estimate import DISAGREES, OK, ONE_SIDED, REASONS, SINGULAR, TOO_FAR
from iterdiff.algorithms.base import Algorithm, check_fits, traceable_step
from iterdiff.diagnostics.diagnosis import Diagnosis, ModeDiagnosis
from iterdiff.diagnostics.reference import WORTHLESS, polish
from iterdiff.diagnostics.trace import trace
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_count, check_tolerance
from iterdiff.jaxtools.tree import floating_part
from iterdiff.linalg.spectrum import Spectrum, probe
from iterdiff.loop.stopping import Steps
from iterdiff.loop.task import Task
from iterdiff.modes.base import Mode
from iterdiff.modes.implicit import Implicit
from iterdiff.modes.unrolled import OneStep, Unrolled
from iterdiff.problems.checks import check_residual, check_theta, check_untraced, check_x0
from iterdiff.problems.problem import Minimization, Problem
from iterdiff.solving.solve import solve

if TYPE_CHECKING:
    import xarray

RECORDS = 200
"""At most this many iterations of the trial run are looked at."""

PROBES = 8
"""Random directions in which derivatives are followed, above so many parameters."""

ALIKE = 1.25
"""Times that differ by less than this factor are taken to be the same."""

LEAST_RUNS, MOST_RUNS, ENOUGH_SECONDS = 3, 30, 0.1
"""How often a gradient is timed."""


def diagnose(
    problem: Problem,
    algorithm: Algorithm,
    x0: PyTree,
    theta: PyTree,
    *,
    rtol: float = 1e-2,
    budget: int | None = None,
) -> Diagnosis:
    """Measure an iteration and its derivatives on a trial run, and recommend a mode.

    Parameters
    ----------
    problem, algorithm, x0, theta
        As in `solve`.
    rtol : float
        The relative error of the derivative that you can live with.
    budget : int, optional
        Steps of the trial run, by default 1000.

    Returns
    -------
    Diagnosis
        Print it, or read its fields.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit.
    ImportError
        Without the extra ``iterdiff[study]``.

    Notes
    -----
    The truth is the point that damped Newton steps lead to from the end of the trial run, with
    the implicit derivative there; where that fails, the system is singular there, or the algorithm
    does not come to rest there, the diagnosis says so and recommends nothing. Above 16
    parameters derivatives are followed in 8 random directions.
    """
    check_tolerance("rtol", rtol)
    budget = 1000 if budget is None else check_count("budget", budget)
    check_fits(problem, algorithm)
    x0, theta = check_x0(x0), check_theta(theta)
    check_residual(problem, x0, theta)
    check_untraced("diagnose", problem, algorithm, x0, theta)
    task = Task(problem, algorithm, x0, theta, Steps(budget))
    with traceable_step(algorithm):
        end = _trial(task)
    truth, found = polish(problem, end.x, theta)
    if not bool(found):
        truth, found = polish(problem, x0, theta)
    step = _step_spectrum(task, end)
    system = _system_spectrum(problem, truth if bool(found) else end.x, theta)
    modes = _modes_for(algorithm)
    reason = _doubt(task, end.x, truth, bool(found))
    if reason != OK:
        return _untrusted(task, rtol, step, system, reason)
    parameters = tree.size(floating_part(theta)[0])
    data = trace(
        problem,
        algorithm,
        x0,
        theta,
        steps=budget,
        modes=modes,
        reference=truth,
        probes=None if parameters <= 2 * PROBES else PROBES,
        every=_every(task),
    )
    return _judge(task, rtol, step, system, data, modes, float(tree.norm(truth)))


def _every(task: Task) -> int:
    """Return how many steps of the trial run lie between two looks."""
    return max(1, task.stop.max_steps // RECORDS)


def _modes_for(algorithm: Algorithm) -> dict[str, Mode]:
    if not algorithm.differentiable or algorithm.caveat:
        return {"implicit": Implicit()}
    return {"unrolled": Unrolled(), "one-step": OneStep(), "implicit": Implicit()}


@eqx.filter_jit
def _trial(task: Task):
    return Implicit().primal(task).state


def _step_spectrum(task: Task, state) -> Spectrum:
    floating, rest = floating_part(state)

    def step(floating):
        return floating_part(task.step(eqx.combine(floating, rest)))[0]

    return probe(lambda v: jax.jvp(step, (floating,), (v,))[1], floating)


def _system_spectrum(problem: Problem, x: PyTree, theta: PyTree) -> Spectrum:
    def residual(x):
        return problem.residual(x, theta)

    return probe(lambda v: jax.jvp(residual, (x,), (v,))[1], x)


def _probed(system: Spectrum, dtype) -> tuple[bool, bool]:
    symmetric = system.asymmetry <= 1e3 * float(jnp.finfo(dtype).eps)
    return symmetric, symmetric and float(np.min(np.real(system.values))) > 0


@eqx.filter_jit
def _points(problem: Problem, x: PyTree, theta: PyTree) -> NewtonPoints:
    return correct(problem, x, theta).points


def _doubt(task: Task, x: PyTree, truth: PyTree, found: bool) -> int:
    """Return why the truth is none, as an index into `REASONS`."""
    problem, algorithm, theta = task.problem, task.algorithm, task.theta
    there = _points(problem, truth if found else x, theta)
    if not float(there.rounding) <= WORTHLESS:  # NaN, too: see `find_reference`
        return SINGULAR
    if not found:
        return TOO_FAR
    if bool(there.one_sided):
        return ONE_SIDED
    if algorithm.consistent or remembers(algorithm, problem, x, theta):
        return OK

    def step(y: PyTree) -> PyTree:
        return algorithm.step(problem, algorithm.init(problem, y, theta), theta).x

    wrong = jax.jit(lambda y: disagree(step, _points(problem, y, theta)))(x)
    return DISAGREES if bool(wrong) else OK


def _untrusted(task: Task, rtol: float, step: Spectrum, system: Spectrum, reason: int) -> Diagnosis:
    advice = "No derivative can be recommended: " + REASONS[reason]
    if not step.radius < 1 and reason == TOO_FAR:
        advice += (
            f" The iteration does not contract there (rate {step.radius:.4g}): make the step "
            "smaller, or start nearer."
        )
    return Diagnosis(
        **_measured(task, rtol, step, system),
        trusted=False,
        reason=REASONS[reason],
        relative=True,
        distance=float("nan"),
        burn_in=0,
        burn_in_peak=float("nan"),
        modes={},
        recommended=None,
        advice=advice,
    )


def _measured(task: Task, rtol: float, step: Spectrum, system: Spectrum) -> dict[str, Any]:
    """Return the fields that hold whether the truth is known or not."""
    symmetric, definite = _probed(system, tree.result_dtype(task.x0))
    return {
        "rtol": rtol,
        "steps": task.stop.max_steps,
        "every": _every(task),
        "contraction_rate": step.radius,
        "symmetric": symmetric,
        "positive_definite": definite,
        "declared_symmetric": task.problem.symmetric,
    }


def _judge(
    task: Task,
    rtol: float,
    step: Spectrum,
    system: Spectrum,
    data: "xarray.Dataset",
    modes: Mapping[str, Mode],
    length: float,
) -> Diagnosis:
    size = data.jacobian_error.attrs["reference_norm"]
    found = {}
    for name, mode in modes.items():
        curve = data.jacobian_error.sel(mode=name).values / (size if size > 0 else 1.0)
        steps, extrapolated = _steps_to(
            curve, data.iteration.values, rtol, step.radius, never=name == "one-step"
        )
        seconds, memory = _cost(task, mode, steps)
        found[name] = ModeDiagnosis(float(curve[-1]), steps, extrapolated, seconds, memory)
    burn_in, peak = 0, 1.0
    if "unrolled" in modes:
        burn_in, peak = _burn_in(data.jacobian_error.sel(mode="unrolled").values, data)
    # The iterates' error, relative to the solution's norm; iteration 0's serves a zero solution.
    errors = data.iterate_error.values
    distance = float(errors[-1]) / (length or float(errors[0]) or 1.0)
    recommended, advice = _advise(found, rtol, task, system)
    if recommended is not None and not distance < 0.1:
        advice += (
            f" Beware: the iteration has not converged (contraction rate {step.radius:.4g} per "
            "step), so that the answer is wrong whatever its derivative."
        )
    return Diagnosis(
        **_measured(task, rtol, step, system),
        trusted=True,
        reason="",
        relative=size > 0,
        distance=distance,
        burn_in=burn_in,
        burn_in_peak=peak,
        modes=found,
        recommended=recommended,
        advice=advice,
    )


def _burn_in(curve: np.ndarray, data: "xarray.Dataset") -> tuple[int, float]:
    """Return how long the error stays above its starting value, and its peak over it."""
    if curve[0] > 0:
        above = np.flatnonzero(curve > curve[0] * (1 + 1e-9))
        peak = float(np.nanmax(curve) / curve[0])
    else:  # It starts exact, as when J* = 0: from the first step's error.
        later = np.flatnonzero(curve > curve[1])
        above, peak = later, float(np.nanmax(curve) / curve[1]) if curve[1] > 0 else 1.0
    if above.size == 0:
        return 0, 1.0
    return int(data.iteration.values[above[-1]]), peak


def _steps_to(
    curve: np.ndarray, iterations: np.ndarray, rtol: float, rate: float, *, never: bool
) -> tuple[int | None, bool]:
    """Return the first iteration from which the error stays below `rtol`."""
    above = np.flatnonzero(~(curve <= rtol))
    if above.size == 0:
        return 0, False
    if above[-1] + 1 < curve.size:
        return int(iterations[above[-1] + 1]), False
    if never or not 0 < rate < 1 or not np.isfinite(curve[-1]):
        return None, True
    return int(iterations[-1] + np.ceil(np.log(rtol / curve[-1]) / np.log(rate))), True


def _cost(task: Task, mode: Mode, steps: int | None) -> tuple[float, int]:
    """Return seconds and temporary bytes of one compiled gradient of ``sum(x)`` in `mode`."""
    moving, rest = floating_part(task.theta)
    trial = task.stop.max_steps
    wanted = trial if steps is None else max(steps, 1)
    taken = min(wanted, trial)

    def total(moving):
        theta = eqx.combine(moving, rest)
        run = (task.problem, task.algorithm, task.x0, theta)
        x = solve(*run, stop=Steps(taken), mode=mode, throw=False).x
        return tree.dot(x, jax.tree.map(jnp.ones_like, x))

    compiled = jax.jit(jax.grad(total)).lower(moving).compile()
    memory = compiled.memory_analysis()
    times: list[float] = []
    while len(times) < LEAST_RUNS or (len(times) < MOST_RUNS and sum(times) < ENOUGH_SECONDS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(moving))
        times.append(time.perf_counter() - start)
    return min(times) * wanted / taken, int(getattr(memory, "temp_size_in_bytes", 0))


def _advise(
    found: Mapping[str, ModeDiagnosis], rtol: float, task: Task, system: Spectrum
) -> tuple[str | None, str]:
    """Return the mode whose gradient is right to `rtol` at the least time, and why.

    Of modes about as fast, it is the one with the fewest steps, then the least memory: these are
    counted, so that the advice does not change from one run to the next.
    """
    symmetric, definite = _probed(system, tree.result_dtype(task.x0))
    reachable = {k: m for k, m in found.items() if m.steps_to_rtol is not None}
    if not reachable:
        return None, (
            f"No mode reaches a derivative error of {rtol:g}: the iteration does not converge "
            "at this point. Make the step smaller, or use another algorithm."
        )
    least = min(m.seconds for m in reachable.values())
    fast = {k: m for k, m in reachable.items() if m.seconds <= ALIKE * least}
    name = min(fast, key=lambda k: (fast[k].steps_to_rtol, fast[k].temporary_bytes))
    text = f"Use {_LABELS[name]}: its derivative is right to {rtol:g} {_after(found[name])}"
    others = [f"{k} {_after(m)}" for k, m in found.items() if k != name]
    text += f" ({'; '.join(others)})." if others else "."
    if isinstance(task.problem, Minimization) and symmetric and not definite:
        text += " Beware: the solution that was found is a saddle point, not a minimiser."
    if task.problem.symmetric and not symmetric:
        text += " The problem says that its system is symmetric; probing says that it is not."
    return name, text


def _after(mode: ModeDiagnosis) -> str:
    if mode.steps_to_rtol is None:
        return "never"
    when = "after about" if mode.extrapolated else "within"
    return f"{when} {mode.steps_to_rtol} steps, {1e3 * mode.seconds:.2g} ms a gradient"


_LABELS = {"unrolled": "Unrolled()", "one-step": "OneStep()", "implicit": "Implicit()"}
