"""Drivers that choose the inner accuracy in advance, and random search.

All use our inner solves and implicit gradients, warm starts and the same outer method, so that the
inner accuracy is the only difference. Counts: one gradient for an inner step, one for the residual
at the end; n Hessian products for the matrix of an adjoint system of n unknowns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.bilevel.problems import Case
from iterdiff.bilevel.methods import LBFGS, Lesson
from iterdiff.bilevel.regions import region_of

ARMIJO = 1e-4
MAX_INNER = 100_000


class Visit(NamedTuple):
    """An accepted theta, and what had been spent when it was."""

    theta: np.ndarray
    gradients: int
    products: int


class Engine:
    """Inner solves to a given residual, warm-started, with counts."""

    def __init__(self, case: Case):
        self.case, self.gradients, self.products = case, 0, 0
        self.region = region_of(case.theta0, *case.bounds, None)
        residual = jax.tree.leaves(case.problem.residual(case.x0, case.theta0))
        self.scale = float(np.sqrt(sum(float(jnp.sum(v**2)) for v in residual)))

        def solved(theta, x, atol):
            stop = itd.ResidualBelow(rtol=0.0, atol=atol, max_steps=MAX_INNER)
            found = itd.solve(case.problem, case.algorithm, x, theta, stop=stop, throw=False)
            return case.loss(found.x, theta), found

        self._value = jax.jit(solved)
        self._gradient = jax.jit(jax.value_and_grad(solved, has_aux=True))

    def anew(self) -> "Engine":
        """Return the engine with its counts at zero, and the compiled programs kept."""
        self.gradients = self.products = 0
        return self

    def value(self, theta, x, tolerance):
        """Return the loss, and the inner solution."""
        value, found = self._value(theta, x, tolerance * self.scale)
        self.gradients += int(found.steps) + 1
        return float(value), found.x

    def graded(self, theta, x, tolerance):
        """Return the loss, the inner solution and the gradient."""
        (value, found), gradient = self._gradient(theta, x, tolerance * self.scale)
        self.gradients += int(found.steps) + 1
        self.products += self.case.unknowns
        return float(value), found.x, gradient

    def visit(self, theta) -> Visit:
        """Return where the run stands."""
        return Visit(np.asarray(theta), self.gradients, self.products)


def fixed(engine: Engine, tolerance: float, max_outer: int, max_gradients: int) -> list[Visit]:
    """Return the visits of `LBFGS` with one inner tolerance, on plain values."""
    case, region, method = engine.case, engine.region, LBFGS()
    vector = region.layout.vector(region.layout.floating)
    memory, theta, visits = method.init(vector, region), case.theta0, []
    value, x, gradient = engine.graded(theta, case.x0, tolerance)
    visits.append(engine.visit(theta))
    for _ in range(max_outer):
        slope = region.layout.vector(gradient)
        displacement, memory = method.propose(memory, vector, slope, region)
        scale, moved = 1.0, None
        for _ in range(30):
            candidate = region.project(vector + scale * displacement)
            trial = region.layout.theta(candidate)
            new, there = engine.value(trial, x, tolerance)
            if new <= value + ARMIJO * float(slope @ (candidate - vector)):
                moved = candidate - vector
                break
            scale /= 4
        if moved is None or not np.any(moved) or engine.gradients > max_gradients:
            break
        value, x, gradient = engine.graded(trial, there, tolerance)
        vector, theta = candidate, trial
        memory = method.learn(memory, Lesson(moved, region.layout.vector(gradient) - slope, 0.0))
        visits.append(engine.visit(theta))
    return visits


def scheduled(engine: Engine, max_outer: int, max_gradients: int) -> list[Visit]:
    """Return the visits of HOAG: tolerances 0.1 * 0.9**k, and steps that adapt to the decrease.

    Pedregosa, ICML 2016, written anew: the inverse step size L doubles if the loss did not decrease
    as a smooth one would, up to the errors that the tolerances allow, and shrinks by 5 % otherwise.
    Every step is taken once.
    """
    case, region = engine.case, engine.region
    vector = region.layout.vector(region.layout.floating)
    value, x, gradient = engine.graded(case.theta0, case.x0, 0.1)
    slope = region.layout.vector(gradient)
    lipschitz = float(np.linalg.norm(slope)) / (0.1 * max(float(np.linalg.norm(vector)), 1.0))
    visits = [engine.visit(case.theta0)]
    for k in range(1, max_outer + 1):
        tolerance = 0.1 * 0.9**k
        candidate = region.project(vector - slope / lipschitz)
        moved = float(np.sum((candidate - vector) ** 2))
        theta = region.layout.theta(candidate)
        new, there, gradient = engine.graded(theta, x, tolerance)
        allowed = tolerance * float(np.linalg.norm(slope)) * np.sqrt(moved)
        if new <= value - lipschitz * moved / 2 + allowed:
            lipschitz *= 0.95
        elif new > value + allowed:
            lipschitz *= 2
            if engine.gradients > max_gradients:
                break
            continue
        vector, value, x, slope = candidate, new, there, region.layout.vector(gradient)
        visits.append(engine.visit(theta))
        if engine.gradients > max_gradients:
            break
    return visits


def random(engine: Engine, seed: int, max_outer: int, max_gradients: int) -> list[Visit]:
    """Return the best thetas of a uniform random search in the bounds, each solved to 1e-4."""
    case, rng = engine.case, np.random.default_rng(seed)
    best, x = engine.value(case.theta0, case.x0, 1e-4)
    visits = [engine.visit(case.theta0)]
    for _ in range(max_outer):
        draw = rng.uniform(*case.bounds, jnp.shape(case.theta0))
        value, x = engine.value(jnp.asarray(draw), x, 1e-4)
        if value < best:
            best = value
            visits.append(engine.visit(draw))
        if engine.gradients > max_gradients:
            break
    return visits
