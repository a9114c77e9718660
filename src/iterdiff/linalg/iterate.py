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
from jaxtyping import Array, Bool, Int, PyTree

from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.closures import hoist
from iterdiff.jaxtools.lax import only_if
from iterdiff.linalg.factor import inverse_power_of_two
from iterdiff.linalg.handed import STALE_MAX_PRODUCTS, HandedFactors
from iterdiff.linalg.krylov import Budget, Matvec, Operand, conjugate_gradients, gmres
from iterdiff.linalg.probing import diagonal_by_probing, row_lengths
from iterdiff.linalg.residual_check import known_answer, known_found, residual_small
from iterdiff.linalg.tridiagonal import solve_tridiagonal

Rows = PyTree
"""Several operands, stacked along a first axis."""

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
    precondition: Callable[[Any, Operand], Operand] | None = None
    helper: Any = ()

    def helped_by(self, precondition: Matvec, like: Operand) -> "System":
        """Return the system with a preconditioner."""
        converted, closed_over = hoist(precondition, like)
        return self._replace(precondition=converted, helper=closed_over)


class _Scales(NamedTuple):
    """The diagonals R and C of an attempt, and whether it is the first.

    Attributes
    ----------
    rows, columns : pytree
        Like an operand, and positive. For conjugate gradients, `rows` are one and `columns` those
        of the inverse diagonal.
    first : bool
        Whether the preconditioner is used.
    """

    rows: Operand
    columns: Operand
    first: Bool[Array, ""]


def iterate(
    system: System, rows: Rows, guesses: Rows | None, budget: Budget, restart: int
) -> tuple[Rows, Bool[Array, " k"]]:
    """Return the answers to several right-hand sides, and which of them are solved.

    Parameters
    ----------
    system : System
        The matrix and the preconditioner.
    rows : pytree
        The right-hand sides, stacked along a first axis of length k.
    guesses : pytree, optional
        Where the iterations start, likewise.
    budget : Budget
        How many products each may take in an attempt.
    restart : int
        GMRES restarts after this many products.
    """
    count, first = len(jax.tree.leaves(rows)[0]), tree.row(rows, 0)

    def unfinished(carry):
        number, _, solved = carry
        return (number < ATTEMPTS) & ~jnp.all(solved)

    def attempt(carry):
        number, answers, solved = carry
        scales = _scales(system, first, number)

        def solve(b, guess):
            return _solved(system, scales, b, guess, budget, restart)

        if count == 1:
            found, accepted = jax.tree.map(lambda v: v[None], solve(first, tree.row(guesses, 0)))
        else:
            found, accepted = jax.vmap(solve)(rows, guesses)
        answers = jax.vmap(tree.where)(solved, answers, found)
        return number + 1, answers, solved | accepted

    start = jnp.int32(0), tree.zeros_like(rows), jnp.zeros(count, bool)
    return manual_axes.while_loop(unfinished, attempt, start)[1:]


def is_regular(system: System, like: Operand, budget: Budget, restart: int) -> Bool[Array, ""]:
    """Whether the Krylov method finds an answer that is known: the operator is regular."""
    known = known_answer(like)
    image = jax.tree.map(lambda v: v[None], system.matvec(known))
    found, solved = iterate(system, image, None, budget, restart)
    return solved[0] & known_found(known, tree.row(found, 0), system.rtol)


def with_handed(
    system: System,
    b: Operand,
    guess: Operand | None,
    handed: HandedFactors,
    *,
    transpose: bool,
) -> tuple[Operand, Bool[Array, ""]]:
    """Return the answer by the factors of a nearby matrix, and whether it is accepted.

    Right-preconditioned GMRES: iterative refinement that also converges if the matrix is not so
    near. It takes `STALE_MAX_PRODUCTS` at most, and none if the factors are not known.
    """
    system = system._replace(positive_definite=False)
    system = system.helped_by(partial(handed.solve, transpose=transpose), b)
    ones = tree.full_like(b, 1.0)
    scales = _Scales(ones, ones, jnp.array(True))
    most = jnp.where(handed.known, STALE_MAX_PRODUCTS, 0)

    def solve(b: Operand, guess: Operand | None) -> tuple[Operand, Bool[Array, ""]]:
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


def _scales(system: System, like: Operand, number: Int[Array, ""]) -> _Scales:
    """Return the diagonals of an attempt; those of the first are one."""
    first, ones = number == 0, tree.full_like(like, 1.0)

    def equilibrate(_, scales):
        rows, columns = scales

        def scaled(v):
            return tree.mul(rows, system.matvec(tree.mul(columns, v)))

        rows = tree.mul(rows, _inverse_lengths(scaled, like))

        def transposed(w):
            return tree.mul(columns, manual_axes.linear_transpose(system.matvec, tree.mul(rows, w)))

        return rows, tree.mul(columns, _inverse_lengths(transposed, like))

    def probed():
        if system.positive_definite:
            diagonal = diagonal_by_probing(system.matvec, like)
            return ones, jax.tree.map(lambda v: 1 / _usable(jnp.abs(v)), diagonal)
        return manual_axes.fori_loop(0, EQUILIBRATIONS, equilibrate, (ones, ones))

    return _Scales(*only_if(~first, probed, (ones, ones)), first)


def _inverse_lengths(matvec: Matvec, like: Operand) -> Operand:
    """Return the inverse lengths of a matrix's rows, as powers of two; one for an empty row."""
    lengths = row_lengths(matvec, like)
    return jax.tree.map(lambda v: inverse_power_of_two(_usable(v)), lengths)


def _usable(sizes: Array) -> Array:
    """Return sizes as divisors: one in place of what is zero or not finite."""
    return jnp.where(jnp.isfinite(sizes) & (sizes > 0), sizes, 1.0)


def _solved(
    system: System,
    scales: _Scales,
    b: Operand,
    guess: Operand | None,
    budget: Budget,
    restart: int,
) -> tuple[Operand, Bool[Array, ""]]:
    """Solve for `b` scaled to norm one: the square of a tiny cotangent would underflow.

    Returns
    -------
    tuple
        The answer, and whether the method converged and the true residual is small.
    """
    b, rtol = tree.mul(scales.rows, b), system.rtol
    largest = tree.largest(b)
    unit = tree.over(b, jnp.where(largest > 0, largest, 1.0))
    length = tree.norm(unit)
    unit = tree.over(unit, jnp.where(length > 0, length, 1.0))

    def matvec(v):
        return tree.mul(scales.rows, system.matvec(v))

    def precondition(v):
        scaled = tree.mul(scales.columns, v)
        if system.precondition is None:
            return scaled
        return tree.where(scales.first, system.precondition(system.helper, v), scaled)

    start, rest = tree.zeros_like(b), unit
    if guess is not None:
        guess = tree.over(guess, jnp.where(length > 0, largest * length, 1.0))
        left = tree.sub(unit, matvec(guess))
        better = tree.norm(left) < tree.norm(unit)  # False for NaN
        start, rest = tree.where(better, (guess, left), (start, rest))
    if system.positive_definite:
        x, solved = conjugate_gradients(matvec, rest, budget, rtol, precondition)
    else:
        product = lambda y: matvec(precondition(y))  # noqa: E731
        y, solved = gmres(product, rest, budget, rtol, restart)
        x = precondition(y)
    x = tree.add(start, x)
    return tree.scale(largest * length, x), solved & residual_small(matvec, x, unit, rtol)
