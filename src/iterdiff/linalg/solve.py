r"""The linear solves of Newton steps, implicit derivatives and error estimates.

One function, `inverse`, turns a matrix-free operator into :math:`b \mapsto A^{-1} b`. How
is chosen by size, structure, counted work and observed convergence:

====================  ==================================================================
unknowns              method
====================  ==================================================================
up to `TINY`          form the matrix, factor it once: LU with partial pivoting
up to `SMALL`         the same, but Cholesky's method where it should be positive definite (QR
                      when that fails)
up to `FALLBACK`      the same, or conjugate gradients (GMRES where it is not known to be
                      positive definite), whichever takes less time by the work counted and the
                      convergence observed: see `limits`
above                 the Krylov method alone
====================  ==================================================================

Every answer is checked by its own residual (by a product with the operator, or with its matrix
where that is less work); one that fails is an exception or NaN, never a
wrong number. The tolerances belong to these solves: nothing is inherited from the solver of
the outer problem. Differentiable to any order, transposable, batched by ``vmap`` (with the
factorisation shared between right-hand sides).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Int, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.lax import computed_once, only_if
from iterdiff.jaxtools.raise_if import raise_if
from iterdiff.linalg import krylov
from iterdiff.linalg.factor import Factors, factor, substitute
from iterdiff.linalg.krylov import Limits, Matvec, Vector
from iterdiff.linalg.matrix import LinearMap

TINY = 200
"""Up to this many unknowns LU takes hardly longer than Cholesky's method (measured: 6 % at 200),
whose program, with QR for where it fails, takes twice as long to compile."""

SMALL = 500
"""Up to this many unknowns the matrix is formed and factored: a matter of milliseconds."""

FALLBACK = 3000
"""Up to this many unknowns it may be formed."""

SLOWER = 5
"""An operation of a product with a vector takes as long as so many of a factorisation: it waits
for the memory. Measured: 4 to 6, for 500 to 5000 unknowns on one core."""

SHARE = 0.1
"""A Krylov method that is on trial takes at most this share of the time of the dense method."""

FEWEST = 4
"""A trial of fewer products than this says nothing; the dense method is taken."""

FAILURE = (
    "The linear solve behind an implicit derivative (or a Newton step) failed: its residual "
    "stayed too large or was not finite. The Jacobian of the residual is singular or nearly so "
    "at this point, or its condition is too bad for the method. Try another "
    "`linear_solver` (for example lineax.AutoLinearSolver(well_posed=False)), float64, or a "
    "problem with a unique solution; with `throw=False` the derivative is NaN instead."
)


class Structure(NamedTuple):
    """What is known of a linear operator beforehand.

    Attributes
    ----------
    symmetric, positive_definite : bool
        As in `Problem`: claims, verified by the answers.
    hessian : bool
        Whether the operator is a Hessian, so that no transposed one need be made. (A wrong claim
        of symmetry would make transposed solves wrong, and leave them unchecked.)
    """

    symmetric: bool
    positive_definite: bool
    hessian: bool = False


def inverse(
    operator: Callable[[PyTree], PyTree],
    like: PyTree,
    structure: Structure,
    *,
    solver: lx.AbstractLinearSolver | None = None,
    throw: bool = False,
    factors: Factors | None = None,
    rtol: float | None = None,
) -> Callable[[PyTree], PyTree]:
    r"""Return the function :math:`b \mapsto A^{-1} b`.

    Parameters
    ----------
    operator : callable
        ``operator(v)`` returns ``A v``, linear in ``v``; both in the structure of `like`.
    like : pytree of real floating arrays
        Gives structure, shapes and dtypes of the operands.
    structure : Structure
        What is known of ``A``.
    solver : lineax.AbstractLinearSolver, optional
        Used instead of the choice described above, with its own tolerances.
    throw : bool
        Whether a failed solve raises; else its answer is NaN.
    factors : Factors, optional
        What `factors_of` returned for this operator, so that it is not factored again.
    rtol : float, optional
        The relative residual at which iterative methods stop, by default `tolerance`.

    Returns
    -------
    callable
        Linear, differentiable also in what `operator` closes over.
    """

    def matvec(v: Vector) -> Vector:
        return tree.to_vector(operator(tree.from_vector(v, like)))

    size, dtype = tree.size(like), tree.result_dtype(like)
    if solver is not None:
        solve_vector = _by_lineax(matvec, size, dtype, structure, solver, throw)
    else:
        if factors is None:
            known = structure if size > TINY else structure._replace(positive_definite=False)
            factors = _factors(matvec, like, known)
        rtol = tolerance(dtype) if rtol is None else rtol
        solve_vector = _chosen(matvec, structure, factors, rtol, throw)
    return lambda b: tree.from_vector(solve_vector(tree.to_vector(b)), like)


def _chosen(
    matvec: Matvec, structure: Structure, factors: Factors | None, rtol: float, throw: bool
) -> Matvec:
    def solver(transpose: bool):
        def solve(mv: Matvec, b: Vector) -> Vector:
            # It may be a residual that is nothing but rounding: the answer to one evaluation of
            # it does not pass the check against another.
            b = computed_once(b)
            if factors is None:
                return _checked(mv, b, _iterative(mv, b, structure, rtol), rtol, throw)
            x = substitute(factors, b, transpose=transpose)
            if factors.matrix is not None:
                matrix = factors.matrix.T if transpose else factors.matrix
                mv = lambda v: matrix @ v  # noqa: E731
            return _checked(mv, b, x, rtol, throw)

        return solve

    return lambda b: jax.lax.custom_linear_solve(
        matvec,
        b,
        solver(False),
        None if structure.hessian else solver(True),
        symmetric=structure.hessian,
    )


def _by_lineax(matvec, size, dtype, structure, solver, throw) -> Matvec:
    tags = [lx.symmetric_tag] if structure.symmetric else []
    if structure.positive_definite:
        tags.append(lx.positive_semidefinite_tag)
    like = jax.ShapeDtypeStruct((size,), dtype)

    def solve(mv: Matvec, b: Vector) -> Vector:
        answer = lx.linear_solve(lx.FunctionLinearOperator(mv, like, tags), b, solver, throw=False)
        return _report(answer.value, answer.result != lx.RESULTS.successful, throw)

    # The report is no linear function of b, so JAX must not look inside to transpose.
    return lambda b: jax.lax.custom_linear_solve(
        matvec,
        b,
        solve,
        None if structure.hessian else solve,
        symmetric=structure.hessian,
    )


def _report(x: Vector, failed: Bool[Array, ""], throw: bool) -> Vector:
    if throw:
        return raise_if(x, failed, [FAILURE])
    return jnp.where(failed, jnp.nan, x)


def _checked(matvec: Matvec, b: Vector, x: Vector, rtol: float, throw: bool) -> Vector:
    """Let `x` through where it solves the system.

    A right-hand side that is not finite is not this solve's failure: NaN passes through. All is
    measured in units of the largest entry of `b`, whose square may be zero or infinite.
    """
    largest = jnp.max(jnp.abs(b))
    unit = jnp.where(largest > 0, largest, 1.0)
    gap, size = tree.norm((matvec(x) - b) / unit), tree.norm(b / unit)
    failed = ~(gap <= 100 * rtol * size) & jnp.isfinite(largest)
    return _report(x, failed, throw)


def tolerance(dtype) -> float:
    """Return the relative residual at which iterative solves in `dtype` stop."""
    return 1e-10 if jnp.finfo(dtype).bits >= 64 else 1e-5


# Which method


def limits(linear_map: LinearMap, structure: Structure, columns: int = 1) -> Limits:
    r"""Return how many products a Krylov method may take before the dense one.

    Forming and factoring take :math:`w` operations; a product takes :math:`p` of them, and a
    step :math:`10 n` more, each of which takes as long as `SLOWER` of the former (for many
    `columns` at once, as there are of them: these are products of matrices, too). In the time of
    the dense method there is room for :math:`m = w / ((p + 10 n) \max(\text{SLOWER}, k))` steps.
    The trial is a `SHARE` of them; the method goes on while it promises to need at most `m`.

    Parameters
    ----------
    linear_map : LinearMap
        The operator.
    structure : Structure
        Cholesky's method takes :math:`n^3 / 3` operations, LU twice as many.
    columns : int
        The number of right-hand sides, `k`.
    """
    size = linear_map.size
    factoring = size**3 // 3 if structure.positive_definite else 2 * size**3 // 3
    step = (linear_map.work + 10 * size) * max(SLOWER, columns)
    most = (linear_map.forming + factoring) / step
    return Limits(int(SHARE * most), int(min(most, 10 * size)))


def factors_of(
    operator: Callable[[PyTree], PyTree], like: PyTree, structure: Structure
) -> Factors | None:
    """Return the operator's factors, for several solves; None where Krylov methods are better.

    Where it should be positive definite they say whether it is.
    """

    def matvec(v: Vector) -> Vector:
        return tree.to_vector(operator(tree.from_vector(v, like)))

    return _factors(matvec, like, structure)


def _factors(matvec: Matvec, like: PyTree, structure: Structure) -> Factors | None:
    """Return the factors where the matrix is small or no Krylov method is worth a trial."""
    size, dtype = tree.size(like), tree.result_dtype(like)
    if size > FALLBACK:
        return None
    linear_map = LinearMap.of(matvec, jax.ShapeDtypeStruct((size,), dtype))
    if size > SMALL and limits(linear_map, structure).trial >= FEWEST:
        return None
    return _factored(linear_map, structure)


def _factored(
    linear_map: LinearMap, structure: Structure, zero: Int[Array, ""] | int = 0
) -> Factors:
    """Factor the map's matrix; `zero` as in `LinearMap.matrix`."""
    constants = jax.lax.stop_gradient(linear_map.constants)
    return factor(
        linear_map.with_constants(constants).matrix(zero),
        positive_definite=structure.positive_definite,
        keep=linear_map.work > 4 * linear_map.size**2,  # twice a product with the matrix
    )


