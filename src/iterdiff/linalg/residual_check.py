r"""Which answers of linear solves are accepted.

A system :math:`A x = b` is solved for one of two purposes, and each has its own criterion.

*The residual is what matters.* A reverse-mode derivative solves :math:`A^\top \lambda = w` for the
cotangent w of a loss. If the answer leaves a residual :math:`\rho`, the gradient is that of a loss
with the cotangent :math:`w + \rho`, whatever the condition of A, and even if A is singular: then
the system has solutions only if the loss ignores the null space of A, and the gradient is the same
for all of them, provided that the equation has solutions for every theta nearby. An answer is
accepted if

.. math::

    \|A x - b\| \le s \left(\max(\tau, \mathrm{rtol}) \, \|b\| + \sqrt{n} \; \mathrm{atol}\right),

in Euclidean norms, where n is the number of unknowns, :math:`\tau` is `default_rtol` and s is
`RESIDUAL_SLACK`. The numbers rtol and atol are the solver's own attributes of these names (those
of its `inner_solver`, if it wraps one), or zero if it has none, as a direct solver. So a user who
passes a solver with looser tolerances gets what these tolerances promise.

*The answer is what matters.* A forward-mode derivative solves :math:`A t = -r_\theta v` for the
tangent t. If A is singular, t is arbitrary although the system has solutions, and no residual shows
it. Such a solve is accepted only if A is regular as well: by the condition number of the
equilibrated matrix if it is factored, and otherwise by a second solve, whose answer is known
(`known_answer`). The option `UNIQUE` of a solver selects this criterion; it is the default.

If the matrix is known to be regular, a backward-stable answer is accepted for either purpose: its
residual may be as large as :math:`10 \sqrt{n} \, \epsilon \, \|A\| \|x\|`, which exceeds the bound
above if the system is ill-conditioned.

The criterion holds for every solver alike, those that users hand in included, and for least-squares
solvers, which accept a singular A.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.lax import only_if
from iterdiff.linalg.factor import Equilibration, Factors, Vector, substitute
from iterdiff.linalg.krylov import Matvec, Operand

Answer = tuple[PyTree, lx.RESULTS, dict[str, Any]]

FAILURE = (
    "The linear solve behind an implicit derivative (or a Newton step) failed: the Jacobian of the "
    "residual is singular, so that it leaves the derivative open, or too ill-conditioned for the "
    "method. Use float64, add the equations that make the solution unique, declare "
    "`positive_definite` if it is, pass your own `linear_solver`, or pass `throw=False` for NaN."
)

SPREAD = "spread over several devices"
"""The tag of an operator on vectors that are spread over several devices: its matrix, which would
bring them together, is not formed."""

UNIQUE = "unique"
"""The option of a solver's `compute` that says whether the answer has to be the only one. If False,
a singular operator is no failure as long as the answer solves the system."""

FACTORS = "factors"
"""The option of `DenseOrKrylov.compute` for the factors of a nearby matrix, and the name under
which it returns those that it used, or made: see `iterdiff.linalg.handed`."""

HANDS_ON = "hands on"
"""The option that says whether somebody asks for these factors."""

MAX_CONDITION = {64: 3e13, 32: 2e6}
"""Largest condition number of a matrix that counts as regular, by bits of its dtype. A singular
matrix, rounded, has one of about 1 / eps, which is 5e15 and 8e6. Systems of condition 1e12 and 1e6
have to be solved."""

RESIDUAL_SLACK = 100
"""An answer may have this many times the residual at which its solver stops: the updated residual
of an iteration drifts from the true one, and solvers differ in their norms."""

BACKWARD_SLACK = 10
"""The residual of a backward-stable answer is below this many times ``sqrt(n) eps |A| |x|``."""

KNOWN_MAX_ERROR = 0.02
"""Largest error of the answer that is known, in the Euclidean norm, of a vector with entries of
order one: a null vector of length one usually changes it by more."""

KNOWN_MAX_ENTRY_ERROR = 0.01
"""The same for each entry."""

KNOWN_MAX_RELATIVE_ERROR = 1000
"""Errors of the known answer below this many times the solver's rtol, relative to the answer, are
attributed to the solver."""


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
        return manual_axes.linear_transpose(self.operator.mv, v)

    def transpose(self) -> "Product":
        """Return the product with the transpose."""
        return Product(self.operator, not self.transposed)


def residual_small(
    product: Matvec,
    x: Operand,
    b: Operand,
    rtol: Float[Array, ""] | float = 0.0,
    atol: Float[Array, ""] | float = 0.0,
) -> Bool[Array, ""]:
    """Whether the residual of `x` meets the bound of this module's docstring.

    All norms are taken in units of the largest entry of `b`, whose square may be zero or infinite.
    """
    unit = _unit_of(b)
    residual = tree.length(tree.over(tree.sub(product(x), b), unit))
    return (residual <= _allowed(b, unit, rtol, atol)) & tree.all_finite(x)


class Matrix(NamedTuple):
    """What a check has to know of an equilibrated matrix ``B = R A C``.

    Attributes
    ----------
    scales : Equilibration
        ``R`` and ``C``.
    image : callable
        ``x -> R A x``.
    inverted_twice : callable
        ``g -> B^{-1} g, B^{-T} B^{-1} g``; a permutation of rows may be left out.
    """

    scales: Equilibration
    image: Matvec
    inverted_twice: Callable[[Vector], tuple[Vector, Vector]]

    def norms(self, x: Vector) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        r"""Return the spectral norms of ``B`` and ``B^{-1}``, from below, and that of ``C^{-1} x``.

        The first is about :math:`\|B\|_F / \sqrt{n}`, from a random vector, and at least one. The
        second comes from a power step, :math:`B^{-\top} B^{-1} g`.
        """
        random, columns = known_answer(x), self.scales.columns
        once, twice = self.inverted_twice(random)
        image = self.image(columns * random)
        image, once, twice, random, y = _lengths(image, once, twice, random, x / columns)
        return jnp.maximum(image / random, 1.0), twice / once, y


def accepted_answer(
    matrix: Matrix, x: Vector, b: Vector, *, unique: bool, rtol: float, small: Any = False
) -> Bool[Array, ""]:
    """Whether an answer to ``A x = b`` is accepted, by its residual in the units of ``B``.

    Most answers in reverse mode are accepted by their residual alone. The norms of the matrix and
    of its inverse are computed only where they decide.

    Parameters
    ----------
    matrix : Matrix
        ``B``.
    x, b : array, shape (n,)
        The answer and the right-hand side.
    unique : bool
        Whether the answer has to be the only one.
    rtol : float
        As in the module's docstring.
    small : bool
        Whether the residual is known to be small in other units.
    """
    b = matrix.scales.rows * b
    unit = _unit_of(b)
    # An unknown that is not finite makes the residual not finite, even if the matrix ignores it.
    residual, length = _lengths((matrix.image(x) - b + 0 * x) / unit, b / unit)
    small |= residual <= RESIDUAL_SLACK * max(rtol, default_rtol(b.dtype)) * length
    constant = BACKWARD_SLACK * b.size**0.5 * float(jnp.finfo(b.dtype).eps)

    def stable_and_regular():
        norm, inverse_norm, of_answer = matrix.norms(x / unit)
        stable = small | (residual <= constant * norm * of_answer)
        return stable & (norm * inverse_norm < MAX_CONDITION[jnp.finfo(b.dtype).bits])

    return stable_and_regular() if unique else only_if(~small, stable_and_regular, small)


def matrix_of(factors: Factors, product: Matvec, *, transpose: bool = False) -> Matrix:
    """Return what a check has to know of a factored matrix, or of its transpose.

    The image uses the matrix if the factors kept it, and otherwise the system's own `product`.
    """
    scales = factors.scales.transposed() if transpose else factors.scales
    if factors.matrix is None:
        image = lambda x: scales.rows * product(x)  # noqa: E731
    else:
        kept = factors.matrix.T if transpose else factors.matrix
        image = lambda x: kept @ (x / scales.columns)  # noqa: E731
    return Matrix(scales, image, factors.inverted_twice)


def solve_by_factors(
    factors: Factors, product: Matvec, b: Vector, *, transpose: bool, unique: bool, rtol: float
) -> tuple[Vector, Bool[Array, ""]]:
    """Return the answer of `substitute`, and whether it is accepted.

    Parameters
    ----------
    factors : Factors
        Of the matrix.
    product : callable
        The product with the system's matrix: with `transpose`, the transpose.
    b : array, shape (n,)
        The right-hand side.
    transpose, unique : bool
        Whether to solve with the transpose, and whether the answer has to be the only one.
    rtol : float
        As in the module's docstring.
    """
    x = substitute(factors, b, transpose=transpose)
    matrix = matrix_of(factors, product, transpose=transpose)
    return x, accepted_answer(matrix, x, b, unique=unique, rtol=rtol)


def known_answer(like: Operand) -> Operand:
    """Return a vector with a part along almost every null vector that occurs in practice.

    Its entries are random, with mean one, so that it has a large part along constants. With a
    random right-hand side in its place, the part along a null vector could not be told from the
    error of an inexact solver.
    """
    return jax.tree.map(lambda drawn: 1.0 + drawn[0], tree.fixed_directions(like, 1))


def known_found(known: Operand, found: Operand, rtol: Any) -> Bool[Array, ""]:
    """Whether a solver that stops at `rtol` found `known`, up to errors of its own.

    Limits: a single null vector that is spread over all of n unknowns, and has no part along
    constants, is seen if `KNOWN_MAX_ERROR` is below its part in the known answer, of order one. In
    float32, above some hundred unknowns, it hides in the solver's own error.
    """
    error = tree.sub(found, known)
    own = KNOWN_MAX_RELATIVE_ERROR * rtol
    relative = jnp.maximum(KNOWN_MAX_ERROR / tree.size(known) ** 0.5, own)
    largest = jnp.maximum(KNOWN_MAX_ENTRY_ERROR, own)
    close = tree.length(error) <= relative * tree.length(known)
    return close & (tree.largest(error) <= largest)


def _lengths(*vectors: Vector) -> Float[Array, " k"]:
    """Return the Euclidean norms of vectors of one length, by one reduction."""
    stacked = jnp.stack(vectors)
    return jnp.sqrt(jnp.sum(stacked * stacked, axis=1))


def _unit_of(b: Operand) -> Float[Array, ""]:
    """Return the largest entry of `b`; 1 if that is zero."""
    largest = tree.largest(b)
    return jnp.where(largest > 0, largest, 1.0)


def _allowed(b: Operand, unit: Float[Array, ""], rtol: Any, atol: Any) -> Float[Array, ""]:
    """Return the largest residual that an answer to `b` may have, in units of `unit`."""
    # Decided while tracing if possible: most solves have constant tolerances.
    floor, constant = default_rtol(tree.result_dtype(b)), (int, float)
    rtol = max(rtol, floor) if isinstance(rtol, constant) else jnp.maximum(rtol, floor)
    allowed = rtol * tree.length(tree.over(b, unit))
    if not (isinstance(atol, constant) and atol == 0):
        allowed += tree.size(b) ** 0.5 * (atol / unit)
    return RESIDUAL_SLACK * allowed


def result_of(accepted: Bool[Array, ""], b: Operand, result: lx.RESULTS) -> lx.RESULTS:
    """Return `result`, or ``RESULTS.singular`` unless the answer to `b` is accepted.

    If `b` is not finite, the solve did not fail, and its answer is not finite either.
    """
    # The largest entry would not do: between devices, the maximum of NaN and a number may be it.
    failed = ~accepted & tree.all_finite(b)
    return lx.RESULTS.where(failed, lx.RESULTS.singular, result)


class CheckedSolver(lx.AbstractLinearSolver):
    """A linear solver whose `compute` checks its answer, and knows the option `UNIQUE`.

    It returns another result than ``lineax.RESULTS.successful``, or raises, if the answer is not
    accepted. Any other solver is wrapped in `iterdiff.linalg.any_solver.AnySolver`.

    Attributes
    ----------
    advice : str
        The message of the error if a solve fails.
    """

    @property
    def advice(self) -> str:
        """The message of the error if a solve fails."""
        return FAILURE
