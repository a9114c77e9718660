r"""Modes that look at their own derivative, and say so when it is wrong.

The pushforward of a solve, :math:`\dot\theta \mapsto \dot x = J \dot\theta`, and its
transpose are linear; a check is not. It is hidden from differentiation where JAX
lets a linear map have an implementation of our choice, forward and transposed: a linear solve.
The system

.. math::

    \begin{pmatrix} I & -J \\ 0 & I \end{pmatrix}
    \begin{pmatrix} u \\ v \end{pmatrix} =
    \begin{pmatrix} 0 \\ \dot\theta \end{pmatrix}

has the solution :math:`u = J \dot\theta`; the transposed one gives :math:`J^\top w`. Our
implementation computes these, estimates their error, and acts on it. JAX takes higher
derivatives from the matrix, and so never sees the check.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.accuracy.consistency import disagree, remembers
from iterdiff.accuracy.correction import Correction, at_kink
from iterdiff.accuracy.estimate import NEAR, REASONS, ErrorEstimate, compare
from iterdiff.accuracy.report import REPORT_SIZE, to_vector
from iterdiff.accuracy.sensitivity import Sensitivity
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import Tolerance, check_tolerance
from iterdiff.jaxtools.closures import hoist, merged, perturbed
from iterdiff.jaxtools.lax import custom_solve
from iterdiff.jaxtools.raise_if import raise_if
from iterdiff.linalg.solve import Structure
from iterdiff.loop.stopping import StoppingRule
from iterdiff.loop.task import Tangents, Task
from iterdiff.modes.base import Mode, Outcome
from iterdiff.modes.implicit import Implicit
from iterdiff.problems.problem import CompositeMinimization, Problem, structure_of

OnFailure = Literal["warn", "raise", "nan"]


VANISHING = 1e6
"""A derivative whose error is this many times its size is likely to be zero."""


class DerivativeWarning(UserWarning):
    """A derivative whose estimated error is above the tolerance of `Checked`."""


class Checked(Mode):
    """Take the derivative in another mode, estimate its error, and never stay silent.

    Every forward and every backward pass estimates the relative error of what it returns, as
    solution derivative, by `derivative_error`'s method. Where that is above `rtol`, or cannot be
    told, it acts.

    Parameters
    ----------
    mode : Mode
        Takes the derivative.
    rtol : real scalar
        The relative error that is acceptable (Euclidean norm of the tangent, or of the gradient
        in theta), positive.
    on_failure : {"warn", "raise", "nan"}
        Issue a `DerivativeWarning` from the running program; raise from it; or return NaN in
        place of the derivative.
    atol : real scalar
        An absolute error that is acceptable besides. It is needed where the derivative is zero.
    report : array, optional
        The second argument that `value_and_grad_with_report` hands to the loss.

    Raises
    ------
    TypeError, ValueError
        For arguments of another kind or out of range.

    Notes
    -----
    Costs one factorisation (that of an implicit mode serves both) or a few loose Krylov solves, a
    handful of substitutions and products besides, and with an unrolled mode the primal once more.
    First-order derivatives are checked; derivatives of higher order go through unchecked and
    unharmed.

    What is judged is ``J v`` and ``J^T w`` for the ``v`` and ``w`` that arrive. That the slope
    ``w`` of a loss is taken at the iterate, not at the solution, is not seen from here:
    `derivative_error` with ``loss=`` counts it too.

    An algorithm of your own, whose state is the iterate alone, is asked besides whether it comes to
    rest where the residual vanishes (three steps).
    """

    mode: Mode
    rtol: Tolerance = 1e-2
    on_failure: OnFailure = eqx.field(static=True, default="warn")
    atol: Tolerance = 0.0
    report: Float[Array, " 6"] | None = None

    def __check_init__(self):
        """Refuse what is no mode, tolerance or action."""
        if not isinstance(self.mode, Mode) or isinstance(self.mode, Checked):
            raise TypeError(f"`mode` must be a mode that is not checked yet, not {self.mode!r}.")
        check_tolerance("rtol", self.rtol)
        check_tolerance("atol", self.atol, zero=True)
        if self.on_failure not in get_args(OnFailure):
            names = ", ".join(repr(name) for name in get_args(OnFailure))
            raise ValueError(f"`on_failure` must be one of {names}, not {self.on_failure!r}.")

    def check(self, stop: StoppingRule) -> None:
        """Refuse what the wrapped mode refuses."""
        self.mode.check(stop)

    def solve(self, task: Task, *, throw: bool) -> Outcome:
        """Run as the wrapped mode does, and put the check on the derivative."""
        outcome = self.mode.solve(task, throw=throw)
        return outcome._replace(x=self.answer(task, outcome.x, throw=throw))

    def attach(self, problem: Problem, x: PyTree, theta: PyTree, *, throw: bool) -> PyTree:
        """Return a solution from elsewhere, with the checked implicit derivative in `theta`.

        As `Implicit.attach`; how near the point is to a solution is checked too, since nothing
        else tells whether its solver solved this problem. The wrapped mode is `Implicit`.
        """
        assert isinstance(self.mode, Implicit)
        x = self.mode.attach(problem, x, theta, throw=throw)
        return self._answer(_ForeignAnswer(problem, theta), x, throw)

    def answer(self, task: Task, x: PyTree, *, throw: bool) -> PyTree:
        """Return `x` with the checked derivative."""
        return self._answer(task, x, throw)

    def _answer(self, task: "Task | _ForeignAnswer", x: PyTree, throw: bool) -> PyTree:
        x = jax.lax.stop_gradient(x)
        arrays, static = eqx.partition(task, eqx.is_array)

        def by_mode(arrays):
            again = eqx.combine(arrays, static)
            if isinstance(again, Task):
                return self.mode.answer(again, x, throw=throw)
            assert isinstance(self.mode, Implicit)
            unrefined = dataclasses.replace(self.mode, refine=0)
            return unrefined.attach(again.problem, x, again.theta, throw=throw)

        def residual(y, arrays):
            again = eqx.combine(arrays, static)
            return again.problem.residual(y, again.theta)

        def step(y, arrays):
            again = eqx.combine(arrays, static)
            state = again.algorithm.init(again.problem, y, again.theta)
            return again.algorithm.step(again.problem, state, again.theta).x

        def kinked(y, arrays):
            again = eqx.combine(arrays, static)
            return at_kink(again.problem, y, again.theta)

        composite = isinstance(task.problem, CompositeMinimization)
        taken, of_mode = hoist(by_mode, arrays)
        vanishing, of_residual = hoist(residual, x, arrays)
        stepped, of_step = hoist(step, x, arrays) if _asks_for_steps(task, x) else (None, ())
        at_kinks, of_kinks = hoist(kinked, x, arrays) if composite else (None, ())
        closed_over, (of_mode, of_residual, of_step, of_kinks) = merged(
            of_mode, of_residual, of_step, of_kinks
        )
        report = jnp.zeros(REPORT_SIZE) if self.report is None else self.report
        maps = _Maps(
            lambda i: taken(of_mode(i[1]), i[0]),
            lambda y, i: vanishing(of_residual(i[1]), y, i[0]),
            (lambda y, i: stepped(of_step(i[1]), y, i[0])) if stepped else None,
            (lambda y, i: at_kinks(of_kinks(i[1]), y, i[0])) if at_kinks else None,
            structure_of(task.problem),
            self._judge,
            # The default implicit derivative is what the check computes at `x` anyway.
            type(self.mode) is Implicit and self.mode.linear_solver is None,
            _Options(throw, NEAR if isinstance(task, _ForeignAnswer) else math.inf),
        )
        tolerances = tuple(jax.lax.stop_gradient(jnp.asarray(t)) for t in (self.rtol, self.atol))
        return _attach(maps, (arrays, closed_over, tolerances, report), x)

    def _judge(
        self, estimate: ErrorEstimate, derivative: PyTree, tolerances: tuple
    ) -> "_Judgement":
        rtol, atol = (t.astype(estimate.absolute.dtype) for t in tolerances)
        flagged = estimate.exceeds(rtol, atol)
        if self.on_failure == "raise":
            derivative = raise_if(derivative, flagged, _RAISED, estimate.reason_code)
        elif self.on_failure == "nan":
            derivative = jax.tree.map(lambda v: jnp.where(flagged, jnp.nan, v), derivative)
        else:
            said = (flagged, estimate.relative, estimate.reason_code, rtol)
            jax.lax.cond(flagged, lambda: jax.debug.callback(_warn, *said), lambda: None)
        return _Judgement(derivative, to_vector(estimate, flagged))

    def tangents(self, task: Task, directions: PyTree) -> Tangents:
        """Follow the wrapped mode's tangents."""
        return self.mode.tangents(task, directions)


