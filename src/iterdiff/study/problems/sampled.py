"""Ridge regression by minibatches, for studies of stochastic gradient descent."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import BeforeValidator, Field, PositiveInt

import iterdiff as itd
from iterdiff.study.config import Curve, PosedProblem, Sampling, Theory
from iterdiff.study.problems.datasets import load_table
from iterdiff.study.problems.quadratics import as_tuple
from iterdiff.study.problems.regressions import RidgeRegression
from iterdiff.study.sampled import Noise, decrease, step_sizes

Decay = Annotated[float, Field(ge=0, le=1)]


class SampledRidge(RidgeRegression):
    r"""Ridge regression whose data term is sampled.

    The objective is that of `RidgeRegression`. A chain draws minibatches with replacement, and
    takes step k with the length :math:`h (1 + k / k_0)^{-decay}`, :math:`k_0 = 2 / (h \ell)`. Here
    L is the largest curvature of a single row, so that a step of 1/L is safe for every minibatch.

    Attributes
    ----------
    decay : float or list of float
        Several values pose several problems: 0 is a constant step, 1 one that decreases as 1/k.
    batch, chains : int
        Rows in a minibatch, and independent chains, at least two.
    """

    data: str = "diabetes"
    decay: Annotated[tuple[Decay, ...], BeforeValidator(as_tuple), Field(min_length=1)] = (0.0, 1.0)
    batch: PositiveInt = 1
    chains: Annotated[int, Field(ge=2)] = 64

    def pose(self) -> tuple[PosedProblem, ...]:
        """Return one problem for each decay.

        Raises
        ------
        ValueError
            As `RidgeRegression.pose`.
        """
        (posed,) = super().pose()
        table = load_table(self.data, self.target)
        features, target = jnp.asarray(table.standardised()), jnp.asarray(table.numbers())

        def objective(w: Array, theta: Array, rows: Array) -> Float[Array, ""]:
            fit = jnp.mean((features[rows] @ w - target[rows]) ** 2) / 2
            return fit + jnp.sum(jnp.exp(theta) * w**2) / 2

        sampled: Any = objective  # it takes data, besides
        low = posed.spectrum[0] if posed.spectrum else self.penalty
        high = float(jnp.max(jnp.sum(features**2, axis=1))) + self.penalty
        title = posed.title.rpartition(",")[0]
        theory = None if self.shared else SampledTheory(np.asarray(features), np.asarray(target))
        return tuple(
            dataclasses.replace(
                posed,
                title=f"{title}, {self.chains} chains, minibatches of {self.batch}",
                spectrum=(low, high),
                coordinate=decay if len(self.decay) > 1 else None,
                theory=theory,
                sampling=Sampling(
                    itd.Minimization(sampled),
                    len(target),
                    self.batch,
                    self.chains,
                    self.seed,
                    decay,
                    low,
                ),
            )
            for decay in self.decay
        )


@dataclasses.dataclass(frozen=True)
class SampledTheory(Theory):
    """The root mean square error of the Jacobian over the chains, by `Noise`.

    Attributes
    ----------
    features : array of shape (m, n)
        The rows.
    target : array of shape (m,)
        Their targets.
    """

    features: np.ndarray
    target: np.ndarray

    def curves(
        self, posed: PosedProblem, algorithm: itd.Algorithm, modes: Mapping[str, itd.Mode]
    ) -> Mapping[str, Curve]:
        """Return the rate; nothing for another algorithm than gradient descent."""
        del modes
        sampling = posed.sampling
        if not isinstance(algorithm, itd.GradientDescent) or sampling is None:
            return {}
        size = float(algorithm.step_size)
        noise = Noise(
            self.features[:, :, None] * self.features[:, None, :],
            self.features * self.target[:, None],
            np.exp(np.asarray(posed.theta)),
        )

        def rate(iterations: np.ndarray) -> np.ndarray:
            sizes = np.asarray(step_sizes(size, sampling, np.arange(iterations[-1] + 1)))
            bias = noise.bias(np.asarray(posed.x0), sizes[:-1])[iterations]
            variance = noise.variance(sampling.batch, decrease(sampling))
            return np.sqrt(bias**2 + sizes[iterations] * variance)

        return {"rate": rate}

    def rate(self, posed: PosedProblem, algorithm: itd.Algorithm) -> float | None:
        """Return None: late starts are not measured."""
        del posed, algorithm
