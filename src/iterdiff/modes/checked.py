r"""A mode that estimates the error of its own derivative, and acts when it is too large.

The pushforward of a solve, :math:`\dot\theta \mapsto \dot x = J \dot\theta`, and its transpose are
linear; a check is not. So we hide the check where JAX lets a linear map have an implementation of
our choice, forward and transposed: in a linear solve. The system

.. math::

    \begin{pmatrix} I & -J \\ 0 & I \end{pmatrix}
    \begin{pmatrix} u \\ v \end{pmatrix} =
    \begin{pmatrix} 0 \\ \dot\theta \end{pmatrix}

has the solution :math:`u = J \dot\theta`, and the transposed system gives :math:`J^\top w`. Our
implementation computes these, estimates their error, and acts on it. JAX takes derivatives of
higher order from the matrix, and so never sees the check.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.accuracy.consistency import disagree, may_leave, remembers, repel
from iterdiff.accuracy.correction import Correction
from iterdiff.accuracy.estimate import NEAR, ErrorEstimate, compare
from iterdiff.accuracy.kinks import at_kink
from iterdiff.accuracy.overflow import finite_at
from iterdiff.accuracy.points import NewtonPoints
from iterdiff.accuracy.reasons import REASONS
from iterdiff.accuracy.report import REPORT_SIZE, check_report, to_vector
from iterdiff.accuracy.sensitivity import Equation, Sensitivity
from iterdiff.algorithms.status import Status
from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.arguments import Tolerance, check_tolerance, check_word
from iterdiff.jaxtools.closures import Perturbed, attach_jvp, hoist
from iterdiff.jaxtools.lax import custom_solve
from iterdiff.jaxtools.raise_if import Throw, raise_if
from iterdiff.linalg.solve import Method
from iterdiff.loop.run import stop_gradient
from iterdiff.loop.stopping import StoppingRule
from iterdiff.loop.task import Tangents, Task
from iterdiff.modes.base import Mode, Outcome
from iterdiff.modes.check_parts import JUDGED, Parts, parts_of, roles_of
from iterdiff.modes.implicit import Implicit
from iterdiff.problems.active_set import regular_at
from iterdiff.problems.problem import Problem

OnFailure = Literal["warn", "raise", "nan"]

LIKELY_ZERO_RELATIVE_ERROR = 1e6
"""A relative error above this says that the better derivative is zero, or the other one huge."""


class DerivativeWarning(UserWarning):
    """The estimated error of a derivative exceeds the tolerance of `Checked`."""


class Checked(Mode):
    """Take the derivative in another mode, and act when its estimated error is too large.

    Every forward and every backward pass estimates the relative error of what it returns, as an
    approximation of the solution derivative, by the method of `derivative_error`. If the error
    exceeds `rtol`, or cannot be estimated, the mode warns, raises, or returns NaN.

    Parameters
    ----------
    mode : Mode
        Takes the derivative.
    rtol : real scalar
        The acceptable relative error, positive: in the Euclidean norm of the tangent, or of the
        gradient in theta.
    on_failure : {"warn", "raise", "nan"}
        Issue a `DerivativeWarning` from the running program, raise `SolveError` from it, or return
        NaN instead of the derivative.
    atol : real scalar
        An absolute error that is acceptable in addition. A derivative that may be zero needs it.
    report : array, optional
        The second argument that `value_and_grad_with_report` passes to the loss.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    Notes
    -----
    A check costs one factorisation (which an implicit mode shares) or a few loose Krylov solves, a
    handful of substitutions and products, and with an unrolled mode the primal run once more.
    First-order derivatives are checked. Derivatives of higher order are exact but unchecked.

    The check judges ``J v`` and ``J^T w`` for the given ``v`` and ``w``. It does not see the error
    from evaluating the gradient of a loss, ``w``, at the iterate instead of the solution;
    ``derivative_error(..., loss=...)`` includes it.

    If the state of the algorithm is only the iterate, its step is linearised at the root that the
    check finds: a derivative is not passed if the iteration leaves that root. For an algorithm of
    your own, three steps test in addition whether its fixed points are roots of the residual (see
    `Algorithm.consistent`). A solution at a kink (abs, max, a constraint about to become active)
    has no derivative, and is flagged.
    """

    mode: Mode
    rtol: Tolerance = 1e-2
    on_failure: OnFailure = eqx.field(static=True, default="warn")
    atol: Tolerance = 0.0
    report: Float[Array, " 6"] | None = None

    def __check_init__(self):
        """Check the types and ranges of the fields."""
        if not isinstance(self.mode, Mode) or isinstance(self.mode, Checked):
            raise TypeError(
                f"`mode` must be a mode other than Checked, such as iterdiff.Implicit(), not "
                f"{self.mode!r}."
            )
        check_tolerance("rtol", self.rtol)
        check_tolerance("atol", self.atol, zero=True)
        check_word("on_failure", self.on_failure, get_args(OnFailure))
        check_report(self.report)

    @property
    def corrects_answer(self) -> bool:
        """Whether the wrapped mode returns another answer than it was given."""
        return self.mode.corrects_answer

    def check(self, stop: StoppingRule) -> None:
        """Apply the check of the wrapped mode."""
        self.mode.check(stop)

    def solve(self, task: Task, *, throw: Throw) -> Outcome:
        """Run as the wrapped mode does, and check the derivative."""
        outcome = self.mode.solve(stop_gradient(task), throw=throw)
        ran = outcome.status != Status.DIVERGED
        return outcome._replace(x=self._answer(task, outcome.x, throw, ran))

    def answer(self, task: Task, x: PyTree, *, throw: Throw) -> PyTree:
        """Return `x` with the checked derivative."""
        return self._answer(task, x, throw, jnp.array(True))

    def _answer(self, task: Task, x: PyTree, throw: Throw, ran: Bool[Array, ""]) -> PyTree:
        """Return `x` with the checked derivative; where the run failed, nothing is known of it."""
        x = jax.lax.stop_gradient(x)

        def step(y: PyTree, task: Task) -> PyTree:
            state = task.algorithm.init(task.problem, y, task.theta)
            return task.algorithm.step(task.problem, state, task.theta).x

        algorithm, problem = task.algorithm, task.problem
        doubtful, leaves = not algorithm.consistent, may_leave(algorithm, problem)
        testable = (doubtful or leaves) and not remembers(algorithm, problem, x, task.theta)
        parts = parts_of(
            problem,
            lambda _, task: self.mode.answer(task, x, throw=throw),
            step if testable and doubtful else None,
            step if testable and leaves else None,
        )
        return self._attached(task, parts, x, throw, _Expected(math.inf, ran))

    def attach(self, problem: Problem, x: PyTree, theta: PyTree, *, throw: Throw) -> PyTree:
        """Return a solution found elsewhere, with the checked implicit derivative in `theta`.

        As `Implicit.attach`, which the wrapped mode has to be. The check includes the distance of
        the point from a solution, since nothing else shows whether its solver solved this problem.
        """
        assert isinstance(self.mode, Implicit)
        x = jax.lax.stop_gradient(self.mode.attach(problem, x, theta, throw=throw))
        plain = dataclasses.replace(self.mode, refine=0)
        parts = parts_of(
            problem, lambda _, given: plain.attach(given.problem, x, given.theta, throw=throw)
        )
        given = _ForeignAnswer(problem, theta)
        return self._attached(given, parts, x, throw, _Expected(NEAR, jnp.array(True)))

    def _attached(
        self,
        given: "Task | _ForeignAnswer",
        parts: "Parts",
        x: PyTree,
        throw: Throw,
        expected: "_Expected",
    ) -> PyTree:
        """Attach the checked derivative in everything that `given` holds."""
        problem, dependent = regular_at(given.problem, x, given.theta)
        given = given._replace(problem=problem)
        parts, explicit = parts.explicit(given, x)
        finite = expected.ran & finite_at(given.problem, x, given.theta)
        tolerances = jax.lax.stop_gradient((jnp.asarray(self.rtol), jnp.asarray(self.atol), finite))
        report = jnp.zeros(REPORT_SIZE) if self.report is None else self.report
        inputs = manual_axes.aligned((explicit, tolerances, report), x)
        leaves = jax.tree.leaves(inputs)
        structure = given.problem.structure_at(x, given.theta)
        # The check computes the default implicit derivative at `x` anyway; a mode may refuse it.
        implicit = self.mode.without_run() if isinstance(self.mode, Implicit) else Implicit()
        place_of_report, roles = len(leaves) - 1, roles_of(leaves, implicit.guess)
        helpers = implicit.helpers_at(given.problem, x, given.theta)
        shared = isinstance(self.mode, Implicit) and implicit.is_default
        shared &= dependent is None and helpers.factors is None
        apply, closed_over = helpers.preconditioner, None
        if apply is not None:
            apply, closed_over = hoist(apply, x)

        def rule(x: PyTree, perturbed: Perturbed, constants: Any) -> PyTree:
            closed_over, *start = constants
            bound = parts.map(lambda part: lambda y, p: part(y, perturbed.rebuild(p)[0]))
            point, still = jax.lax.stop_gradient((x, perturbed.primals))
            equation = Equation(bound.residual, point, still, structure)
            helper = None if apply is None else partial(apply, closed_over)
            at = Sensitivity(equation, Method(implicit.policy, shared and throw, helper, *start))
            derivative = _CheckedDerivative(
                bound,
                at,
                Correction(at, expected.near),
                lambda estimate, value: self._judge(estimate, value, perturbed.inputs[1], throw),
                shared,
                place_of_report in perturbed.places,
                tuple(roles[place] for place in perturbed.places),
            )
            return derivative.push(perturbed, x)

        return attach_jvp(x, inputs, rule, (closed_over, helpers.guess, helpers.span()))

    def _judge(
        self, estimate: ErrorEstimate, derivative: PyTree, tolerances: tuple, throw: Throw
    ) -> "_Judgement":
        """Act on the estimate; return the derivative to pass on and the report."""
        *accepted, finite = tolerances
        rtol, atol = (t.astype(estimate.absolute.dtype) for t in accepted)
        estimate = estimate.known_if(finite)
        flagged = estimate.exceeds(rtol, atol)
        if self.on_failure == "raise":
            derivative = raise_if(derivative, flagged, _RAISED, estimate.reason_code, throw or True)
        elif self.on_failure == "nan":
            derivative = jax.tree.map(lambda v: jnp.where(flagged, jnp.nan, v), derivative)
        else:
            details = (flagged, estimate.relative, estimate.reason_code, rtol)
            jax.lax.cond(flagged, lambda: jax.debug.callback(_warn, *details), lambda: None)
        return _Judgement(derivative, to_vector(estimate, flagged))

    def tangents(self, task: Task, directions: PyTree) -> Tangents:
        """Return the wrapped mode's tangents."""
        return self.mode.tangents(task, directions)


