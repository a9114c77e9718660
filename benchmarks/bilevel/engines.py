"""Inner solves to a tolerance that is chosen in advance: by us, by jaxopt, and by optimistix.

Counts: one gradient for an inner step, and one for the residual at the end. n Hessian products form
the matrix of an adjoint system, or of a Newton correction, of n unknowns; those of the iterative
adjoint solves of the other libraries are not counted.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.bilevel.problems import STEP_SIZE, Case, Family
from iterdiff.bilevel.regions import region_of

MAX_INNER = 20_000
"""Most inner steps of one solve."""

KINDS = ("plain", "refined", "jaxopt", "optimistix")
"""Our gradient at the iterate; after one Newton correction; the other libraries' own."""


class Visit(NamedTuple):
    """An accepted theta, and what had been spent when it was."""

    theta: np.ndarray
    gradients: int
    products: int
    seconds: float = 0.0


@functools.cache
def _programs(family: Family, kind: str) -> tuple[Callable, Callable]:
    """Return the outer loss with the inner solution and steps, and the same with its gradient."""
    solve = {"jaxopt": _jaxopt, "optimistix": _optimistix}.get(kind, _ours(kind))

    def solved(theta, x, atol, args):
        x, steps = solve(family, theta, x, atol, args)
        return family.loss(x, theta, args), (jax.lax.stop_gradient(x), steps)

    return jax.jit(solved), jax.jit(jax.value_and_grad(solved, has_aux=True))


def _ours(kind: str) -> Callable:
    mode = itd.Implicit(refine=1) if kind == "refined" else itd.Implicit()

    def solve(family, theta, x, atol, args):
        stop = itd.ResidualBelow(rtol=0.0, atol=atol, max_steps=MAX_INNER)
        run = family.problem, family.algorithm, x, theta
        found = itd.solve(*run, stop=stop, args=args, throw=False, mode=mode)
        return found.x, found.steps

    return solve


def _jaxopt(family, theta, x, atol, args):
    """Run jaxopt's method with the same steps; its error is the norm of the gradient."""
    import jaxopt

    options = {"stepsize": STEP_SIZE, "acceleration": False, "tol": atol, "maxiter": MAX_INNER}
    problem = family.problem
    if family.smooth:
        solver = jaxopt.GradientDescent(lambda x, t: problem.objective(x, t, args), **options)
        found = solver.run(x, theta)
    else:
        solver = jaxopt.ProximalGradient(
            lambda x, t: problem.smooth(x, t, args),
            lambda x, t, scaling=1.0: problem.prox(x, scaling, t),
            **options,
        )
        found = solver.run(x, theta, theta)
    return found.params, found.state.iter_num


def _optimistix(family, theta, x, atol, args):
    """Run optimistix's gradient descent; it stops by the change of a step and of the objective."""
    import optimistix as optx

    found = optx.minimise(
        lambda x, both: family.problem.objective(x, *both),
        optx.GradientDescent(STEP_SIZE, rtol=0.0, atol=atol * STEP_SIZE),
        x,
        args=(theta, args),
        max_steps=MAX_INNER,
        throw=False,
    )
    return found.value, found.stats["num_steps"]


class Engine:
    """Warm-started inner solves of one case, with counts and time."""

    def __init__(self, case: Case, kind: str = "plain"):
        self.case, self.kind = case, kind
        self.region = region_of(case.theta0, *case.family.bounds, None)
        self._value, self._gradient = _programs(case.family, kind)
        bound = _start_residual(case)
        self.scale = float(np.sqrt(sum(float(jnp.sum(v**2)) for v in bound)))
        self.anew()
        self.value(case.theta0, case.x0, 1.0)  # compile before the clock starts
        self.graded(case.theta0, case.x0, 1.0)
        self.anew()

    def anew(self) -> "Engine":
        """Return the engine with its counts and its clock at zero."""
        self.gradients = self.products = 0
        self.begun = time.perf_counter()
        return self

    def value(self, theta: Any, x: Any, tolerance: float) -> tuple[float, Any]:
        """Return the loss, and the inner solution."""
        value, (x, steps) = self._value(theta, x, tolerance * self.scale, self.case.args)
        self._count(steps, self.kind == "refined")
        return float(value), x

    def graded(self, theta: Any, x: Any, tolerance: float) -> tuple[float, Any, Any]:
        """Return the loss, the inner solution and the gradient."""
        (value, (x, steps)), gradient = self._gradient(
            theta, x, tolerance * self.scale, self.case.args
        )
        ours = self.kind in ("plain", "refined")
        self._count(steps, ours + (self.kind == "refined"))
        return float(value), x, gradient

    def _count(self, steps: Any, factorisations: int) -> None:
        corrections = self.kind == "refined"
        self.gradients += int(steps) + 1 + corrections
        self.products += factorisations * self.case.unknowns

    def visit(self, theta: Any) -> Visit:
        """Return where the run stands."""
        spent = self.gradients, self.products, time.perf_counter() - self.begun
        return Visit(np.asarray(theta), *spent)


def _start_residual(case: Case) -> list:
    family = case.family
    if family.smooth:
        objective = family.problem.objective
        slope = jax.grad(objective)(case.x0, case.theta0, case.args)
        return jax.tree.leaves(slope)
    problem = family.problem
    slope = jax.grad(problem.smooth)(case.x0, case.theta0, case.args)
    return [case.x0 - problem.prox(case.x0 - slope, 1.0, case.theta0)]
