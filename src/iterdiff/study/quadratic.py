"""The scalar quadratic: everything about it is known in closed form."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iterdiff.algorithms.base import Algorithm
from iterdiff.algorithms.gradient import GradientDescent
from iterdiff.modes.base import Mode
from iterdiff.problems.problem import Minimization
from iterdiff.study.config import Curve, Setting


def scalar_quadratic(**options: Any) -> tuple[Setting, ...]:
    r"""Return :math:`f(x, \theta) = \tfrac12 \theta x^2 - b x`, for each b.

    Parameters
    ----------
    theta : float
        Positive.
    x0 : float
        Where to start.
    b : list of float
        One setting each.
    """
    theta, x0 = options["theta"], options["x0"]
    values = options["b"] if isinstance(options["b"], list | tuple) else [options["b"]]
    for name, value in (("theta", theta), ("x0", x0), *(("b", b) for b in values)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"`problem.{name}` must be a number, not {value!r}.")
    if not theta > 0:
        raise ValueError(f"`problem.theta` must be positive, not {theta!r}.")
    if not values:
        raise ValueError("`problem.b` must have at least one value.")
    made = tuple(_one(float(theta), float(x0), float(b)) for b in values)
    return made if len(made) > 1 else tuple(dataclasses.replace(m, label=None) for m in made)


class _Parabola(eqx.Module):
    """The objective; b is an array, so that another b is no other program."""

    b: Float[Array, ""]

    def __call__(self, x: Array, theta: Array) -> Float[Array, ""]:
        return theta * x**2 / 2 - self.b * x


def _one(theta: float, x0: float, b: float) -> Setting:
    return Setting(
        problem=Minimization(_Parabola(jnp.asarray(b))),
        x0=jnp.asarray(x0),
        theta=jnp.asarray(theta),
        title=f"f = ½θx² − bx, θ = {theta:g}, x₀ = {x0:g}",
        spectrum=(theta, theta),
        label=b,
        reference=lambda theta: b / theta,
        facts={"theta": theta, "x0": x0, "b": b},
    )


def scalar_curves(
    setting: Setting, algorithm: Algorithm, modes: Mapping[str, Mode]
) -> Mapping[str, Curve]:
    r"""Return the exact unrolled Jacobian error of gradient descent, and its two factors.

    With :math:`\rho = 1 - \eta\theta` and :math:`e_0 = x_0 - b/\theta` it is
    :math:`|\rho^t\, b/\theta^2 - \eta t \rho^{t-1} e_0|`. For b = 0 that is the product of a
    linear sequence, :math:`\eta t |x_0|`, and an exponential one, :math:`\rho^{t-1}`.
    """
    del modes
    if not isinstance(algorithm, GradientDescent):
        return {}
    eta = float(algorithm.step_size)
    theta, x0, b = (setting.facts[name] for name in ("theta", "x0", "b"))
    rho = 1 - eta * theta

    def closed_form(t: np.ndarray) -> np.ndarray:
        power = _power(rho, t)
        return np.abs(rho * power * b / theta**2 - eta * t * power * (x0 - b / theta))

    curves: dict[str, Curve] = {"closed_form": closed_form}
    if b == 0 and 0 < rho < 1:
        curves["linear_factor"] = lambda t: eta * t * abs(x0)
        curves["exponential_factor"] = lambda t: _power(rho, t)
    return curves


def _power(rho: float, t: np.ndarray) -> np.ndarray:
    """Return rho**(t - 1)."""
    return np.float64(rho) ** (t - 1.0)
