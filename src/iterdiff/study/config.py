"""What a study runs: posed problems, cases, and the modes that differentiate each case."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import PyTree

import iterdiff as itd

Curve = Callable[[np.ndarray], np.ndarray]
"""Theoretical values at the given iterations: one row, or one row per mode."""


class Theory(abc.ABC):
    """What theory predicts about runs on one posed problem."""

    @abc.abstractmethod
    def curves(
        self, posed: "PosedProblem", algorithm: itd.Algorithm, modes: Mapping[str, itd.Mode]
    ) -> Mapping[str, Curve]:
        """Return predicted Jacobian errors, by the name of their variable in the dataset.

        Parameters
        ----------
        posed : PosedProblem
            The problem that owns this theory.
        algorithm : Algorithm
            The algorithm of the run.
        modes : mapping of str to Mode
            The modes of the study, by label.
        """

    @abc.abstractmethod
    def rate(self, posed: "PosedProblem", algorithm: itd.Algorithm) -> float | None:
        """Return the contraction rate per step, dimensionless.

        NaN if theory does not know the rate; None if late starts are not to be measured.
        """


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How minibatches are drawn, for a study of stochastic gradient descent.

    Attributes
    ----------
    problem : Minimization
        Its objective receives indices of samples, and returns their mean.
    samples, batch, chains, seed : int
        Number of samples, of those in a minibatch, and of independent chains; seed of all draws.
    decay : float
        Step k shrinks as ``k ** -decay``.
    slowest : float
        Lower bound of the Hessian's spectrum, which decides when steps begin to shrink.
    """

    problem: itd.Minimization
    samples: int
    batch: int
    chains: int
    seed: int
    decay: float
    slowest: float


@dataclasses.dataclass(frozen=True)
class PosedProblem:
    """A problem with a start, parameters, and the facts that algorithms and theory need.

    Attributes
    ----------
    problem, x0, theta
        As in `iterdiff.solve`.
    title : str
        The problem in one line.
    spectrum : (float, float), optional
        Bounds l and L of the spectrum of ``d residual / dx``, for step sizes such as "1/L".
    coordinate : float, optional
        The value that distinguishes this problem from the others of its study.
    reference : callable or pytree, optional
        The solution, as in `iterdiff.trace`.
    theory : Theory, optional
        What theory predicts about runs on this problem.
    args : pytree, optional
        As in `iterdiff.solve`.
    algorithm : Algorithm, optional
        The algorithm that comes with the problem, for a study that names none.
    sampling : Sampling, optional
        Minibatches, where the study is one of stochastic gradient descent.
    """

    problem: itd.Problem
    x0: PyTree
    theta: PyTree
    title: str
    spectrum: tuple[float, float] | None = None
    coordinate: float | None = None
    reference: Any = None
    theory: Theory | None = None
    args: PyTree = None
    algorithm: itd.Algorithm | None = None
    sampling: Sampling | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """One run of a study.

    Attributes
    ----------
    label : str or float
        Coordinate of the run along the study's axis.
    problem, algorithm, x0, theta
        As in `iterdiff.trace`.
    steps, every : int
        Number of steps, and the number of steps between records. `every` divides `steps`, so
        that the last iterate is recorded.
    reference : callable or pytree, optional
        The solution, as in `iterdiff.trace`.
    curves : mapping of str to callable
        Theoretical Jacobian errors, by the name of their variable in the dataset. Figures show
        them with the measurement.
    rate : float, optional
        Theoretical contraction rate per step, NaN if unknown. If given, the study also measures
        every late start and predicts the best one.
    args : pytree, optional
        As in `iterdiff.solve`.
    spectrum : (float, float), optional
        As in `PosedProblem`.
    sampling : Sampling, optional
        As in `PosedProblem`.
    """

    label: str | float
    problem: itd.Problem
    algorithm: itd.Algorithm
    x0: PyTree
    theta: PyTree
    steps: int
    every: int = 1
    reference: Any = None
    curves: Mapping[str, Curve] = dataclasses.field(default_factory=dict)
    rate: float | None = None
    args: PyTree = None
    spectrum: tuple[float, float] | None = None
    sampling: Sampling | None = None

    def __post_init__(self):
        """Check that the records include the last iterate.

        Raises
        ------
        ValueError
            If `every` does not divide `steps`.
        """
        if self.steps >= 1 and self.every >= 1 and self.steps % self.every:
            divisor = largest_divisor(self.steps, self.every)
            less = self.steps - self.steps % self.every
            multiples = [n for n in (less, less + self.every) if n]
            raise ValueError(
                f"`every` = {self.every} does not divide `steps` = {self.steps} (case "
                f"{self.label!r}), so the last iterate would not be recorded. Set `every` to "
                f"{divisor}, or `steps` to {' or '.join(map(str, multiples))}."
            )


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs that differ in one respect, and the modes that differentiate each run.

    Attributes
    ----------
    name : str
        One word; also the name of the dataset's file.
    title : str
        One line for the heads of tables and figures: the problem, its size, its data.
    cases : tuple of Case
        The runs.
    modes : mapping of str to Mode
        The modes, by label.
    axis : str
        What the cases differ in; the name of a dimension of the dataset.
    probes : int, optional
        As in `iterdiff.trace`.
    estimate : bool
        As in `iterdiff.trace`. Figures show the estimates with the measurement.
    stop : StoppingRule, optional
        A rule; the study records where it ends the run of each mode.
    settings : mapping
        The settings that the study was made from. They are stored in the dataset.
    """

    name: str
    title: str
    cases: tuple[Case, ...]
    modes: Mapping[str, itd.Mode]
    axis: str = "algorithm"
    probes: int | None = None
    estimate: bool = False
    stop: itd.StoppingRule | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` that is at most `most`; both are at least 1."""
    return next(d for d in range(min(most, number), 0, -1) if number % d == 0)
