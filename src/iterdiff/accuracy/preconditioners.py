"""Preconditioners that users hand to the linear solves of `Implicit`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools.arguments import check_callable
from iterdiff.linalg.handed import HandedFactors
from iterdiff.linalg.probing import inverse_by_probing
from iterdiff.problems.problem import Problem

Preconditioner = Callable[[Problem, PyTree, PyTree], Callable[[PyTree], PyTree]]
"""``preconditioner(problem, x, theta)`` returns ``v -> M v``, about the inverse of the Jacobian."""


class Probed(eqx.Module):
    """The inverse of the Jacobian's diagonal, or diagonal blocks, found by products.

    Parameters
    ----------
    by_blocks : bool
        Whether to use blocks, see `iterdiff.linalg.probing.inverse_by_probing`.
    """

    by_blocks: bool = eqx.field(static=True)

    def __call__(self, problem: Problem, x: PyTree, theta: PyTree) -> Callable[[PyTree], PyTree]:
        """Return the product with the inverse."""
        operator = jax.linearize(lambda y: problem.residual(y, theta), x)[1]
        return inverse_by_probing(operator, x, by_blocks=self.by_blocks)


class OfTheRun(eqx.Module):
    """What the algorithm that ran holds for the inverse of the Jacobian.

    References
    ----------
    Z. Ramzi et al., *SHINE: SHaring the INverse Estimate from the forward pass for bi-level
    optimization and implicit models*, ICLR 2022. There the estimate replaces the inverse; here it
    preconditions a solve whose answer is checked.
    """

    def __call__(self, problem: Problem, x: PyTree, theta: PyTree) -> Callable[[PyTree], PyTree]:
        """Raise ValueError: there was no run."""
        del problem, x, theta
        raise ValueError(
            "`preconditioner='algorithm'` needs the last state of a run, which only iterdiff.solve "
            "has; pass 'diagonal', 'block' or a function of your own."
        )

    @staticmethod
    def at(algorithm: Algorithm, state: Any) -> tuple[Preconditioner | None, HandedFactors | None]:
        """Return the preconditioner, or the factors, that the algorithm holds.

        Raises
        ------
        ValueError
            If it holds none.
        """
        factors = algorithm.last_factors(state)
        if factors is not None:
            return None, factors
        apply = algorithm.inverse_jacobian(state)
        if apply is None:
            raise ValueError(
                f"`preconditioner='algorithm'`: {type(algorithm).__name__} holds no inverse of the "
                "Jacobian, as Newton (without `linear_solver`), Broyden and Chord do; pass "
                "'diagonal', 'block' or a function of your own."
            )
        return (lambda *_: apply), None


BUILT_IN = {
    "diagonal": Probed(by_blocks=False),
    "block": Probed(by_blocks=True),
    "algorithm": OfTheRun(),
}
"""Preconditioners that have a name."""


def as_preconditioner(given: Any) -> Preconditioner | None:
    """Return a preconditioner, or None; a name is looked up in `BUILT_IN`.

    Raises
    ------
    ValueError
        If there is none of this name.
    TypeError
        If it is neither a name nor callable.
    """
    if isinstance(given, str):
        if given not in BUILT_IN:
            raise ValueError(
                f"`preconditioner` must be a function or one of {list(BUILT_IN)}, not {given!r}."
            )
        return BUILT_IN[given]
    if given is not None:
        check_callable(preconditioner=given)
    return given


def applied(
    preconditioner: Preconditioner, problem: Problem, x: PyTree, theta: PyTree
) -> Callable[[PyTree], PyTree]:
    """Return ``v -> M v`` at a point.

    Raises
    ------
    TypeError
        If the preconditioner does not return a function.
    """
    apply = preconditioner(problem, x, theta)
    if not callable(apply):
        raise TypeError(
            "`preconditioner` must return a function v -> M v that approximates A^-1 v, but "
            f"preconditioner(problem, x, theta) returned {apply!r}."
        )
    return apply
