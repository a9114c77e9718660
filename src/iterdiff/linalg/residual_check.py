r"""Check the answer of any linear solver by its residual.

The residual :math:`\|A x - b\|` of an answer may not exceed

.. math::

    s \left(\max(\tau, \mathrm{rtol}) \, \|b\| + \sqrt{n} \; \mathrm{atol}\right),

in Euclidean norms, where n is the number of unknowns, :math:`\tau` is `default_rtol` and s is
`RESIDUAL_SLACK`. The numbers rtol and atol are the solver's own attributes of these names (those
of its `inner_solver`, if it wraps one), or zero if it has none, as a direct solver. So a user who
passes a solver with looser tolerances gets what these tolerances promise, and an answer that is
worse than that is a failure, whatever the solver reported.

The bound also holds for least-squares solvers (those that do not assume full rank), which accept a
singular A. Their forward systems :math:`A x = b` are consistent by the implicit function theorem.
A transposed system :math:`A^\top \lambda = w` is consistent only if the cotangent w ignores the
null space of A. If it does not, the loss depends on a part of the solution that the equation does
not determine: there is no derivative, and the solve fails.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.lax import computed_once

Vector = Float[Array, " n"]
Matvec = Callable[[PyTree], PyTree]
Answer = tuple[PyTree, lx.RESULTS, dict[str, Any]]

RESIDUAL_SLACK = 100
"""An answer may have this many times the residual at which its solver stops: the updated residual
of an iteration drifts from the true one, and solvers differ in their norms."""


def default_rtol(dtype) -> float:
    """Return the relative residual at which iterative solves in `dtype` stop."""
    return 1e-10 if jnp.finfo(dtype).bits >= 64 else 1e-5


class Product(eqx.Module):
    """The product with an operator, or with its transpose.

    It ignores the operator's tags. For an operator tagged as symmetric, lineax returns the operator
    itself as the transpose; a check must not rely on that claim.
    """

    operator: lx.AbstractLinearOperator
    transposed: bool = eqx.field(static=True, default=False)

    def __call__(self, v: PyTree) -> PyTree:
        """Return the product with `v`."""
        if not self.transposed:
            return self.operator.mv(v)
        return jax.linear_transpose(self.operator.mv, self.operator.in_structure())(v)[0]

    def transpose(self) -> "Product":
        """Return the product with the transpose."""
        return Product(self.operator, not self.transposed)


def residual_too_large(
    product: Matvec,
    x: PyTree,
    b: PyTree,
    rtol: Float[Array, ""] | float = 0.0,
    atol: Float[Array, ""] | float = 0.0,
) -> Bool[Array, ""]:
    """Whether ``A x - b`` exceeds the bound of this module's docstring, or is not finite.

    False if `b` is not finite: then the solve did not fail, and its answer is not finite either.
    All norms are taken in units of the largest entry of `b`, whose square may be zero or infinite.
    """
    x_image, b = tree.to_vector(product(x)), tree.to_vector(b)
    largest = jnp.max(jnp.abs(b))
    unit = jnp.where(largest > 0, largest, 1.0)
    residual = tree.norm((x_image - b) / unit)
    allowed = _allowed(b, unit, rtol, atol)
    return ~(jnp.isfinite(residual) & (residual <= allowed)) & jnp.isfinite(largest)


def _allowed(b: Vector, unit: Float[Array, ""], rtol: Any, atol: Any) -> Float[Array, ""]:
    """Return the largest residual that an answer to `b` may have, in units of `unit`."""
    # Decided while tracing if possible: most solves have constant tolerances.
    floor, constant = default_rtol(b.dtype), (int, float)
    rtol = max(rtol, floor) if isinstance(rtol, constant) else jnp.maximum(rtol, floor)
    allowed = rtol * tree.norm(b / unit)
    if not (isinstance(atol, constant) and atol == 0):
        allowed += b.size**0.5 * (atol / unit)
    return RESIDUAL_SLACK * allowed


def failed_if(failed: Bool[Array, ""], result: lx.RESULTS) -> lx.RESULTS:
    """Return `result`, or ``RESULTS.singular`` if `failed`."""
    return lx.RESULTS.where(failed, lx.RESULTS.singular, result)


def _tolerances(solver: Any) -> tuple[Any, Any]:
    """Return `rtol` and `atol` of a solver, or of the one that it wraps; zero if it has none."""
    solver = getattr(solver, "inner_solver", solver)
    found = (getattr(solver, name, None) for name in ("rtol", "atol"))
    rtol, atol = (0.0 if value is None else value for value in found)
    return rtol, atol


class CheckedSolver(lx.AbstractLinearSolver):
    """A linear solver whose `compute` checks the residual of its answer.

    It returns another result than ``lineax.RESULTS.successful``, or raises, if the residual is too
    large. Any other solver is wrapped in `ResidualChecked`.
    """


class ResidualChecked(CheckedSolver):
    """Any linear solver of lineax, its answers checked by their residuals.

    Parameters
    ----------
    solver : lineax.AbstractLinearSolver
        Gives the answers. A result other than ``successful`` stays a failure.
    """

    solver: lx.AbstractLinearSolver

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> tuple:
        """Return the operator's product, and the solver's state."""
        operator = lx.linearise(operator)
        return Product(operator), self.solver.init(operator, options)

    def compute(self, state: tuple, vector: PyTree, options: dict[str, Any]) -> Answer:
        """Return the solver's answer to `vector`; its result, unless the residual is too large."""
        product, inner = state
        vector = tree.from_vector(computed_once(tree.to_vector(vector)), vector)
        x, result, stats = self.solver.compute(inner, vector, options)
        failed = residual_too_large(product, x, vector, *_tolerances(self.solver))
        return x, failed_if(failed, result), stats

    def transpose(self, state: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Return the state for the transposed operator."""
        product, inner = state
        inner, options = self.solver.transpose(inner, options)
        return (product.transpose(), inner), options

    def conj(self, state: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Return the state for the conjugate operator, which is real."""
        product, inner = state
        inner, options = self.solver.conj(inner, options)
        return (product, inner), options

    def assume_full_rank(self) -> bool:
        """Whether the solver assumes that operators have full rank."""
        return self.solver.assume_full_rank()
