r"""Systems without a matrix, solved by conjugate gradients or GMRES, for several right-hand sides.

The first attempt uses the preconditioner, if there is one. If it does not solve all systems, a
second one ignores the preconditioner and equilibrates: conjugate gradients are preconditioned with
the diagonal of the matrix, and GMRES solves :math:`R A C y = R b` with diagonal R and C that make
the rows and columns of :math:`R A C` about equally long. Random vectors find these numbers.

A preconditioner M of GMRES stands on the right, :math:`A M y = b`, so that the residual which the
method sees is that of the system. A first guess is used if it leaves a smaller residual than zero
does. Every answer is checked by its residual: neither can make it wrong.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.closures import hoist
from iterdiff.jaxtools.lax import only_if
from iterdiff.linalg.factor import inverse_power_of_two
from iterdiff.linalg.handed import STALE_MAX_PRODUCTS, HandedFactors
from iterdiff.linalg.krylov import Budget, Matvec, Vector, conjugate_gradients, gmres
from iterdiff.linalg.probing import diagonal_by_probing, row_lengths
from iterdiff.linalg.residual_check import known_answer, known_found, residual_small
from iterdiff.linalg.tridiagonal import solve_tridiagonal

Rows = Float[Array, "k n"]

ATTEMPTS = 2
"""With the preconditioner, then with equilibration."""


EQUILIBRATIONS = 3
"""Rows and columns are scaled in turn this often: either undoes a part of the other."""


class System(NamedTuple):
    """A linear system without its right-hand side.

    Attributes
    ----------
    matvec : callable
        The product with the matrix.
    positive_definite : bool
        Whether the matrix should be positive definite.
    unique : bool
        Whether the answer has to be the only one.
    rtol : float
        Relative residual at which iterations stop.
    spread : bool
        Whether the vectors are spread over several devices, and not brought together.
    precondition : callable, optional
        ``precondition(helper, v)`` is about the inverse times `v`.
    helper : pytree of arrays
        What the preconditioner closes over.
    """

    matvec: Matvec
    positive_definite: bool
    unique: bool
    rtol: float
    spread: bool = False
    precondition: Callable[[Any, Vector], Vector] | None = None
    helper: Any = ()

    def helped_by(self, precondition: Matvec, like: Vector) -> "System":
        """Return the system with a preconditioner."""
        converted, closed_over = hoist(precondition, like)
        return self._replace(precondition=converted, helper=closed_over)


class _Scales(NamedTuple):
    """The diagonals R and C of an attempt, and whether it is the first.

    Attributes
    ----------
    rows, columns : array, shape (n,)
        Positive. For conjugate gradients, `rows` are one and `columns` those of the inverse
        diagonal.
    first : bool
        Whether the preconditioner is used.
    """

    rows: Vector
    columns: Vector
    first: Bool[Array, ""]


def iterate(
    system: System, rows: Rows, guesses: Rows | None, budget: Budget, restart: int
) -> tuple[Rows, Bool[Array, " k"]]:
    """Return the answers to several right-hand sides, and which of them are solved.

    Parameters
    ----------
    system : System
        The matrix and the preconditioner.
    rows : array, shape (k, n)
        The right-hand sides.
    guesses : array, shape (k, n), optional
        Where the iterations start.
    budget : Budget
        How many products each may take in an attempt.
    restart : int
        GMRES restarts after this many products.
    """

    def unfinished(carry):
        number, _, solved = carry
        return (number < ATTEMPTS) & ~jnp.all(solved)

    def attempt(carry):
        number, answers, solved = carry
        scales = _scales(system, rows[0], number)

        def solve(b, guess):
            return _solved(system, scales, b, guess, budget, restart)

        if len(rows) == 1:
            given = rows[0], None if guesses is None else guesses[0]
            found, accepted = jax.tree.map(lambda v: v[None], solve(*given))
        else:
            found, accepted = jax.vmap(solve)(rows, guesses)
        return number + 1, jnp.where(solved[:, None], answers, found), solved | accepted

    start = jnp.int32(0), jnp.zeros_like(rows), jnp.zeros(len(rows), bool)
    return manual_axes.while_loop(unfinished, attempt, start)[1:]


def is_regular(system: System, like: Vector, budget: Budget, restart: int) -> Bool[Array, ""]:
    """Whether the Krylov method finds an answer that is known: the operator is regular."""
    known = known_answer(like)
    found, solved = iterate(system, system.matvec(known)[None], None, budget, restart)
    return solved[0] & known_found(known, found[0], system.rtol)


def with_handed(
    system: System,
    b: Vector,
    guess: Vector | None,
    handed: HandedFactors,
    *,
    transpose: bool,
) -> tuple[Vector, Bool[Array, ""]]:
    """Return the answer by the factors of a nearby matrix, and whether it is accepted.

    Right-preconditioned GMRES: iterative refinement that also converges if the matrix is not so
    near. It takes `STALE_MAX_PRODUCTS` at most, and none if the factors are not known.
    """
    system = system._replace(positive_definite=False)
    system = system.helped_by(partial(handed.solve, transpose=transpose), b)
    scales = _Scales(jnp.ones_like(b), jnp.ones_like(b), jnp.array(True))
    most = jnp.where(handed.known, STALE_MAX_PRODUCTS, 0)

    def solve(b: Vector, guess: Vector | None) -> tuple[Vector, Bool[Array, ""]]:
        return _solved(system, scales, b, guess, Budget(most, most), STALE_MAX_PRODUCTS)

    x, solved = solve(b, guess)
    if system.unique:
        known = known_answer(b)
        found, told = solve(system.matvec(known), None)
        solved &= told & known_found(known, found, system.rtol)
    return x, solved & handed.known


def or_by_bands(
    system: System, rows: Rows, answers: Rows, solved: Bool[Array, " k"]
) -> tuple[Rows, Bool[Array, " k"]]:
    """Return the answers; those not solved by a tridiagonal solve, if the matrix is tridiagonal."""

    def by_bands():
        found, accepted = solve_tridiagonal(
            system.matvec, rows, unique=system.unique, rtol=system.rtol
        )
        use = ~solved & accepted
        return jnp.where(use[:, None], found, answers), solved | accepted

    return only_if(~jnp.all(solved), by_bands, (answers, solved))


def for_all_rows(solve_rows: Callable) -> Callable:
    """Return ``solve_rows(constants, rows, guesses)``, which sees all rows of a batch at once.

    The rows of a batch, and their guesses, become rows of one call. Constants that are batched
    cannot be shared: then there is a call for each member.
    """
    solve = jax.custom_batching.custom_vmap(solve_rows)

    @solve.def_vmap
    def batched(size, in_batched, constants, rows, guesses):
        shared = not any(jax.tree.leaves(in_batched[0]))
        if not shared:
            axes = jax.tree.map(lambda batched: 0 if batched else None, tuple(in_batched))
            return jax.vmap(solve_rows, axes)(constants, rows, guesses), (True, True)

        def flat(v, is_batched):
            v = v if is_batched else jnp.broadcast_to(v, (size, *v.shape))
            return v.reshape(-1, v.shape[-1])

        given = jax.tree.map(flat, (rows, guesses), tuple(in_batched[1:]))
        answers, accepted = solve(constants, *given)
        shape = (size, -1)
        return (answers.reshape(*shape, answers.shape[-1]), accepted.reshape(shape)), (True, True)

    return solve


def _scales(system: System, like: Vector, number: Int[Array, ""]) -> _Scales:
    """Return the diagonals of an attempt; those of the first are one."""
    first, ones = number == 0, jnp.ones_like(like)

    def equilibrate(_, scales):
        rows, columns = scales
        rows *= _inverse_lengths(lambda v: rows * system.matvec(columns * v), like)

        def transposed(w):
            return columns * manual_axes.linear_transpose(system.matvec, rows * w)

        return rows, columns * _inverse_lengths(transposed, like)

    def probed():
        if system.positive_definite:
            diagonal = jnp.abs(diagonal_by_probing(system.matvec, like))
            usable = jnp.isfinite(diagonal) & (diagonal > 0)
            return ones, jnp.where(usable, 1 / jnp.where(usable, diagonal, 1.0), 1.0)
        return manual_axes.fori_loop(0, EQUILIBRATIONS, equilibrate, (ones, ones))

    return _Scales(*only_if(~first, probed, (ones, ones)), first)


def _inverse_lengths(matvec: Matvec, like: Vector) -> Vector:
    """Return the inverse lengths of a matrix's rows, as powers of two; one for an empty row."""
    lengths = row_lengths(matvec, like)
    usable = jnp.isfinite(lengths) & (lengths > 0)
    return inverse_power_of_two(jnp.where(usable, lengths, 1.0))


