"""Drivers that choose the inner accuracy in advance, and searches without gradients.

All use warm starts, and those with gradients the same outer method, so that the inner accuracy is
the only difference.
"""

import importlib

import jax.numpy as jnp
import numpy as np

from benchmarks.bilevel.engines import Engine, Visit
from iterdiff.bilevel.methods import LBFGS, Lesson

ARMIJO = 1e-4
SEARCH_TOLERANCE = 1e-4
"""Inner tolerance of the searches without gradients."""


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
    """Return the best thetas of a uniform random search, each solved to `SEARCH_TOLERANCE`."""
    case, rng = engine.case, np.random.default_rng(seed)
    best, x = engine.value(case.theta0, case.x0, SEARCH_TOLERANCE)
    visits = [engine.visit(case.theta0)]
    for _ in range(max_outer):
        draw = rng.uniform(*case.family.bounds, jnp.shape(case.theta0))
        value, x = engine.value(jnp.asarray(draw), x, SEARCH_TOLERANCE)
        if value < best:
            best = value
            visits.append(engine.visit(draw))
        if engine.gradients > max_gradients:
            break
    return visits


def optuna(engine: Engine, seed: int, max_outer: int, max_gradients: int) -> list[Visit]:
    """Return the best thetas of Optuna's default sampler, each solved to `SEARCH_TOLERANCE`."""
    library = importlib.import_module("optuna")
    library.logging.set_verbosity(library.logging.WARNING)
    study = library.create_study(sampler=library.samplers.TPESampler(seed=seed))
    case = engine.case
    best, x = engine.value(case.theta0, case.x0, SEARCH_TOLERANCE)
    visits = [engine.visit(case.theta0)]
    for _ in range(max_outer):
        trial = study.ask()
        size = int(np.size(case.theta0))
        numbers = [trial.suggest_float(f"theta{k}", *case.family.bounds) for k in range(size)]
        theta = np.reshape(numbers, jnp.shape(case.theta0))
        value, x = engine.value(jnp.asarray(theta), x, SEARCH_TOLERANCE)
        study.tell(trial, value)
        if value < best:
            best = value
            visits.append(engine.visit(theta))
        if engine.gradients > max_gradients:
            break
    return visits
