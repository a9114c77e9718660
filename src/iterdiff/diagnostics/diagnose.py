"""Measure an iteration and its derivatives on a trial run, and recommend a mode."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from iterdiff.accuracy.consistency import remembers
from iterdiff.accuracy.reasons import DISAGREES, OK, ONE_SIDED, REASONS, SINGULAR, TOO_FAR
from iterdiff.algorithms.base import Algorithm, check_fits, traceable_step
from iterdiff.diagnostics.advice import Structure, explain, recommend
from iterdiff.diagnostics.diagnosis import Diagnosis, ModeDiagnosis
from iterdiff.diagnostics.gradient_cost import gradient_cost
from iterdiff.diagnostics.newton_points import newton_points, solves_another_problem
from iterdiff.diagnostics.reference import MAX_ROUNDING, polish
from iterdiff.diagnostics.trace import trace
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_count, check_tolerance
from iterdiff.jaxtools.jit import compiled, quickly_compiled
from iterdiff.jaxtools.tree import floating_part
from iterdiff.linalg.spectrum import Spectrum, probe
from iterdiff.loop.stopping import Steps
from iterdiff.loop.task import Task
from iterdiff.modes.base import Mode
from iterdiff.modes.implicit import Implicit
from iterdiff.modes.unrolled import OneStep, Unrolled
from iterdiff.problems.checks import check_untraced
from iterdiff.problems.inputs import check_inputs
from iterdiff.problems.problem import Problem, SmoothMinimization
from iterdiff.theory.measured import measured_burn_in

if TYPE_CHECKING:
    import xarray

DEFAULT_STEPS = 1000
"""Steps of the trial run."""

MAX_RECORDS = 200
"""Upper limit of the number of records of the trial run."""

PROBES = 8
"""Random directions in which derivatives are followed if there are many parameters."""

MAX_FULL_PARAMETERS = 16
"""Upper limit of the number of parameters for which the whole Jacobian is followed."""

WHY = (
    *REASONS,
    "No solution was found: the residual does not fall below a value that is not zero. Check that "
    "the problem has a solution for this `theta`, or start elsewhere.",
)
NO_ROOT = len(REASONS)
"""The last of the reasons `WHY` errors cannot be measured; the others are those of an estimate."""

MAX_FROZEN_DISTANCE_EPS = 1e3
"""Distance to the solution, relative to it and in units of the machine precision, up to which an
iteration may have come to rest: the derivative of a step that does not move is the identity."""

MAX_FROZEN_RATE_GAP = 1e-6
"""Largest difference from 1 of the contraction rate of a step that does not move."""

MAX_ASYMMETRY_EPS = 1e3
"""Asymmetry up to which a matrix counts as symmetric, in units of the machine precision."""


@quickly_compiled()
def diagnose(
    problem: Problem,
    algorithm: Algorithm,
    x0: PyTree,
    theta: PyTree,
    *,
    rtol: float = 1e-2,
    budget: int | None = None,
    args: PyTree = None,
) -> Diagnosis:
    """Measure an iteration and its derivatives on a trial run, and recommend a mode.

    Parameters
    ----------
    problem, algorithm, x0, theta
        As in `solve`.
    rtol : float
        The largest acceptable relative error of the derivative.
    budget : int, optional
        Steps of the trial run, by default 1000.
    args : pytree, optional
        As in `solve`.

    Returns
    -------
    Diagnosis
        Print it, or read its fields.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    ImportError
        If xarray is not installed (``pip install 'iterdiff[study]'``).

    Notes
    -----
    Errors refer to the solution that damped Newton steps find from the end of the trial run, and
    to the implicit derivative there. If Newton's method fails, the linear system is singular at
    the solution, the solution is at a kink, or the algorithm converges to another point, the
    diagnosis gives the reason and recommends nothing.

    With more than 16 parameters, derivatives are followed in 8 random directions.
    """
    check_tolerance("rtol", rtol)
    budget = DEFAULT_STEPS if budget is None else check_count("budget", budget)
    check_fits(problem, algorithm)
    problem, x0, theta = check_inputs(problem, x0, theta, args)
    check_untraced("diagnose", problem, algorithm, x0, theta)
    task = Task(problem, algorithm, x0, theta, Steps(budget))
    trial = _run_trial(task)
    reason = _why_untrusted(task, trial)
    if reason != OK:
        return _untrusted(task, rtol, trial, reason)
    modes = _modes_of(algorithm)
    parameters = tree.size(floating_part(theta)[0])
    data = trace(
        problem,
        algorithm,
        x0,
        theta,
        steps=budget,
        modes=modes,
        reference=trial.solution,
        probes=None if parameters <= MAX_FULL_PARAMETERS else PROBES,
        every=_every(task),
    )
    return _trusted(task, rtol, trial, data, modes)


class _Trial(NamedTuple):
    """The trial run.

    Attributes
    ----------
    x : pytree
        The last iterate.
    solution : pytree or None
        The solution that Newton's method found; None if it failed.
    stuck : bool
        Whether it failed because the residual falls no further.
    rate : float
        The contraction rate at `x`; NaN if the iteration has come to rest there.
    structure : Structure
        Of ``d residual / dx`` at the solution, or else at `x`.
    """

    x: PyTree
    solution: PyTree | None
    stuck: bool
    rate: float
    structure: Structure


def _run_trial(task: Task) -> _Trial:
    problem, theta = task.problem, task.theta
    with traceable_step(task.algorithm):
        end = _last_state(task.with_snapshot())
    solution, stuck = None, True
    for guess in (end.x, task.x0):
        x, found, stuck_here = polish(problem, guess, theta)
        stuck = stuck and bool(stuck_here)
        if bool(found):
            solution = x
            break
    point = end.x if solution is None else solution
    system = _spectrum(lambda x: problem.residual(x, theta), point)
    limit = MAX_ASYMMETRY_EPS * float(jnp.finfo(tree.result_dtype(point)).eps)
    symmetric = system.asymmetry <= limit
    structure = Structure(
        symmetric=symmetric,
        positive_definite=symmetric and float(np.min(np.real(system.values))) > 0,
        declared_symmetric=problem.symmetric,
        minimization=isinstance(problem, SmoothMinimization),
    )
    return _Trial(end.x, solution, stuck, _contraction_rate(task, end, solution), structure)


def _contraction_rate(task: Task, end: Any, solution: PyTree | None) -> float:
    """Return the spectral radius of the step at the last state; NaN if that is at rest.

    The Krylov space begins with a change of the iterate alone. What the state only carries along,
    such as a factorisation, has the eigenvalue 1 and is not part of it.
    """
    floating, static = floating_part(end)

    def step(floating):
        return floating_part(task.step(eqx.combine(floating, static)))[0]

    changed = eqx.tree_at(lambda s: s.x, tree.zeros_like(floating), tree.full_like(end.x, 1.0))
    rate = _spectrum(step, floating, within=changed).radius
    if solution is None or rate < 1 - MAX_FROZEN_RATE_GAP:
        return rate
    eps = float(jnp.finfo(tree.result_dtype(end.x)).eps)
    distance = float(tree.norm(tree.sub(end.x, solution)))
    at_rest = distance <= MAX_FROZEN_DISTANCE_EPS * eps * (float(tree.norm(solution)) or 1.0)
    # There, a step that divides by what has become zero has any derivative.
    meaningless = rate <= 1 + MAX_FROZEN_RATE_GAP or remembers(
        task.algorithm, task.problem, end.x, task.theta
    )
    return float("nan") if at_rest and meaningless else rate


@compiled
def _last_state(task: Task) -> Any:
    return Implicit().primal(task).state


def _spectrum(
    function: Callable[[PyTree], PyTree], point: PyTree, within: PyTree | None = None
) -> Spectrum:
    """Return the spectrum of the function's Jacobian at a point."""
    return probe(lambda v: jax.jvp(function, (point,), (v,))[1], point, within=within)


