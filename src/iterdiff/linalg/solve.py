r"""The linear solves of Newton steps, implicit derivatives and error estimates.

`inverse` turns a matrix-free operator into :math:`b \mapsto A^{-1} b`, by `DenseOrKrylov` or by any
linear solver of lineax. Each answer is checked by its residual (see
`iterdiff.linalg.residual_check`): a failed solve raises or returns NaN, never a wrong number. The
result is differentiable to any order, transposable, and batched by ``vmap``, with one factorisation
for all right-hand sides. No tolerance is inherited from the solver of the outer problem.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.raise_if import raise_if
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov, State
from iterdiff.linalg.factor import Factors, substitute
from iterdiff.linalg.krylov import Vector
from iterdiff.linalg.residual_check import CheckedSolver, Product, ResidualChecked

FAILURE = (
    "The linear solve behind an implicit derivative (or a Newton step) failed: its residual is too "
    "large or not finite, so the Jacobian of the residual is singular or too ill-conditioned for "
    "the method. Pass another `linear_solver` (for example lineax.AutoLinearSolver("
    "well_posed=False)), use float64 or a problem with a unique solution, or pass `throw=False` to "
    "get NaN instead."
)


class Structure(NamedTuple):
    """What is known of a linear operator in advance.

    Attributes
    ----------
    symmetric, positive_definite : bool
        As in `Problem`: claims, which the check of every answer verifies.
    hessian : bool
        Whether the operator is a Hessian, so that it is its own transpose. This is a fact, not a
        claim: transposed solves are then not traced separately.
    """

    symmetric: bool
    positive_definite: bool
    hessian: bool = False

    @property
    def tags(self) -> frozenset[object]:
        """The structure as tags of a lineax operator."""
        claims = {
            lx.symmetric_tag: self.symmetric,
            lx.positive_semidefinite_tag: self.positive_definite,
        }
        return frozenset(tag for tag, claimed in claims.items() if claimed)


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
        Solves the systems; by default `DenseOrKrylov`. Each answer is checked by its residual, to
        the solver's own `rtol` and `atol` if these are looser than the default.
    throw : bool
        Whether a failed solve raises `SolveError`; else its answer is NaN.
    factors : Factors, optional
        The factors that `factors_of` returned for this operator and solver.
    rtol : float, optional
        Replaces the `rtol` of a `DenseOrKrylov`.

    Returns
    -------
    callable
        Linear in ``b``, and differentiable in the values that `operator` closes over.
    """
    policy = _policy(solver)
    if policy is not None:
        solver = policy if rtol is None else dataclasses.replace(policy, rtol=rtol)
    assert solver is not None
    checked = solver if isinstance(solver, CheckedSolver) else ResidualChecked(solver)
    of_vectors = _of_vectors(operator, like, structure)
    # Derivatives come from `custom_linear_solve`, never through the solver.
    arrays, static = eqx.partition(of_vectors, eqx.is_array)
    fixed = eqx.combine(jax.lax.stop_gradient(arrays), static)
    if factors is None:
        state = checked.init(fixed, {})
    else:
        state = State(Product(fixed), factors, structure.positive_definite)

    def solve(state: PyTree, b: Vector) -> Vector:
        x, result, _ = checked.compute(state, b, {})
        failed = result != lx.RESULTS.successful
        if throw:
            return raise_if(x, failed, [FAILURE])
        return jnp.where(failed, jnp.nan, x)

    # A least-squares solver is checked differently for transposed systems.
    hessian = structure.hessian and checked.assume_full_rank()

    def solve_vector(b: Vector) -> Vector:
        return jax.lax.custom_linear_solve(
            of_vectors.mv,
            b,
            lambda _, b: solve(state, b),
            None if hessian else lambda _, b: solve(checked.transpose(state, {})[0], b),
            symmetric=hessian,
        )

    return lambda b: tree.from_vector(solve_vector(tree.to_vector(b)), like)


def _policy(solver: lx.AbstractLinearSolver | None) -> DenseOrKrylov | None:
    """Return the `DenseOrKrylov` that is used, or None if it is another solver."""
    if solver is None:
        return DenseOrKrylov()
    return solver if isinstance(solver, DenseOrKrylov) else None


def _of_vectors(
    operator: Callable[[PyTree], PyTree], like: PyTree, structure: Structure
) -> lx.FunctionLinearOperator:
    """Return an operator on pytrees as an operator on vectors."""

    def matvec(v: Vector) -> Vector:
        return tree.to_vector(operator(tree.from_vector(v, like)))

    vector = jax.ShapeDtypeStruct((tree.size(like),), tree.result_dtype(like))
    return lx.FunctionLinearOperator(matvec, vector, structure.tags)


# One factorisation, several solves


def factors_of(
    operator: Callable[[PyTree], PyTree],
    like: PyTree,
    structure: Structure,
    solver: lx.AbstractLinearSolver | None = None,
) -> Factors | None:
    """Return the operator's factors, for several solves; None if `solver` does not factor it.

    If the operator should be positive definite, they tell whether it is (at any size).
    """
    policy = _policy(solver)
    if policy is None:
        return None
    operator = _of_vectors(operator, like, structure)
    return policy.factors(operator, structure.positive_definite)


def solve_factored(factors: Factors, b: PyTree, *, transpose: bool = False) -> PyTree:
    """Return the answer of the factored operator, or of its transpose, to `b`, unchecked."""
    return tree.from_vector(substitute(factors, tree.to_vector(b), transpose=transpose), b)


def apply_factored(factors: Factors, operator: Callable[[PyTree], PyTree], v: PyTree) -> PyTree:
    """Return the product of the factored operator with `v`, by its matrix if that was kept."""
    if factors.matrix is None:
        return operator(v)
    return tree.from_vector(factors.matrix @ tree.to_vector(v), v)
