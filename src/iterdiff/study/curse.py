"""The curse of unrolling, method by method, with the bounds that theory gives."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from iterdiff import theory
from iterdiff.algorithms.base import Algorithm
from iterdiff.algorithms.gradient import GradientDescent, HeavyBall, Nesterov
from iterdiff.algorithms.polynomial import Chebyshev, Sobolev
from iterdiff.diagnostics.reference import find_reference
from iterdiff.jaxtools import tree
from iterdiff.modes.base import Mode
from iterdiff.modes.implicit import Implicit
from iterdiff.modes.unrolled import Unrolled
from iterdiff.problems.problem import Minimization, Problem
from iterdiff.study.config import Curve, Setting

METHODS = {
    "GD, 1/L": {"type": "GradientDescent", "step_size": "1/L"},
    "GD, 2/(L+l)": {"type": "GradientDescent", "step_size": "2/(L+l)"},
    "heavy ball": {"type": "HeavyBall"},
    "Nesterov": {"type": "Nesterov"},
    "Chebyshev": {"type": "Chebyshev"},
    "Sobolev": {"type": "Sobolev"},
}
"""First-order methods, each with its usual parameters for a spectrum in [l, L]."""

MODES = {
    "unrolled": {"type": "Unrolled"},
    "implicit": {"type": "Implicit"},
    "one-step": {"type": "OneStep"},
    "last 20": {"type": "Unrolled", "last": 20},
}
"""Late start: only the last 20 steps are differentiated."""


def quadratic(**options: Any) -> tuple[Setting, ...]:
    r"""Return a quadratic with a chosen spectrum.

    .. math::

        f(x, \theta) = \tfrac12 x^\top Q D(\theta) Q^\top x - b^\top x, \qquad
        D(\theta) = \mathrm{diag}(\lambda_j e^{\theta_j}),

    with a random orthogonal Q and a solution of random entries at :math:`\theta = 0`. The
    derivatives of the Hessian commute with it, so that theory's bounds hold.

    Parameters
    ----------
    size : int
        Unknowns, 2 or more; as many parameters.
    condition : float
        L/l, above 1; L is 1.
    spectrum : {"logarithmic", "uniform", "ends"}
        Where the eigenvalues lie: evenly on a logarithmic or linear scale, or half of them at
        either end (the worst case).
    start : float
        Standard deviation of the start's entries.
    seed : int
        Draws Q, the solution and the start.
    """
    size, condition, kind = options["size"], options["condition"], options["spectrum"]
    if isinstance(size, bool) or not isinstance(size, int) or size < 2:
        raise ValueError(f"`problem.size` must be a whole number of 2 or more, not {size!r}.")
    if isinstance(condition, bool) or not isinstance(condition, int | float) or not condition > 1:
        raise ValueError(f"`problem.condition` must be a number above 1, not {condition!r}.")
    low = 1.0 / condition
    spectra = {
        "logarithmic": np.geomspace(low, 1.0, size),
        "uniform": np.linspace(low, 1.0, size),
        "ends": np.where(np.arange(size) < size // 2, low, 1.0),
    }
    if kind not in spectra:
        raise ValueError(f"`problem.spectrum` must be one of {', '.join(spectra)}, not {kind!r}.")
    draw = np.random.default_rng(int(options["seed"]))
    basis = jnp.asarray(np.linalg.qr(draw.standard_normal((size, size)))[0])
    values = jnp.asarray(spectra[kind])
    solution = jnp.asarray(draw.standard_normal(size))
    linear = basis @ (values * (basis.T @ solution))

    def objective(x: Array, theta: Array) -> Float[Array, ""]:
        turned = basis.T @ x
        return jnp.sum(values * jnp.exp(theta) * turned**2) / 2 - jnp.dot(linear, x)

    def exact(theta: Array) -> Array:
        return basis @ ((basis.T @ linear) / (values * jnp.exp(theta)))

    setting = Setting(
        problem=Minimization(objective),
        x0=jnp.asarray(float(options["start"]) * draw.standard_normal(size)),
        theta=jnp.zeros(size),
        title=f"quadratic, {size} unknowns, {kind} spectrum, L/l = {condition:g}",
        spectrum=(low, 1.0),
        reference=exact,
        facts={"quadratic": 1.0, "commuting": 1.0},
    )
    return (setting,)


def bounds(
    setting: Setting, algorithm: Algorithm, modes: Mapping[str, Mode]
) -> Mapping[str, Curve]:
    """Return theory's bound of the Jacobian error in every mode, NaN where theory has none.

    It covers quadratics with known bounds of the spectrum: `Unrolled` and `Implicit` for methods
    with their usual parameters, and late starts (`OneStep` is one) of gradient descent.
    """
    if not setting.facts.get("quadratic") or setting.spectrum is None or setting.reference is None:
        return {}
    low, high = setting.spectrum
    factors = factors_of(algorithm, low, high)
    if factors is None:
        return {}

    def bound(t: np.ndarray) -> np.ndarray:
        sizes = _sizes(setting.problem, setting.reference, setting.x0, setting.theta)
        run = _Run(setting, algorithm, sizes, factors(t))
        rows = [_row(mode, t, run) for mode in modes.values()]
        return np.array(rows).reshape(len(modes), len(t))

    return {"bound": bound}


def smooth_bounds(
    setting: Setting, algorithm: Algorithm, modes: Mapping[str, Mode]
) -> Mapping[str, Curve]:
    r"""Return theory's bound of the Jacobian error for gradient descent, quadratic or not.

    Where the Hessian has its spectrum in :math:`[\ell, L]` everywhere, a step contracts by
    :math:`\rho`, and its drift is at most :math:`h (M_x \|J^*\| + M_\theta) \|x_t - x^*\|`, with
    Lipschitz constants of the Hessian and of :math:`\partial_\theta \nabla f`. So
    `iterdiff.theory.late_start_bound` holds, of all steps (a start after none) too, and
    `iterdiff.theory.implicit_bound`. Of the methods with momentum theory knows no contraction
    there.
    """
    rate = rate_of(setting, algorithm)
    if not isinstance(algorithm, GradientDescent) or not rate < 1 or setting.spectrum is None:
        return {}
    low, facts, h = setting.spectrum[0], setting.facts, algorithm.step_size
    of_change = facts["lipschitz_x"], facts["lipschitz_theta"]

    def bound(t: np.ndarray) -> np.ndarray:
        directions = tree.basis(setting.theta)
        truth = find_reference(setting.problem, setting.x0, setting.theta, directions, None)
        norm, distance = tree.norm(truth.tangents), tree.norm(tree.sub(setting.x0, truth.x))
        drift = h * (of_change[0] * norm + of_change[1]) * distance

        def row(mode: Mode) -> np.ndarray:
            if mode == Implicit():
                found = theory.implicit_bound(rate**t * distance, low, norm, *of_change)
                return np.asarray(found, float)
            last = mode.last if isinstance(mode, Unrolled) else "none"
            if isinstance(last, str):
                return np.full(len(t), np.nan)
            start = 0 * t if last is None else np.maximum(t - last, 0)
            return np.asarray(theory.late_start_bound(t, start, rate, drift, norm), float)

        return np.array([row(mode) for mode in modes.values()]).reshape(len(modes), len(t))

    return {"bound": bound}


class _Sizes(NamedTuple):
    """Norms: of E_0, d grad f(x0), dH and x0 - x*; of v -> dH v and v -> H^-1 dH v."""

    initial: Float[Array, ""]
    slope: Float[Array, ""]
    change: Float[Array, ""]
    distance: Float[Array, ""]
    stretch: Float[Array, ""]
    solved: Float[Array, ""]


class _Run(NamedTuple):
    """What the bounds of one run are made of."""

    setting: Setting
    algorithm: Algorithm
    sizes: _Sizes
    factors: theory.Factors


def _row(mode: Mode, t: np.ndarray, run: _Run) -> np.ndarray:
    """Return the bound of one mode, at iterations t."""
    algorithm, sizes = run.algorithm, run.sizes
    if mode == Unrolled():
        return _unrolled(t, run)
    if mode == Implicit():
        # For the equation multiplied by H^-1: its derivative in x is the identity.
        distance = run.factors.iterate * sizes.distance
        bound = theory.implicit_bound(distance, 1.0, sizes.initial, 0.0, sizes.solved)
        return np.asarray(bound, float)
    rate = rate_of(run.setting, algorithm)
    last = mode.last if isinstance(mode, Unrolled) else None
    if isinstance(algorithm, GradientDescent) and isinstance(last, int) and rate < 1:
        drift = algorithm.step_size * sizes.stretch * sizes.distance
        start = np.maximum(t - last, 0)
        return np.asarray(theory.late_start_bound(t, start, rate, drift, sizes.initial), float)
    return np.full(len(t), np.nan)


def _unrolled(t: np.ndarray, run: _Run) -> np.ndarray:
    assert run.setting.spectrum is not None, "checked by the caller"
    (low, high), algorithm, sizes = run.setting.spectrum, run.algorithm, run.sizes
    if not run.setting.facts.get("commuting"):
        bound = theory.noncommuting_bound(run.factors, sizes.initial, sizes.change, sizes.distance)
    elif isinstance(algorithm, GradientDescent):  # the same, but the worse end of the spectrum
        step = algorithm.step_size
        bound = theory.gradient_descent_bound(t, low, high, step, sizes.initial, sizes.slope)
    else:
        bound = theory.jacobian_bound(run.factors, sizes.initial, sizes.slope)
    return np.asarray(bound, float)


@eqx.filter_jit
def _sizes(
    problem: Problem, reference: Callable[[PyTree], PyTree], x0: PyTree, theta: PyTree
) -> _Sizes:
    residual = problem.residual
    initial = jax.jacobian(reference)(theta)
    slope = jax.jacobian(residual, argnums=1)(x0, theta)
    change = jax.jacobian(jax.jacobian(residual), argnums=1)(x0, theta)
    n = x0.size
    solved = jnp.linalg.solve(jax.jacobian(residual)(x0, theta), change.reshape(n, -1))
    parts = (initial, slope, change, x0 - reference(theta))
    norms = (jnp.linalg.norm(part.ravel()) for part in parts)
    maps = (jnp.moveaxis(m.reshape(n, n, -1), 1, -1).reshape(-1, n) for m in (change, solved))
    return _Sizes(*norms, *(jnp.linalg.norm(m, 2) for m in maps))


def rate_of(setting: Setting, algorithm: Algorithm) -> float:
    """Return the contraction rate per step of a method, NaN where theory has none.

    For an objective that is not quadratic it is that of a quadratic with the same bounds of the
    spectrum.
    """
    rate: Any = np.nan
    if setting.spectrum is not None:
        low, high = setting.spectrum
        if isinstance(algorithm, GradientDescent):
            rate = theory.gradient_descent_rate(low, high, algorithm.step_size)
        elif isinstance(algorithm, HeavyBall):
            rate = theory.heavy_ball_rate(low, high, algorithm.step_size, algorithm.momentum)
        elif isinstance(algorithm, Nesterov):
            rate = theory.nesterov_rate(low, high, algorithm.step_size, algorithm.momentum)
        elif isinstance(algorithm, Chebyshev | Sobolev) and _same_interval(algorithm, low, high):
            rate = theory.chebyshev_rate(low, high)
    return float(rate)


def factors_of(
    algorithm: Algorithm, low: float, high: float
) -> Callable[[np.ndarray], theory.Factors] | None:
    """Return the worst cases of a method's polynomials as a function of t, or None if unknown."""
    ends = (low, high)
    if isinstance(algorithm, GradientDescent):
        return _compiled(theory.gradient_descent_factors, *ends, algorithm.step_size)
    if isinstance(algorithm, HeavyBall) and _usual(algorithm, theory.polyak_parameters(*ends)):
        return _compiled(theory.heavy_ball_factors, *ends)
    if isinstance(algorithm, Nesterov) and _usual(algorithm, theory.nesterov_parameters(*ends)):
        return _compiled(theory.nesterov_factors, *ends)
    if isinstance(algorithm, Chebyshev) and _same_interval(algorithm, low, high):
        return _compiled(theory.chebyshev_factors, *ends)
    if isinstance(algorithm, Sobolev) and _same_interval(algorithm, low, high):
        if algorithm.norm == "B" and algorithm.alpha == 0.5 and algorithm.eta is None:
            return _compiled(_sobolev_factors, *ends)
    return None


def _compiled(factors: Callable[..., theory.Factors], *numbers: Any) -> Callable:
    """Return `factors` as a function of t alone, one program for all of its operations."""
    given = [jnp.asarray(number) for number in numbers]
    return lambda t: jax.jit(lambda *given: factors(t, *given))(*given)


def _sobolev_factors(t: np.ndarray, low: Array, high: Array) -> theory.Factors:
    every_one = theory.sobolev_factors(int(t[-1]), low, high)
    return theory.Factors(*(values[t] for values in every_one))


def _usual(algorithm: HeavyBall | Nesterov, parameters: tuple[Array, Array]) -> bool:
    return np.allclose([algorithm.step_size, algorithm.momentum], parameters, rtol=1e-12)


def _same_interval(algorithm: Chebyshev | Sobolev, low: float, high: float) -> bool:
    return bool(np.allclose([algorithm.smallest, algorithm.largest], [low, high], rtol=1e-12))
