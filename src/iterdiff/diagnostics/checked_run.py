"""The run that `check_derivative` checks, and the functions that its derivative is made of."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from iterdiff.accuracy.points import NewtonPoints
from iterdiff.algorithms.base import Algorithm
from iterdiff.algorithms.status import Status
from iterdiff.diagnostics.differentiable_map import DifferentiableMap
from iterdiff.diagnostics.finite_differences import Increment, increments, norm, smallest_norm
from iterdiff.diagnostics.newton_points import newton_points
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.by_content import ByContent
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.stopping import StoppingRule
from iterdiff.modes.base import Mode
from iterdiff.modes.implicit import Implicit
from iterdiff.modes.unrolled import Unrolled
from iterdiff.problems.constrained import ConstrainedProblem, PrimalDual
from iterdiff.problems.problem import Problem
from iterdiff.solving.find_multipliers import multipliers
from iterdiff.solving.implicit import implicit
from iterdiff.solving.solve import solve

FAILED = (Status.DIVERGED, Status.NOT_FINITE_AT_START)
"""A run that ends so has no answer."""

SEED_X, SEED_THETA, SEED_COTANGENT = range(3)
"""Seeds of the random directions."""


class CheckedRun:
    """A run, its answer, and the functions that make up the derivative of the answer.

    Parameters
    ----------
    problem, algorithm, x0, theta, stop
        As in `check_derivative`.

    Attributes
    ----------
    x : pytree of real floating arrays
        The answer; `x0` if the run failed.
    floating : pytree of real floating arrays
        The floating part of theta, in which derivatives are taken.
    status : int
        The `Status` of the run.
    starts, ends : bool
        Whether the residual is finite at `x0`, and whether the run succeeded and the residual is
        finite at its answer.
    eps : float
        The machine precision of the iterate's dtype.
    smallest_norm : float
        See `finite_differences.smallest_norm`.
    increments_x, increments_theta : tuple of Increment
        Displacements of the answer and of the parameters.
    cotangent : pytree
        A random direction like `x`, independent of the increments.
    """

    def __init__(
        self,
        problem: Problem,
        algorithm: Algorithm | Callable[[PyTree, PyTree], PyTree],
        x0: PyTree,
        theta: PyTree,
        stop: StoppingRule | None,
    ):
        self.problem, self.algorithm, self.stop = problem, algorithm, stop
        self.x0, self.theta = x0, theta
        self.floating, self._static = floating_part(theta)
        self.residual_in_x = DifferentiableMap(lambda x: self.residual(x, self.floating))
        self.x, self.status = self._answer(self.floating)
        self.starts = self._finite(x0)
        self.ends = self.status not in FAILED and self._finite(self.x)
        if not self.ends:
            self.x = x0
        self.eps = float(jnp.finfo(tree.result_dtype(x0)).eps)
        self.smallest_norm = smallest_norm(x0)
        self.increments_x = increments(SEED_X, self.x)
        self.increments_theta = self.increments_of_theta()
        self.cotangent = increments(SEED_COTANGENT, self.x)[0].direction

    @property
    def differentiates_steps(self) -> bool:
        """Whether the steps are known, and meant to be differentiated."""
        algorithm = self.algorithm
        known = isinstance(algorithm, Algorithm)
        return known and algorithm.differentiable and not algorithm.caveat

    def increments_of_theta(self, least: float = 0.0) -> tuple[Increment, ...]:
        """Return displacements of the parameters; see `increments`."""
        return increments(SEED_THETA, self.floating, least)

    def residual(self, x: PyTree, floating: PyTree) -> PyTree:
        """Return the residual."""
        return self.problem.residual(x, eqx.combine(floating, self._static))

    def step(self, x: PyTree, floating: PyTree) -> PyTree:
        """Return the iterate after one step from a fresh state with iterate `x`."""
        theta = eqx.combine(floating, self._static)
        state = self.algorithm.init(self.problem, x, theta)
        return self.algorithm.step(self.problem, state, theta).x

    def newton(self, x: PyTree) -> tuple[NewtonPoints, float]:
        """Return `x` with its Newton corrections, and the length of the first one."""
        points = newton_points(self.problem, x, self.theta)
        return points, norm(tree.sub(points.corrected, points.x))

    def answer(self, floating: PyTree) -> PyTree:
        """Return the answer for other parameters."""
        return self._answer(floating)[0]

    @functools.cached_property
    def implicit(self) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree, Array]]:
        """``(floating, direction) -> (answer, its implicit derivative, status)``."""
        return self._differentiated(Implicit())

    @functools.cached_property
    def unrolled(self) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree, Array]]:
        """``(floating, direction) -> (answer, its unrolled derivative, status)``."""
        return self._differentiated(Unrolled())

    def _answer(self, floating: PyTree) -> tuple[PyTree, int]:
        if isinstance(self.algorithm, Algorithm):
            x, _, status = self.implicit(floating, tree.zeros_like(floating))
        else:
            x, status = self._solve(floating, Implicit())
        return x, int(status)

    def _differentiated(self, mode: Mode):
        def program(floating: PyTree, direction: PyTree):
            run = functools.partial(self._solve, mode=mode)
            return jax.jvp(run, (floating,), (direction,), has_aux=True)

        # A solver that JAX cannot trace must be called with the values themselves.
        return ByContent(program) if isinstance(self.algorithm, Algorithm) else program

    def _solve(self, floating: PyTree, mode: Mode) -> tuple[PyTree, Array]:
        algorithm, theta = self.algorithm, eqx.combine(floating, self._static)
        if isinstance(algorithm, Algorithm):
            assert self.stop is not None  # checked by `check_derivative`
            inputs = (self.problem, algorithm, self.x0, theta)
            solution = solve(*inputs, stop=self.stop, mode=mode, throw=False)
            x, status = solution.x, solution.status
            if solution.multipliers is not None:
                x = PrimalDual(x, solution.multipliers)
            return x, status
        solver = implicit(self.problem, mode=mode, throw=False)(algorithm)
        x = solver(self.problem.answer(self.x0), theta)
        if isinstance(self.problem, ConstrainedProblem):
            x = PrimalDual(x, multipliers(self.problem, x, theta))
        return x, jnp.asarray(Status.STEPS_DONE)

    def _finite(self, x: PyTree) -> bool:
        return bool(np.isfinite(norm(x) + norm(self.residual_in_x.value(x))))
