"""Studies of stochastic gradient descent: chains of minibatches instead of one trace."""

import dataclasses
import datetime
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

import iterdiff as itd
from iterdiff.jaxtools.extras import import_extra
from iterdiff.study.config import Case, Sampling

if TYPE_CHECKING:
    import xarray


HORIZON = 2.0
"""Decreasing steps are halved after this many time constants of gradient descent, ``1 / (h ℓ)``.
The limit of their variance needs more than 1/2."""


def step_sizes(step_size: float, sampling: Sampling, k: Any) -> Any:
    r"""Return the length of step k, :math:`h (1 + k / k_0)^{-decay}` with `HORIZON` in k_0."""
    horizon = HORIZON / (step_size * sampling.slowest)
    return step_size * (1 + k / horizon) ** -sampling.decay


def decrease(sampling: Sampling) -> float:
    """Return 1 / (2c) for steps of about c / k, and zero for those that decrease more slowly."""
    return sampling.slowest / (2 * HORIZON) if sampling.decay == 1 else 0.0


def sampled(case: Case) -> "xarray.Dataset":
    """Return what `trace` would of the chains: root mean squares over them, with intervals.

    Parameters
    ----------
    case : Case
        With `sampling`; its algorithm is `GradientDescent`, whose step the minibatches share.

    Raises
    ------
    ValueError
        If the algorithm is another one.
    """
    xarray = import_extra("xarray", "study")
    sampling = case.sampling
    assert sampling is not None
    if not isinstance(case.algorithm, itd.GradientDescent):
        raise ValueError(
            "`algorithms` must be of the type GradientDescent here, which minibatches turn into "
            f"stochastic gradient descent, not {type(case.algorithm).__name__}."
        )
    size = float(case.algorithm.step_size)
    found = itd.bilevel.unrolled_sgd(
        sampling.problem,
        case.x0,
        case.theta,
        lambda k: step_sizes(size, sampling, k),
        samples=sampling.samples,
        batch=sampling.batch,
        steps=case.steps,
        chains=sampling.chains,
        key=sampling.seed,
        every=case.every,
    )
    solution = case.reference(case.theta)
    jacobian = np.asarray(jax.jacobian(case.reference)(case.theta)).reshape(
        found.jacobian.shape[1:]
    )
    away = _lengths(found.jacobian - jacobian)
    x_away = np.linalg.norm(found.x - np.asarray(solution), axis=1)
    start = float(jnp.linalg.norm(case.x0 - solution)), float(np.linalg.norm(jacobian))
    errors = np.append(start[1], np.hypot(away, found.spread))
    radius = np.append(0.0, _lengths(found.half_width))
    mean = np.append(start[1], away)
    both, along = ("mode", "iteration"), "iteration"
    nothing = np.full((1, len(errors)), np.nan)
    words = {
        "jacobian_error": "√ mean over the chains of ‖J_t − J*‖_F² (absolute)",
        "mean_error": "‖mean over the chains of J_t − J*‖_F (absolute)",
        "radius": "‖half widths of the 95 % intervals of the mean Jacobian‖_F",
        "iterate_error": "√ mean over the chains of ‖x_t − x*‖²",
    }
    variables = {
        "iterate_error": (along, np.append(start[0], np.hypot(x_away, found.x_spread))),
        "jacobian_error": (both, errors[None]),
        "mean_error": (along, mean),
        "radius": (along, radius),
        "jacobian_error_estimate": (both, nothing),
        "estimate_trusted": (both, np.zeros(nothing.shape, bool)),
    }
    data = xarray.Dataset(
        {name: (*v, {"long_name": words.get(name, "")}) for name, v in variables.items()},
        coords={"mode": ["unrolled"], along: np.append(0, found.steps)},
        attrs=_attributes(case, finite=bool(np.isfinite(errors).all())),
    )
    data.jacobian_error.attrs["reference_norm"] = start[1]
    return data


def _attributes(case: Case, *, finite: bool) -> dict[str, Any]:
    return {
        "status": "finite throughout" if finite else "diverged",
        "problem": type(case.problem).__name__,
        "algorithm": "stochastic gradient descent",
        "unknowns": int(np.size(case.x0)),
        "parameters": int(np.size(case.theta)),
        "dtype": str(jnp.result_type(case.x0)),
        "device": jax.devices()[0].device_kind,
        "iterdiff_version": itd.__version__,
        "jax_version": jax.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _lengths(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(rows**2, axis=(1, 2)))


@dataclasses.dataclass(frozen=True)
class Noise:
    r"""Stochastic gradient descent on a quadratic sum near its solution: bias and variance.

    Let :math:`A_i` be the Hessian of the i-th term, :math:`b_i` its linear part, and A, b their
    means. The state :math:`s = (x - x^*, J e_j - J^* e_j)` of one parameter moves by
    :math:`s \leftarrow s - h (M s + \zeta_i)`. The mean of s follows gradient descent exactly. Its
    covariance tends to h S in first order of h, where

    .. math:: (M - \kappa I) S + S (M - \kappa I)^\top = \mathrm{Cov}(\zeta_i) / batch

    with :math:`\kappa = 0` for constant steps, and :math:`\kappa = 1 / (2c)` for steps
    :math:`h_k = c / (k + k_0)`, if the eigenvalues of M are larger than that.

    Attributes
    ----------
    hessians : array of shape (m, n, n)
        Without the penalty, which all terms share.
    linear : array of shape (m, n)
        The linear parts b_i of the terms' gradients, ``A_i x - b_i``.
    penalty : array of shape (n,)
        The diagonal of the penalty, whose logarithms are the parameters.

    References
    ----------
    F. Iutzeler, E. Pauwels and S. Vaiter, arXiv 2405.15894, for the rates of general sums;
    V. Fabian, *On asymptotic normality in stochastic approximation*, Ann. Math. Statist. 1968.
    """

    hessians: np.ndarray
    linear: np.ndarray
    penalty: np.ndarray

    def solution(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the Hessian, the solution and its Jacobian."""
        hessian = self.hessians.mean(0) + np.diag(self.penalty)
        x = np.linalg.solve(hessian, self.linear.mean(0))
        return hessian, x, -np.linalg.solve(hessian, np.diag(self.penalty * x))

    def variance(self, batch: int, shift: float) -> float:
        """Return the trace of S over all columns of the Jacobian; infinite if there is no S."""
        hessian, x, jacobian = self.solution()
        n, total = len(x), 0.0
        apart = self.hessians - self.hessians.mean(0)
        of_x = apart @ x - (self.linear - self.linear.mean(0))
        for j in range(n):
            coupling = np.zeros((n, n))
            coupling[j, j] = self.penalty[j]
            matrix = np.block([[hessian, np.zeros((n, n))], [coupling, hessian]])
            matrix = matrix - shift * np.eye(2 * n)
            if np.linalg.eigvals(matrix).real.min() <= 0:
                return float("inf")
            noise = np.hstack([of_x, apart @ jacobian[:, j]])
            covariance = noise.T @ noise / len(noise) / batch
            spread = scipy.linalg.solve_continuous_lyapunov(matrix, covariance)
            total += float(np.trace(spread[n:, n:]))
        return total

    def bias(self, x0: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Return the error of the mean Jacobian before and after every step."""
        hessian, x, jacobian = self.solution()
        away, errors = x0 - x, -jacobian
        lengths = [np.linalg.norm(errors)]
        for size in sizes:
            pushed = hessian @ errors + np.diag(self.penalty * away)
            away, errors = away - size * hessian @ away, errors - size * pushed
            lengths.append(np.linalg.norm(errors))
        return np.array(lengths)
