"""Measure, iteration by iteration, how an iterate and its derivatives converge."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
from jaxtyping import Array, Bool, PyTree

from iterdiff.algorithms.base import Algorithm, check_fits, traceable_step
from iterdiff.algorithms.status import Status
from iterdiff.diagnostics.dataset import to_dataset
from iterdiff.diagnostics.recorder import Progress, Recorder, record_all
from iterdiff.diagnostics.reference import find_reference
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_bool, check_callable, check_count
from iterdiff.jaxtools.jit import compiled, quickly_compiled
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.run import run_loop
from iterdiff.loop.stopping import Steps
from iterdiff.loop.task import Task
from iterdiff.modes.base import Mode
from iterdiff.problems.checks import check_untraced
from iterdiff.problems.inputs import check_inputs, plain
from iterdiff.problems.layout import Seen
from iterdiff.problems.problem import Problem

if TYPE_CHECKING:
    import xarray

DEFAULT_SEED = 0
"""Seeds the key that draws probes if none is passed."""


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
    args: PyTree = None,
    progress: Progress | None = None,
) -> "xarray.Dataset":
    r"""Measure how the iterates, and their derivatives by each mode, converge.

    Parameters
    ----------
    problem, algorithm, x0, theta
        As in `solve`.
    steps : int
        Number of steps.
    modes : mapping of str to Mode
        The modes to compare, each under a label.
    reference : callable or pytree, optional
        The solution to compare with: a differentiable function ``theta -> x*``, or the solution
        ``x*`` itself, like `x0`, whose Jacobian is then the implicit derivative there. By default,
        Newton's method computes ``x*`` to machine precision from the last iterate.
    probes : int or (int, PRNG key), optional
        Follow this many random directions instead of one direction per parameter. The cost then
        does not depend on the number of parameters. The default key is ``jax.random.key(0)``. The
        squared `jacobian_error` is an unbiased estimate, since Gaussian directions v satisfy
        :math:`E\,\|E v\|^2 = \|E\|_F^2`; its relative standard deviation is at most
        :math:`\sqrt{2 / k}` with k probes.
    every : int
        Number of steps from one record to the next.
    estimate : bool
        Whether to also estimate the Jacobian errors without the reference, as `derivative_error`
        does. Costs two factorisations and some solves per record, and differentiates the residual
        twice.
    args : pytree, optional
        As in `solve`.
    progress : callable, optional
        Called as ``progress(done, total)`` with numbers of records, at most 100 times.

    Returns
    -------
    xarray.Dataset
        Dimensions ``mode`` and ``iteration`` (0 is `x0`). All norms are Euclidean or Frobenius,
        all errors absolute:

        - ``iterate_error(iteration)``: :math:`\|x_t - x^*\|`
        - ``objective_error(iteration)``: :math:`f(x_t, \theta) - f(x^*, \theta)`, if the problem
          has an objective
        - ``residual_norm(iteration)``
        - ``jacobian_error(mode, iteration)``: :math:`\|J_t - J^*\|_F`, where :math:`J_t` is
          the mode's derivative of the iterate and :math:`J^*` the solution derivative. Its
          attribute ``reference_norm`` is :math:`\|J^*\|_F`.
        - ``jacobian_error_estimate(mode, iteration)``: :math:`\|J_t - J(x_t^+)\|_F`, where
          :math:`J(x_t^+)` is the implicit derivative after one Newton correction of the iterate;
          NaN without `estimate`
        - ``estimate_trusted(mode, iteration)``: whether the estimate is meant to be within a factor
          of two of ``jacobian_error``; False without `estimate`

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or the reference cannot be computed.
    ImportError
        If xarray is not installed (``pip install 'iterdiff[study]'``).

    Notes
    -----
    Memory does not grow with the number of steps, except for the recorded numbers. If the run
    diverges, infinity and NaN are recorded, and the dataset's attribute ``status`` names the
    iteration.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.Minimization(lambda x, theta: (x - theta) ** 2)
    >>> run = (problem, itd.GradientDescent(0.25), jnp.array(0.0), jnp.array(1.0))
    >>> data = itd.trace(*run, steps=3, modes={"unrolled": itd.Unrolled()})
    >>> data.jacobian_error.sel(mode="unrolled").values.tolist()
    [1.0, 0.5, 0.25, 0.125]
    """
    if progress is not None:
        check_callable(progress=progress)
    run = (problem, algorithm, x0, theta)
    options = {"reference": reference, "probes": probes, "every": every, "estimate": estimate}
    recorder = build_recorder(*run, steps=steps, modes=modes, args=args, **options)
    with traceable_step(algorithm), quickly_compiled(steps):
        records = record_all(recorder, progress)
    return to_dataset(recorder, records)


def build_recorder(
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
    args: PyTree = None,
) -> Recorder:
    """Check the arguments of `trace`, find the reference, and return what `trace` runs.

    ``record(recorder, begin(recorder), recorder.count)``, with `record` and `begin` from
    `iterdiff.diagnostics.recorder`, is the run. To lower or compile it without running it, pass
    `record` to ``jax.jit``.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or the reference cannot be computed.
    """
    drawn = _check_options(modes, probes, every, steps, estimate)
    check_fits(problem, algorithm)
    problem, x0, theta = check_inputs(problem, x0, theta, args)
    check_untraced("trace", problem, algorithm, x0, theta)
    task = Task(problem, algorithm, x0, theta, Steps(steps))
    floating = floating_part(theta)[0]
    if drawn is None:
        count, directions = None, _basis(floating)
    else:
        count, key = drawn
        directions = tree.random_directions(key, floating, count)
    with traceable_step(algorithm), quickly_compiled(steps):
        task = task.with_snapshot()
        guess = _last_iterate(task) if reference is None else x0
        truth = find_reference(problem, guess, theta, directions, _seen(problem, reference))
        tangents = {label: mode.tangents(task, directions) for label, mode in modes.items()}
    return Recorder(task, tangents, truth, directions, count, every, estimate)


@compiled
def _basis(floating: PyTree) -> PyTree:
    return tree.basis(floating)


def _seen(problem: Problem, reference: object) -> object:
    """Return the reference in the unknowns that we compute with."""
    if problem.layout is None or reference is None:
        return reference
    if callable(reference) and not problem.layout.describes(reference):
        return Seen(reference, problem.layout, of_x=False, like_x=True)
    return plain(problem.layout, reference)


def _check_options(
    modes: Mapping[str, Mode], probes: Any, every: Any, steps: Any, estimate: Any
) -> tuple[int, Array] | None:
    """Check the arguments that `solve` does not have; return the number of probes and their key."""
    check_count("steps", steps)
    check_count("every", every)
    if every > steps:
        raise ValueError(f"`every` = {every} exceeds `steps` = {steps}: nothing would be recorded.")
    check_bool(estimate=estimate)
    if not isinstance(modes, Mapping) or not all(isinstance(m, Mode) for m in modes.values()):
        raise TypeError(
            "`modes` must map labels to modes, for example {'implicit': iterdiff.Implicit()}."
        )
    for mode in modes.values():
        mode.check(Steps(steps))
    if probes is None:
        return None
    if isinstance(probes, tuple) and len(probes) == 2 and eqx.is_array(probes[1]):
        return check_count("probes", probes[0]), probes[1]
    if isinstance(probes, tuple):
        raise TypeError("`probes` must be an int, or a pair (int, PRNG key).")
    return check_count("probes", probes), jax.random.key(DEFAULT_SEED)


def _last_iterate(task: Task) -> PyTree:
    """Return the last finite iterate.

    Raises
    ------
    ValueError
        If the residual is not finite at `x0`.
    """
    x, finite_at_start = _run(task)
    if not bool(finite_at_start):
        raise ValueError(f"`problem`: {Status.NOT_FINITE_AT_START.advice}")
    return x


@compiled
def _run(task: Task) -> tuple[PyTree, Bool[Array, ""]]:
    finite_at_start = tree.all_finite(task.problem.residual(task.x0, task.theta))
    return run_loop(task.loop(), task.state()).state.x, finite_at_start