_ADVICE = (
    "Solve more accurately (for example with stop=DerivativeErrorBelow), use Implicit(refine=1), "
    "or look at it with iterdiff.derivative_error."
)
_RAISED = [
    "The derivative of a solve is wrong by more than the `rtol` of Checked, by its own estimate, "
    f"or that cannot be told. {because or _ADVICE}"
    for because in REASONS
]


def _warn(flagged: Any, relative: Any, reason: Any, rtol: Any) -> None:
    # JAX hands over arrays of its own, whose methods would compute on the device that waits.
    flagged, relative, reason, rtol = map(np.asarray, (flagged, relative, reason, rtol))
    if not np.any(flagged):
        return
    because = REASONS[int(np.max(reason))]
    text = because or f"estimated relative error {float(np.max(relative)):.2g}"
    if not because and np.max(relative) > VANISHING:
        text += " (the derivative may be zero: then it needs an absolute tolerance, `atol`)"
    warnings.warn(
        f"The derivative of a solve may be wrong by more than rtol={float(np.max(rtol)):.2g}: "
        f"{text}",
        DerivativeWarning,
        stacklevel=2,
    )


class _Judgement(NamedTuple):
    derivative: PyTree
    report: Float[Array, " 6"]


class _ForeignAnswer(NamedTuple):
    """What there is of a `Task` whose solver is not ours."""

    problem: Problem
    theta: PyTree