def _why_untrusted(task: Task, trial: _Trial) -> int:
    """Return why errors cannot be measured, as an index of `WHY`; `OK` if they can."""
    problem, algorithm, theta = task.problem, task.algorithm, task.theta
    found = trial.solution is not None
    if trial.stuck:
        return NO_ROOT
    points = newton_points(problem, trial.solution if found else trial.x, theta)
    # `rounding` is NaN if the system is exactly singular.
    if not float(points.rounding) <= MAX_ROUNDING:
        return SINGULAR
    if not found:
        return TOO_FAR
    if bool(points.one_sided):
        return ONE_SIDED
    if algorithm.consistent:
        return OK
    points = newton_points(problem, trial.x, theta)
    return DISAGREES if solves_another_problem(problem, algorithm, theta, points) else OK


def _modes_of(algorithm: Algorithm) -> dict[str, Mode]:
    """Return the modes to compare: those that suit the algorithm."""
    modes: dict[str, Mode] = {}
    if algorithm.differentiable and not algorithm.caveat:
        modes["unrolled"] = Unrolled()
        if algorithm.last_steps_suffice:
            modes["one-step"] = OneStep()
    return modes | {"implicit": Implicit()}


def _every(task: Task) -> int:
    """Return the number of steps from one record to the next."""
    return max(1, task.stop.max_steps // MAX_RECORDS)


def _untrusted(task: Task, rtol: float, trial: _Trial, reason: int) -> Diagnosis:
    """Return the diagnosis if errors cannot be measured."""
    advice = "No derivative can be recommended. " + WHY[reason]
    if not trial.rate < 1 and reason == TOO_FAR:
        advice += (
            f" The iteration does not contract at its last iterate (rate {trial.rate:.4g} per "
            "step): make the step smaller, or start nearer to the solution."
        )
    return Diagnosis(
        **_always_known(task, rtol, trial),
        trusted=False,
        reason=WHY[reason],
        relative=True,
        distance=float("nan"),
        burn_in=0,
        burn_in_peak=float("nan"),
        modes={},
        recommended=None,
        advice=advice,
    )


def _always_known(task: Task, rtol: float, trial: _Trial) -> dict[str, Any]:
    """Return the fields of a diagnosis that do not depend on the solution."""
    return {
        "rtol": rtol,
        "steps": task.stop.max_steps,
        "every": _every(task),
        "contraction_rate": trial.rate,
        "symmetric": trial.structure.symmetric,
        "positive_definite": trial.structure.positive_definite,
        "declared_symmetric": trial.structure.declared_symmetric,
    }


def _trusted(
    task: Task, rtol: float, trial: _Trial, data: "xarray.Dataset", modes: Mapping[str, Mode]
) -> Diagnosis:
    """Return the diagnosis if errors can be measured."""
    size = data.jacobian_error.attrs["reference_norm"]
    found = {}
    for label, mode in modes.items():
        curve = data.jacobian_error.sel(mode=label)
        found[label] = _diagnose_mode(task, mode, curve / (size if size > 0 else 1.0), rtol, trial)
    burn_in, peak = 0, 1.0
    if "unrolled" in modes:
        measured = measured_burn_in(data.jacobian_error.sel(mode="unrolled").values)
        peak = measured.peak_ratio
        if measured.length > 0:
            burn_in = int(data.iteration.values[measured.length - 1])
    errors = data.iterate_error.values
    # A solution of zero has no scale: the first iterate's error serves instead.
    scale = float(tree.norm(trial.solution)) or float(errors[0]) or 1.0
    distance = float(errors[-1]) / scale
    recommended = recommend(found)
    return Diagnosis(
        **_always_known(task, rtol, trial),
        trusted=True,
        reason="",
        relative=size > 0,
        distance=distance,
        burn_in=burn_in,
        burn_in_peak=peak,
        modes=found,
        recommended=recommended,
        advice=explain(recommended, found, rtol, trial.rate, distance, trial.structure),
    )


def _diagnose_mode(
    task: Task, mode: Mode, curve: "xarray.DataArray", rtol: float, trial: _Trial
) -> ModeDiagnosis:
    """Return what a mode's error curve shows, and what its gradient costs."""
    converges = not (isinstance(mode, Unrolled) and mode.last is not None)
    errors, iterations = curve.values, curve.iteration.values
    steps, extrapolated = _steps_to(errors, iterations, rtol, trial.rate if converges else None)
    budget = task.stop.max_steps
    wanted = budget if steps is None else max(steps, 1)
    timed = min(wanted, budget)
    cost = gradient_cost(task, mode, timed)
    seconds = cost.seconds * wanted / timed
    return ModeDiagnosis(
        float(errors[-1]), steps, extrapolated, seconds, cost.temporary_bytes, cost.forward_only
    )


def _steps_to(
    errors: np.ndarray, iterations: np.ndarray, rtol: float, rate: float | None
) -> tuple[int | None, bool]:
    """Return the first iteration from which on the error stays below `rtol`.

    Parameters
    ----------
    errors, iterations : arrays of shape (records,)
        The relative error, and where it was recorded.
    rtol : float
        The tolerance.
    rate : float or None
        At which the error falls after the last record; None if it does not, NaN if not known.

    Returns
    -------
    steps : int or None
        The iteration, None if there is none.
    extrapolated : bool
        Whether it is after the last record.
    """
    above = np.flatnonzero(~(errors <= rtol))
    if above.size == 0:
        return 0, False
    if above[-1] + 1 < errors.size:
        return int(iterations[above[-1] + 1]), False
    if rate is None or not 0 < rate < 1 or not np.isfinite(errors[-1]):
        return None, True
    further = np.ceil(np.log(rtol / errors[-1]) / np.log(rate))
    return int(iterations[-1] + further), True
