"""Measure, iteration by iteration, how an iterate and its derivatives converge."""

import datetime
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.accuracy.correction import correct
from iterdiff.accuracy.estimate import compare
from iterdiff.algorithms.base import Algorithm, check_fits, traceable_step
from iterdiff.diagnostics.reference import Reference, find_reference
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_count
from iterdiff.jaxtools.extras import import_extra
from iterdiff.jaxtools.jaxpr import shared
from iterdiff.jaxtools.jit import compiled
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.run import run_loop
from iterdiff.loop.status import Status
from iterdiff.loop.stopping import Steps
from iterdiff.loop.task import Tangents, Task
from iterdiff.modes.base import Mode
from iterdiff.problems.checks import check_residual, check_theta, check_untraced, check_x0
from iterdiff.problems.problem import Problem, objective_of

if TYPE_CHECKING:
    import xarray

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` with numbers of recorded iterations."""

CHUNKS = 100
"""How often, at most, progress is reported; each report costs a return to Python."""


class Judged(NamedTuple):
    """What can be said of a Jacobian's error without the reference."""

    estimate: Float[Array, ""]
    trusted: Bool[Array, ""]


class Measured(NamedTuple):
    """What is recorded of one iterate; see `trace` for the meaning of each."""

    iterate_error: Float[Array, ""]
    objective_error: Float[Array, ""] | None
    residual_norm: Float[Array, ""]
    jacobian_error: dict[str, Float[Array, ""]]
    judged: dict[str, Judged] | None


class Recorder(eqx.Module):
    """One traced iteration: what runs, what is followed, what is compared with.

    Attributes
    ----------
    task : Task
        The iteration.
    tangents : dict of Tangents
        For every mode, its way of following tangents.
    reference : Reference
        The truth.
    share : float
        What the summed squares of the Jacobian's error are divided by: 1 for the full
        Jacobian, k for k probes.
    every : int
        Steps from one record to the next.
    directions : pytree, optional
        The tangents' directions, where their errors are estimated as well: without a look at the
        reference.
    """

    task: Task
    tangents: dict[str, Tangents]
    reference: Reference
    share: float = eqx.field(static=True)
    every: int = eqx.field(static=True)
    directions: PyTree = None

    def begin(self) -> tuple[Any, dict[str, PyTree]]:
        """Return the state and the tangents at iteration 0."""
        state = self.task.state()
        return state, {name: follow.init(state) for name, follow in self.tangents.items()}

    def advance(self, carry: tuple[Any, dict[str, PyTree]]) -> tuple[Any, dict[str, PyTree]]:
        """Return the state and the tangents one step later."""
        state, carried = carry
        new = self.task.algorithm.step(self.task.problem, state, self.task.theta)
        carried = {
            name: follow.update(carried[name], state) for name, follow in self.tangents.items()
        }
        return new, carried

    def measure(self, carry: tuple[Any, dict[str, PyTree]]) -> Measured:
        """Return the errors of the present iterate."""
        state, carried = carry
        problem, theta, truth = self.task.problem, self.task.theta, self.reference
        objective = objective_of(problem)
        gap = None
        if objective is not None:
            gap = objective(state.x, theta) - objective(truth.x, theta)
        found = {k: follow.value(carried[k], state) for k, follow in self.tangents.items()}
        errors = {k: self._size(tree.sub(J, truth.tangents)) for k, J in found.items()}
        judged = None if self.directions is None else self._judged(state.x, found)
        return Measured(
            tree.norm(tree.sub(state.x, truth.x)),
            gap,
            tree.norm(problem.residual(state.x, theta)),
            errors,
            judged,
        )

    def _size(self, tangents: PyTree) -> Float[Array, ""]:
        return tree.norm(tangents) / np.sqrt(self.share)

    def _judged(self, x: PyTree, found: dict[str, PyTree]) -> dict[str, Judged]:
        """Estimate the errors of all modes' tangents, from one Newton correction of `x`."""
        correction = correct(self.task.problem, x, self.task.theta)
        here = jax.vmap(correction.at.forward)(self.directions)
        better = jax.vmap(correction.exactly().forward)(self.directions)
        judged = {}
        for name, tangents in found.items():
            error = compare(tangents, here, better, correction.points)
            judged[name] = Judged(error.absolute / np.sqrt(self.share), error.trusted)
        return judged


@compiled
def record(recorder: Recorder, carry: Any, count: int) -> tuple[Any, Float[Array, "count k"]]:
    """Return the carry after `count` records, and these: a scan that keeps numbers alone.

    What an iterate is measured by and the step from it share their work (a gradient, say). The
    numbers of a record, the leaves of `Measured`, make one row: to write them one by one takes
    longer than a step of a small problem.
    """
    dynamic, static = eqx.partition(carry, eqx.is_array)

    def one_step(dynamic, _):
        new = recorder.advance(eqx.combine(dynamic, static))
        return eqx.filter(new, eqx.is_array), None

    @shared
    def measured_step(dynamic):
        row = _row(recorder.measure(eqx.combine(dynamic, static)))
        return one_step(dynamic, None)[0], row

    def one_record(dynamic, _):
        dynamic, row = measured_step(dynamic)
        if recorder.every > 1:
            dynamic, _ = jax.lax.scan(one_step, dynamic, None, recorder.every - 1)
        return dynamic, row

    dynamic, rows = jax.lax.scan(one_record, dynamic, None, count)
    return eqx.combine(dynamic, static), rows


def _row(measured: Measured) -> Float[Array, " k"]:
    leaves = jax.tree.leaves(measured)
    dtype = jnp.result_type(*filter(tree.is_floating, leaves))
    return jnp.stack([leaf.astype(dtype) for leaf in leaves])


@compiled
def _begin(recorder: Recorder) -> Any:
    return recorder.begin()


@compiled
def _measure(recorder: Recorder, carry: Any) -> Measured:
    return recorder.measure(carry)


def trace(
    problem: Problem,
    algorithm: Algorithm,
    x0: PyTree,
    theta: PyTree,
    *,
    steps: int,
    modes: Mapping[str, Mode],
    reference: object = None,
    probes: int | tuple[int, Array] | None = None,
    every: int = 1,
    estimate: bool = False,
    progress: Progress | None = None,
) -> "xarray.Dataset":
    r"""Measure how the iterates and their derivatives, in every mode, converge.

    Parameters
    ----------
    problem, algorithm, x0, theta
        As in `solve`.
    steps : int
        How many steps to take.
    modes : mapping of str to Mode
        The modes to compare, by the label they get.
    reference : callable or pytree, optional
        The truth: a function ``theta -> x*`` that JAX can differentiate, or the solution
        ``x*`` itself, like `x0` (its Jacobian is then the implicit one there). By default it
        is computed, by Newton's method to machine precision from the last iterate.
    probes : int or (int, PRNG key), optional
        Follow this many random directions instead of every parameter, drawn by the key (by
        default ``jax.random.key(0)``). The squared
        `jacobian_error` is then an unbiased estimate, from Gaussian directions v with
        :math:`E\,\|E v\|^2 = \|E\|_F^2`, at a cost that does not depend on how many parameters
        there are; its relative standard deviation is at most :math:`\sqrt{2 / k}`.
    every : int
        Record every so many steps.
    estimate : bool
        Estimate the Jacobian's errors as well, as `derivative_error` does, which knows nothing of
        the reference. It costs two factorisations and some solves for every record; the problem
        is differentiated twice.
    progress : callable, optional
        Called as ``progress(done, total)`` now and then.

    Returns
    -------
    xarray.Dataset
        Dimensions ``mode`` and ``iteration`` (0 is `x0`); all norms Euclidean or Frobenius,
        all errors absolute:

        - ``iterate_error(iteration)``: :math:`\|x_t - x^*\|`
        - ``objective_error(iteration)``: :math:`f(x_t, \theta) - f(x^*, \theta)`, where the
          problem has an objective
        - ``residual_norm(iteration)``
        - ``jacobian_error(mode, iteration)``: :math:`\|J_t - J^*\|_F`, where :math:`J_t` is
          the mode's derivative of the iterate and :math:`J^*` the solution derivative; its
          attribute ``reference_norm`` is :math:`\|J^*\|_F`
        - ``jacobian_error_estimate(mode, iteration)`` and ``estimate_trusted(mode, iteration)``:
          :math:`\|J_t - J(x_t^+)\|_F`, where :math:`J(x_t^+)` is the implicit derivative after
          one Newton correction of the iterate, and whether that is meant to be within a factor
          of two of ``jacobian_error``; NaN and False without `estimate`.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit, or where the reference cannot be computed.
    ImportError
        If xarray is not installed (``pip install 'iterdiff[study]'``).

    Notes
    -----
    Memory does not grow with the number of steps, but for the recorded numbers. A run that
    diverges is recorded as it is, infinities and NaN included; the attribute ``status`` of the
    dataset says so.
    """
    count, key = _check_counts(modes, probes, every, steps, estimate)
    task = _checked_task(problem, algorithm, x0, theta, steps)
    moving = floating_part(task.theta)[0]
    directions, share = _directions(moving, count, key)
    judged = directions if estimate else None
    with traceable_step(algorithm):
        guess = _last_iterate(task) if reference is None else task.x0
        truth = find_reference(problem, guess, task.theta, directions, reference)
        followers = {name: mode.tangents(task, directions) for name, mode in modes.items()}
        recorder = Recorder(task, followers, truth, share, every, judged)
        measured = _record_all(recorder, steps // every, progress)
    return _dataset(recorder, measured, modes)


def _checked_task(problem, algorithm, x0, theta, steps) -> Task:
    check_fits(problem, algorithm)
    x0, theta = check_x0(x0), check_theta(theta)
    check_residual(problem, x0, theta)
    check_untraced("trace", problem, algorithm, x0, theta)
    return Task(problem, algorithm, x0, theta, Steps(steps))


def _check_counts(
    modes: Mapping[str, Mode], probes: Any, every: Any, steps: Any, estimate: Any
) -> tuple[int | None, Array | None]:
    """Refuse counts that are none; return how many probes, and the key that draws them."""
    count, key = probes, None
    if isinstance(probes, tuple) and len(probes) == 2 and eqx.is_array(probes[1]):
        count, key = probes
    for name, value in (("steps", steps), ("probes", count), ("every", every)):
        if value is not None or name != "probes":
            check_count(name, value)
    if every > steps:
        raise ValueError(f"`every` = {every} exceeds `steps` = {steps}: nothing would be recorded.")
    if not isinstance(estimate, bool):
        raise TypeError(f"`estimate` must be True or False, not {estimate!r}.")
    if not isinstance(modes, Mapping) or not all(isinstance(m, Mode) for m in modes.values()):
        raise TypeError(
            "`modes` must map labels to modes, for example {'implicit': iterdiff.Implicit()}."
        )
    for mode in modes.values():
        mode.check(Steps(steps))
    return count, key


def _directions(moving: PyTree, probes: int | None, key: Array | None) -> tuple[PyTree, float]:
    if probes is None:
        return tree.basis(moving), 1.0
    key = jax.random.key(0) if key is None else key
    return tree.random_directions(key, moving, probes), float(probes)


def _last_iterate(task: Task) -> PyTree:
    """Return the last finite iterate, refusing a start where the residual is not finite."""
    x, sound = _run(task)
    if not bool(sound):
        raise ValueError(f"`problem`: {Status.NOT_FINITE_AT_START.advice}")
    return x


@compiled
def _run(task: Task) -> tuple[PyTree, Bool[Array, ""]]:
    sound = tree.all_finite(task.problem.residual(task.x0, task.theta))
    return run_loop(task.loop(), task.state()).state.x, sound


def _record_all(recorder: Recorder, count: int, progress: Progress | None) -> Measured:
    """Run all of it; in pieces of equal length (but one) if progress is to be reported."""
    carry, parts, done = _begin(recorder), [], 0
    piece = count if progress is None else max(1, -(-count // CHUNKS))
    while done < count:
        length = min(piece, count - done)
        carry, rows = record(recorder, carry, length)
        parts.append(np.asarray(rows))
        done += length
        if progress is not None:
            progress(done, count)
    last, structure = jax.tree.flatten(jax.device_get(_measure(recorder, carry)))
    columns = [
        np.append(column, end).astype(end.dtype)
        for column, end in zip(np.concatenate(parts).T, last, strict=True)
    ]
    return jax.tree.unflatten(structure, columns)


def _dataset(recorder: Recorder, measured: Measured, modes: Mapping[str, Mode]) -> "xarray.Dataset":
    xarray = import_extra("xarray", "study")
    variables: dict[str, Any] = {
        "iterate_error": ("iteration", measured.iterate_error, {"long_name": "‖x_t − x*‖"}),
        "residual_norm": ("iteration", measured.residual_norm, {"long_name": "‖r(x_t, θ)‖"}),
    }
    if measured.objective_error is not None:
        label = {"long_name": "f(x_t, θ) − f(x*, θ)"}
        variables["objective_error"] = ("iteration", measured.objective_error, label)
    errors = [measured.jacobian_error[name] for name in modes]
    reference_norm = float(tree.norm(recorder.reference.tangents) / np.sqrt(recorder.share))
    rows = np.stack(errors) if errors else np.zeros((0, measured.residual_norm.size))
    variables["jacobian_error"] = (
        ("mode", "iteration"),
        rows,
        {
            "long_name": "‖J_t − J*‖_F (absolute)",
            "reference_norm": reference_norm,
            "directions": "all" if recorder.share == 1.0 else f"{recorder.share:g} probes",
        },
    )
    estimates, trusted = np.full(rows.shape, np.nan), np.zeros(rows.shape, bool)
    if measured.judged is not None:
        for row, name in enumerate(modes):
            estimates[row], trusted[row] = measured.judged[name]
    label = {"long_name": "‖J_t − J(x_t⁺)‖_F (absolute)"}
    variables["jacobian_error_estimate"] = (("mode", "iteration"), estimates, label)
    variables["estimate_trusted"] = (("mode", "iteration"), trusted)
    iterations = np.arange(measured.residual_norm.size) * recorder.every
    return xarray.Dataset(
        variables,
        coords={"mode": list(modes), "iteration": iterations},
        attrs=_attributes(recorder, measured, iterations),
    )


def _attributes(recorder: Recorder, measured: Measured, iterations: np.ndarray) -> dict[str, Any]:
    task = recorder.task
    broken = ~np.isfinite(measured.residual_norm)
    status = "finite throughout"
    if broken.any():
        status = f"diverged: not finite from iteration {iterations[int(np.argmax(broken))]} on"
    return {
        "status": status,
        "problem": type(task.problem).__name__,
        "algorithm": type(task.algorithm).__name__,
        "unknowns": tree.size(task.x0),
        "parameters": tree.size(floating_part(task.theta)[0]),
        "dtype": str(tree.result_dtype(task.x0)),
        "device": jax.devices()[0].device_kind,
        "iterdiff_version": importlib.metadata.version("iterdiff"),
        "jax_version": jax.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