def _iterative(matvec: Matvec, b: Vector, structure: Structure, rtol: float) -> Vector:
    """Solve by a Krylov method, or by the dense one where that stalls."""
    size = b.shape[0]
    if size > FALLBACK:
        return _krylov(matvec, b, structure, Limits(10 * size, 10 * size), rtol)[0]
    linear_map = LinearMap.of(matvec, b)
    return _several(linear_map, structure, rtol)(linear_map.constants, b[None])[0]


def _several(linear_map: LinearMap, structure: Structure, rtol: float) -> Callable:
    """Return ``(constants, rows) -> answers``, which under ``vmap`` sees all right-hand sides."""

    def directly(constants, rows):
        here = linear_map.with_constants(constants)
        within = limits(here, structure, len(rows))
        if within.trial < FEWEST:
            factors = _factored(here, structure)
            return jax.vmap(lambda b: substitute(factors, b))(rows)

        def one(b):
            return _krylov(here, b, structure, within, rtol)

        alone = len(rows) == 1
        found = jax.tree.map(lambda v: v[None], one(rows[0])) if alone else jax.vmap(one)(rows)
        answers, solved = found
        zero = jnp.zeros((), jnp.int32)  # closed over, and so tied to the only round

        def densely():
            factors = _factored(here, structure, zero)
            certain = jax.vmap(lambda b: substitute(factors, b))(rows)
            return jnp.where(solved[:, None], answers, certain)

        return only_if(~jnp.all(solved), densely, answers)

    solve = jax.custom_batching.custom_vmap(directly)

    @solve.def_vmap
    def batched(_, in_batched, constants, rows):
        constants_batched, rows_batched = in_batched
        if any(constants_batched):
            axes = [0 if batched else None for batched in constants_batched]
            return jax.vmap(directly, (axes, 0 if rows_batched else None))(constants, rows), True
        answers = solve(constants, rows.reshape(-1, rows.shape[-1]))
        return answers.reshape(rows.shape), True

    return solve


def _krylov(
    matvec: Matvec, b: Vector, structure: Structure, within: Limits, rtol: float
) -> tuple[Vector, Bool[Array, ""]]:
    largest = jnp.max(jnp.abs(b))  # tiny cotangents would underflow in b @ b
    unit = b / jnp.where(largest > 0, largest, 1.0)
    length = tree.norm(unit)
    unit = unit / jnp.where(length > 0, length, 1.0)
    method = krylov.conjugate_gradients if structure.positive_definite else krylov.gmres
    x, solved = method(matvec, unit, within, rtol)
    return largest * length * x, solved


# One factorisation, many solves


def solve_factored(factors: Factors, b: PyTree, *, transpose: bool = False) -> PyTree:
    """Return the factored operator's (or its transpose's) answer to `b`, unchecked."""
    return tree.from_vector(substitute(factors, tree.to_vector(b), transpose=transpose), b)


def apply_factored(factors: Factors, operator: Callable[[PyTree], PyTree], v: PyTree) -> PyTree:
    """Return the factored operator's product with `v`, from its matrix where that was kept."""
    if factors.matrix is None:
        return operator(v)
    return tree.from_vector(factors.matrix @ tree.to_vector(v), v)
