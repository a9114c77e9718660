"""Theoretical bounds of the Jacobian error, for quadratic and for smooth objectives."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

import iterdiff as itd
from iterdiff import theory
from iterdiff.diagnostics.reference import find_reference
from iterdiff.jaxtools import tree
from iterdiff.study.config import Curve, PosedProblem, Theory


@dataclasses.dataclass(frozen=True)
class QuadraticBounds(Theory):
    """Bounds for a quadratic objective with known bounds of the spectrum and a known solution.

    They cover `Unrolled` and `Implicit` for methods with their usual parameters, and late starts
    (`OneStep` is one) of gradient descent. The bound is NaN for other modes and methods.

    Attributes
    ----------
    commuting : bool
        Whether the derivatives of the Hessian commute with it. Sharper bounds then hold.
    """

    commuting: bool

    def curves(
        self, posed: PosedProblem, algorithm: itd.Algorithm, modes: Mapping[str, itd.Mode]
    ) -> Mapping[str, Curve]:
        """Return the bound of every mode; nothing for methods that the theory does not cover."""
        if posed.spectrum is None or posed.reference is None:
            return {}
        low, high = posed.spectrum
        factors = worst_cases(algorithm, low, high)
        if factors is None:
            return {}

        def bound(t: np.ndarray) -> np.ndarray:
            sizes = _sizes(posed.problem, posed.reference, posed.x0, posed.theta)
            rate = self.rate(posed, algorithm)
            run = _Run((low, high), self.commuting, algorithm, rate, sizes, factors(t))
            rows = [_row(_unchecked(mode), t, run) for mode in modes.values()]
            return np.array(rows).reshape(len(modes), len(t))

        return {"bound": bound}

    def rate(self, posed: PosedProblem, algorithm: itd.Algorithm) -> float:
        """Return `contraction_rate` for the spectrum of the problem."""
        return contraction_rate(posed.spectrum, algorithm)


@dataclasses.dataclass(frozen=True)
class SmoothBounds(Theory):
    r"""Bounds for gradient descent on a smooth, strongly convex objective.

    If the Hessian has its spectrum in :math:`[\ell, L]` everywhere, a step contracts by
    :math:`\rho`, and its drift is at most :math:`h (M_x \|J^*\| + M_\theta) \|x_t - x^*\|`,
    where :math:`M_x` and :math:`M_\theta` are Lipschitz constants of the Hessian and of
    :math:`\partial_\theta \nabla f`. So `iterdiff.theory.late_start_bound` holds, also for a
    start at iteration 0 (all steps), and `iterdiff.theory.implicit_bound` holds. Theory knows no
    contraction rate of methods with momentum on such objectives.

    Attributes
    ----------
    lipschitz_x, lipschitz_theta : float
        The constants :math:`M_x` and :math:`M_\theta`.
    """

    lipschitz_x: float
    lipschitz_theta: float

    def curves(
        self, posed: PosedProblem, algorithm: itd.Algorithm, modes: Mapping[str, itd.Mode]
    ) -> Mapping[str, Curve]:
        """Return the bound of every mode; nothing for methods other than gradient descent."""
        rate = self.rate(posed, algorithm)
        if not isinstance(algorithm, itd.GradientDescent) or posed.spectrum is None or not rate < 1:
            return {}
        low, step_size = posed.spectrum[0], algorithm.step_size
        constants = self.lipschitz_x, self.lipschitz_theta

        def bound(t: np.ndarray) -> np.ndarray:
            directions = tree.basis(posed.theta)
            truth = find_reference(posed.problem, posed.x0, posed.theta, directions, None)
            norm, distance = tree.norm(truth.tangents), tree.norm(tree.sub(posed.x0, truth.x))
            drift = step_size * (constants[0] * norm + constants[1]) * distance

            def row(mode: itd.Mode) -> np.ndarray:
                if mode == itd.Implicit():
                    found = theory.implicit_bound(rate**t * distance, low, norm, *constants)
                    return np.asarray(found, float)
                start = _late_start(mode, t)
                if start is None:
                    return np.full(len(t), np.nan)
                return np.asarray(theory.late_start_bound(t, start, rate, drift, norm), float)

            return np.array([row(_unchecked(mode)) for mode in modes.values()]).reshape(
                len(modes), len(t)
            )

        return {"bound": bound}

    def rate(self, posed: PosedProblem, algorithm: itd.Algorithm) -> float:
        """Return `contraction_rate`: the rate on a quadratic with the same spectrum."""
        return contraction_rate(posed.spectrum, algorithm)


def _unchecked(mode: itd.Mode) -> itd.Mode:
    """Return the mode that takes the derivative; `Checked` only estimates its error."""
    return mode.mode if isinstance(mode, itd.Checked) else mode


def _late_start(mode: itd.Mode, t: np.ndarray) -> np.ndarray | None:
    """Return the first differentiated step of an unrolled mode; None for other modes."""
    if not isinstance(mode, itd.Unrolled) or mode.last == "auto" or mode.accelerate is not None:
        return None
    return 0 * t if mode.last is None else np.maximum(t - mode.last, 0)


class _Sizes(NamedTuple):
    """Norms: of E_0, d grad f(x0), dH and x0 - x*; of v -> dH v and v -> H^-1 dH v."""

    initial: Float[Array, ""]
    slope: Float[Array, ""]
    change: Float[Array, ""]
    distance: Float[Array, ""]
    stretch: Float[Array, ""]
    solved: Float[Array, ""]


class _Run(NamedTuple):
    """Everything that the bounds of one run depend on."""

    spectrum: tuple[float, float]
    commuting: bool
    algorithm: itd.Algorithm
    rate: float
    sizes: _Sizes
    factors: theory.Factors


def _row(mode: itd.Mode, t: np.ndarray, run: _Run) -> np.ndarray:
    """Return the bound of one mode, at iterations t."""
    algorithm, sizes = run.algorithm, run.sizes
    if isinstance(mode, itd.Unrolled) and mode.last is None and mode.accelerate is None:
        return _unrolled_row(t, run)
    if mode == itd.Implicit():
        # For the equation multiplied by H^-1: its derivative in x is the identity.
        distance = run.factors.iterate * sizes.distance
        bound = theory.implicit_bound(distance, 1.0, sizes.initial, 0.0, sizes.solved)
        return np.asarray(bound, float)
    start = _late_start(mode, t)
    if isinstance(algorithm, itd.GradientDescent) and start is not None and run.rate < 1:
        drift = algorithm.step_size * sizes.stretch * sizes.distance
        bound = theory.late_start_bound(t, start, run.rate, drift, sizes.initial)
        return np.asarray(bound, float)
    return np.full(len(t), np.nan)


def _unrolled_row(t: np.ndarray, run: _Run) -> np.ndarray:
    (low, high), algorithm, sizes = run.spectrum, run.algorithm, run.sizes
    if not run.commuting:
        bound = theory.noncommuting_bound(run.factors, sizes.initial, sizes.change, sizes.distance)
    elif isinstance(algorithm, itd.GradientDescent):
        # The same bound as below, but for the worse end of the spectrum.
        step = algorithm.step_size
        bound = theory.gradient_descent_bound(t, low, high, step, sizes.initial, sizes.slope)
    else:
        bound = theory.jacobian_bound(run.factors, sizes.initial, sizes.slope)
    return np.asarray(bound, float)


@eqx.filter_jit
def _sizes(
    problem: itd.Problem, reference: Callable[[PyTree], PyTree], x0: PyTree, theta: PyTree
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


def contraction_rate(spectrum: tuple[float, float] | None, algorithm: itd.Algorithm) -> float:
    """Return the contraction rate per step on a quadratic, dimensionless; NaN if not known.

    Parameters
    ----------
    spectrum : (float, float), optional
        Bounds of the spectrum of the Hessian.
    algorithm : Algorithm
        The method.
    """
    rate: Any = np.nan
    if spectrum is not None:
        low, high = spectrum
        if isinstance(algorithm, itd.GradientDescent):
            rate = theory.gradient_descent_rate(low, high, algorithm.step_size)
        elif isinstance(algorithm, itd.HeavyBall):
            rate = theory.heavy_ball_rate(low, high, algorithm.step_size, algorithm.momentum)
        elif isinstance(algorithm, itd.Nesterov):
            rate = theory.nesterov_rate(low, high, algorithm.step_size, algorithm.momentum)
        elif isinstance(algorithm, itd.Chebyshev | itd.Sobolev) and _same_interval(
            algorithm, low, high
        ):
            rate = theory.chebyshev_rate(low, high)
    return float(rate)


def worst_cases(
    algorithm: itd.Algorithm, low: float, high: float
) -> Callable[[np.ndarray], theory.Factors] | None:
    """Return the worst cases of a method's polynomials over the spectrum, as a function of t.

    None for a method, or for parameters, that the theory does not cover.
    """
    ends = (low, high)
    if isinstance(algorithm, itd.GradientDescent):
        return _compiled(theory.gradient_descent_factors, *ends, algorithm.step_size)
    if isinstance(algorithm, itd.HeavyBall) and _has_parameters(
        algorithm, theory.polyak_parameters(*ends)
    ):
        return _compiled(theory.heavy_ball_factors, *ends)
    if isinstance(algorithm, itd.Nesterov) and _has_parameters(
        algorithm, theory.nesterov_parameters(*ends)
    ):
        return _compiled(theory.nesterov_factors, *ends)
    if isinstance(algorithm, itd.Chebyshev) and _same_interval(algorithm, low, high):
        return _compiled(theory.chebyshev_factors, *ends)
    if isinstance(algorithm, itd.Sobolev) and _same_interval(algorithm, low, high):
        if algorithm.norm == "B" and algorithm.alpha == 0.5 and algorithm.eta is None:
            return _compiled(_sobolev_factors, *ends)
    return None


def _compiled(factors: Callable[..., theory.Factors], *numbers: Any) -> Callable:
    """Return `factors` as a function of t alone, one program for all of its operations."""
    given = [jnp.asarray(number) for number in numbers]
    return lambda t: jax.jit(lambda *given: factors(t, *given))(*given)


def _sobolev_factors(t: np.ndarray, low: Array, high: Array) -> theory.Factors:
    factors = theory.sobolev_factors(int(t[-1]), low, high)
    return theory.Factors(*(values[t] for values in factors))


def _has_parameters(
    algorithm: itd.HeavyBall | itd.Nesterov, parameters: tuple[Array, Array]
) -> bool:
    return np.allclose([algorithm.step_size, algorithm.momentum], parameters, rtol=1e-12)


def _same_interval(algorithm: itd.Chebyshev | itd.Sobolev, low: float, high: float) -> bool:
    return bool(np.allclose([algorithm.smallest, algorithm.largest], [low, high], rtol=1e-12))