def _solved(
    system: System,
    scales: _Scales,
    b: Vector,
    guess: Vector | None,
    budget: Budget,
    restart: int,
) -> tuple[Vector, Bool[Array, ""]]:
    """Solve for `b` scaled to norm one: the square of a tiny cotangent would underflow.

    Returns
    -------
    tuple
        The answer, and whether the method converged and the true residual is small.
    """
    b, rtol = scales.rows * b, system.rtol
    largest = jnp.max(jnp.abs(b))
    unit = b / jnp.where(largest > 0, largest, 1.0)
    length = tree.norm(unit)
    unit = unit / jnp.where(length > 0, length, 1.0)

    def matvec(v):
        return scales.rows * system.matvec(v)

    def precondition(v):
        scaled = scales.columns * v
        if system.precondition is None:
            return scaled
        return jnp.where(scales.first, system.precondition(system.helper, v), scaled)

    start, rest = jnp.zeros_like(b), unit
    if guess is not None:
        guess = guess / jnp.where(length > 0, largest * length, 1.0)
        left = unit - matvec(guess)
        better = tree.norm(left) < tree.norm(unit)  # False for NaN
        start, rest = jnp.where(better, guess, start), jnp.where(better, left, rest)
    if system.positive_definite:
        x, solved = conjugate_gradients(matvec, rest, budget, rtol, precondition)
    else:
        product = lambda y: matvec(precondition(y))  # noqa: E731
        y, solved = gmres(product, rest, budget, rtol, restart)
        x = precondition(y)
    x = start + x
    return largest * length * x, solved & residual_small(matvec, x, unit, rtol)