_ADVICE = (
    "Solve more accurately (for example with stop=DerivativeErrorBelow), use Implicit(refine=1), "
    "or examine it with iterdiff.derivative_error."
)
_FORWARD_ONLY = (
    "`mode`: JAX cannot differentiate these steps in reverse mode, because they hold a loop of "
    "unknown length, as a line search does. Use forward mode (jax.jvp, jax.jacfwd), or "
    "iterdiff.Checked(iterdiff.Implicit())."
)
_RAISED = [
    "Checked: the estimated relative error of this derivative exceeds `rtol`, or could not be "
    f"estimated. {reason or _ADVICE}"
    for reason in REASONS
]


def _warn(flagged: Any, relative: Any, reason: Any, rtol: Any) -> None:
    # Convert to NumPy first: a jax.Array's methods would dispatch to the device, which is blocked
    # waiting for this callback.
    flagged, relative, reason, rtol = map(np.asarray, (flagged, relative, reason, rtol))
    if not np.any(flagged):
        return
    text = REASONS[int(np.max(reason))]
    if not text:
        text = f"estimated relative error {float(np.max(relative)):.2g}"
        if np.max(relative) > LIKELY_ZERO_RELATIVE_ERROR:
            text += (
                " (the run may be far from a solution, or diverge; a derivative that may be zero "
                "needs an absolute tolerance, `atol`)"
            )
    warnings.warn(
        f"The derivative of a solve may be wrong by more than rtol={float(np.max(rtol)):.2g}: "
        f"{text}",
        DerivativeWarning,
        stacklevel=2,
    )