def _asks_for_steps(task: Task | _ForeignAnswer, x: PyTree) -> bool:
    """Return whether the algorithm's step can be asked, and need be, for what it solves."""
    if isinstance(task, _ForeignAnswer) or task.algorithm.consistent:
        return False
    return not remembers(task.algorithm, task.problem, x, task.theta)


class _Options(NamedTuple):
    """Whether the mode's linear solve raises where it fails; `near` as in `derivative_error`."""

    throw: bool
    near: float


class _Maps(NamedTuple):
    """What a check is made of; `inputs` is all that the solve depends on.

    Attributes
    ----------
    taken : callable
        ``taken(inputs)`` is the answer, and its derivative the mode's.
    residual : callable
        ``residual(y, inputs)``.
    step : callable, optional
        ``step(y, inputs)`` is the next iterate, where it might belong to another problem.
    kinked : callable, optional
        ``kinked(y, inputs)`` says whether `y` is at a kink, where the problem has some.
    structure : linear.Structure
        Of ``d residual / dx``.
    judge : callable
        ``judge(estimate, derivative, tolerances)`` is the verdict on the mode's derivative.
    implicit : bool
        Whether the mode's derivative is the implicit one by the default linear solver.
    options : _Options
    """

    taken: Callable[[Any], PyTree]
    residual: Callable[[PyTree, Any], PyTree]
    step: Callable[[PyTree, Any], PyTree] | None
    kinked: Callable[[PyTree, Any], Bool[Array, ""]] | None
    structure: Structure
    judge: Callable[..., _Judgement]
    implicit: bool
    options: _Options


def _attach(maps: _Maps, inputs: Any, x: PyTree) -> PyTree:
    @jax.custom_jvp
    def answer(inputs, x):
        del inputs
        return x

    def rule(primals, tangents):
        inputs, x = primals
        moving, dots, fixed = perturbed(inputs, tangents[0])
        x = answer(inputs, x)
        if not moving:
            return x, tree.zeros_like(x)
        reported = not isinstance(tangents[0][-1], SymbolicZero)
        step, kinked = maps.step, maps.kinked
        bound = maps._replace(
            taken=lambda m: maps.taken(fixed(m)),
            residual=lambda y, m: maps.residual(y, fixed(m)),
            step=None if step is None else lambda y, m: step(y, fixed(m)),
            kinked=None if kinked is None else lambda y, m: kinked(y, fixed(m)),
            judge=lambda estimate, derivative: maps.judge(estimate, derivative, inputs[2]),
        )
        return x, _checked_push(bound, tuple(moving), tuple(dots), x, reported)

    answer.defjvp(rule, symbolic_zeros=True)
    return answer(inputs, x)


def _checked_push(maps: _Maps, moving: tuple, dots: tuple, x: PyTree, reported: bool) -> PyTree:
    """Return ``J dots``, checked forward and transposed: see the module's docstring."""
    point, still = jax.lax.stop_gradient((x, moving))
    throw = maps.implicit and maps.options.throw
    at = Sensitivity(maps.residual, point, still, maps.structure, throw=throw)
    correction = Correction(maps.residual, still, at, maps.options.near)
    points, step = correction.points, maps.step
    if step is not None:
        disagrees = disagree(lambda y: step(y, still), points)
        points = dataclasses.replace(points, disagrees=disagrees)
    if maps.kinked is not None:
        one_sided = maps.kinked(points.corrected, still)
        points = dataclasses.replace(points, one_sided=one_sided)

    def push(v):
        return jax.jvp(maps.taken, (moving,), (v,))[1]

    def matvec(unknown):
        u, v = unknown
        return tree.sub(u, push(v)), v

    def solve(b):
        u, v = b
        here = at.forward(v)
        better, slack = correction.forward(v, here)
        derivative = here if maps.implicit else push(v)
        estimate = compare(derivative, here, better, points, slack)
        return tree.add(u, maps.judge(estimate, derivative).derivative), v

    def solve_transposed(b):
        w, c = b
        adjoint = at.adjoint(w)
        here = at.pulled(adjoint)
        better, slack = correction.reverse(w, adjoint)
        derivative = here if maps.implicit else jax.vjp(maps.taken, moving)[1](w)[0]
        estimate = compare(derivative, here, better, points, slack)
        derivative, report = maps.judge(estimate, derivative)
        if reported:
            derivative = (*derivative[:-1], report.astype(derivative[-1].dtype))
        return w, tree.add(c, derivative)

    return custom_solve(matvec, (tree.zeros_like(x), dots), solve, solve_transposed)[0]