class _Judgement(NamedTuple):
    """A judged derivative, and the report on it."""

    derivative: PyTree
    report: Float[Array, " 6"]


class _Expected(NamedTuple):
    """What is known of a point: how near a solution it must be, and whether the run was finite."""

    near: float
    ran: Bool[Array, ""]


class _ForeignAnswer(NamedTuple):
    """The parts of a `Task` that exist when another solver found the solution."""

    problem: Problem
    theta: PyTree


class _CheckedDerivative(NamedTuple):
    """The linear map ``J``, checked forward and transposed: see the module's docstring.

    Attributes
    ----------
    parts : Parts
        As functions of the perturbed leaves.
    at : Sensitivity
        The residual linearised at the answer.
    correction : Correction
        Its Newton correction.
    judge : callable
        ``judge(estimate, derivative)`` is the judgement.
    shared : bool
        Whether the mode's derivative is that of `at`.
    reports : bool
        Whether the backward pass returns a report.
    roles : tuple
        What each part of the gradient is, see `roles_of`.
    """

    parts: Parts
    at: Sensitivity
    correction: Correction
    judge: Callable[[ErrorEstimate, PyTree], _Judgement]
    shared: bool
    reports: bool
    roles: tuple[int, ...]

    def push(self, perturbed: Perturbed, x: PyTree) -> PyTree:
        """Return ``J`` times the tangents, such that JAX transposes and differentiates it."""
        points, primals = self._points(), perturbed.primals

        def answer(primals):
            return self.parts.answer(x, primals)

        def push(v):
            return jax.jvp(answer, (primals,), (v,))[1]

        def matvec(unknown):
            u, v = unknown
            return tree.sub(u, push(v)), v

        def solve(b):
            u, v = b
            here = self.at.forward(v)
            better, slack = self.correction.forward(v, here)
            plain = all(role == JUDGED for role in self.roles)
            derivative = here if self.shared and plain else push(v)
            estimate = compare(derivative, here, better, points, slack)
            return tree.add(u, self.judge(estimate, derivative).derivative), v

        def solve_transposed(b):
            w, c = b
            adjoint = self.at.inverse.transposed(w)
            here = self.at.pulled(adjoint)
            better, slack, terms = self.correction.reverse(w, adjoint)
            derivative, roles = here, self.roles
            if not self.shared:
                derivative = jax.vjp(answer, primals)[1](w)[0]
            pairs = list(zip(derivative, roles, strict=True))
            judged = tuple(v if role == JUDGED else jnp.zeros_like(v) for v, role in pairs)
            if self.shared:
                found = jax.tree.leaves(adjoint)
                derivative = tuple(
                    v if role < 0 else v + found[role].astype(v.dtype) for v, role in pairs
                )
            estimate = compare(judged, here, better, points, slack, terms)
            derivative, report = self.judge(estimate, derivative)
            if self.reports:
                derivative = (*derivative[:-1], report.astype(derivative[-1].dtype))
            return w, tree.add(c, derivative)

        b = (tree.zeros_like(x), perturbed.tangents)
        return custom_solve(matvec, b, solve, solve_transposed, _FORWARD_ONLY)[0]

    def _points(self) -> NewtonPoints:
        """Return the points of the correction, with the results of further tests."""
        points, theta, parts = self.correction.points, self.at.theta, self.parts
        found = {}
        for name, test, step in (
            ("disagrees", disagree, parts.step),
            ("repelled", repel, parts.leaving),
        ):
            if step is not None:
                found[name] = test(lambda y, step=step: step(y, theta), points)
        if parts.at_marked_kink is not None:
            found["one_sided"] = parts.at_marked_kink(points.corrected, theta)
        else:
            found["one_sided"] = at_kink(self.at, points.corrected)
        return manual_axes.aligned(dataclasses.replace(points, **found))
