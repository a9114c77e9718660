r"""The linear solves of Newton steps, implicit derivatives and error estimates.

`Inverse` turns a matrix-free operator into :math:`b \mapsto A^{-1} b`, by `DenseOrKrylov` or by any
linear solver of lineax. Each answer is checked (see `iterdiff.linalg.residual_check`): a failed
solve raises or returns NaN, never a wrong number. The
result is differentiable to any order, transposable, and batched by ``vmap``, with one factorisation
for all right-hand sides. No tolerance is inherited from the solver of the outer problem.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.tree_util import Partial
from jaxtyping import Array, Bool, PyTree

from iterdiff.jaxtools import manual_axes, placement, tree
from iterdiff.jaxtools.closures import hoist
from iterdiff.jaxtools.jaxpr import depends, narrowest_float
from iterdiff.jaxtools.raise_if import Throw, raise_if
from iterdiff.linalg.any_solver import AnySolver
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov, State
from iterdiff.linalg.factor import substitute
from iterdiff.linalg.krylov import Vector
from iterdiff.linalg.residual_check import SPREAD, UNIQUE, CheckedSolver, Product, default_rtol

HELPED_FAILURE = (
    "The linear solve behind an implicit derivative failed with `preconditioner`: the Jacobian of "
    "the residual is singular, or the preconditioner does not approximate its inverse. Try "
    "`preconditioner=None`, or pass `throw=False` for NaN."
)

MATRIX_OF_SPREAD = (
    "The unknowns of an implicit derivative are spread over several devices, and the program may "
    "form the whole matrix of its linear solve. To avoid that, use a mesh with explicit axes, or "
    "pass linear_solver=iterdiff.DenseOrKrylov(matrix_free=True)."
)

NEGLIGIBLE_MAX_CHANGE = 100
"""A cotangent w of a singular system counts as zero if the vector ``w_i max(|x_i|, 1)`` is shorter
than this many times eps. It is then the rounding error of a loss of order one that does not depend
on x to first order, as the value of an optimum. For a loss of another order there is no such limit
that its cotangent alone could tell."""


class Structure(NamedTuple):
    """What is known of a linear operator in advance.

    Attributes
    ----------
    symmetric, positive_definite : bool
        As in `Problem`: claims, which the check of every answer verifies.
    hessian : bool
        Whether the operator is a Hessian, so that it is its own transpose. This is a fact, not a
        claim: transposed solves are then not traced separately.
    spread : bool
        Whether the vectors are known to be spread over several devices: no matrix is formed.
    """

    symmetric: bool
    positive_definite: bool
    hessian: bool = False
    spread: bool = False

    def without_claims(self) -> "Structure":
        """Return what is known of a general operator on the same vectors."""
        return Structure(False, False, spread=self.spread)

    @property
    def tags(self) -> frozenset[object]:
        """The structure as tags of a lineax operator."""
        claims = {
            lx.symmetric_tag: self.symmetric,
            lx.positive_semidefinite_tag: self.positive_definite,
            SPREAD: self.spread,
        }
        return frozenset(tag for tag, claimed in claims.items() if claimed)


class Method(NamedTuple):
    """How systems with an operator and with its transpose are solved.

    Attributes
    ----------
    solver : lineax.AbstractLinearSolver, optional
        By default `DenseOrKrylov`. Each answer is checked by its residual, to the solver's own
        `rtol` and `atol` if these are looser than the default.
    throw : bool
        Whether a failed solve raises `SolveError`; else its answer is NaN.
    preconditioner : callable, optional
        ``v -> M v`` on pytrees like the unknown, about the inverse of the operator. Iterative
        solvers use it; JAX transposes it.
    guess : pytree, optional
        Where iterative solves with the transpose start.
    unique : bool
        As in `Inverse`.
    """

    solver: lx.AbstractLinearSolver | None = None
    throw: Throw = False
    preconditioner: Callable[[PyTree], PyTree] | None = None
    guess: PyTree | None = None
    unique: bool = True


DEFAULT_METHOD = Method()


class Inverse:
    r"""The inverse of a matrix-free operator, :math:`b \mapsto A^{-1} b`.

    Calling it solves one system. It is linear in ``b``, and differentiable in the values that
    `operator` closes over.

    Parameters
    ----------
    operator : callable
        ``operator(v)`` returns ``A v``, linear in ``v``; both in the structure of `like`.
    like : pytree of real floating arrays
        Gives structure, shapes and dtypes of the operands.
    structure : Structure
        What is known of ``A``.
    method : Method
        How the systems are solved.
    factor : bool
        Whether to factor the operator once, for several solves and for `factored`, if a
        `DenseOrKrylov` would factor it.
    unique : bool, optional
        Whether a solve with ``A`` fails if ``A`` is singular, although the system has solutions: a
        tangent has to be unique, and a Newton step does not. Solves with the transpose do not
        fail: all their solutions give the same gradient (see `iterdiff.linalg.residual_check`). By
        default that of `method`.

    Attributes
    ----------
    factors : Factors or None
        With ``factor=True``, the factors that all solves share. If the operator should be positive
        definite, they tell whether it is (at any size).
    ignores_unknowns : bool
        Whether ``A v`` does not depend on ``v``, by its program.
    """

    def __init__(
        self,
        operator: Callable[[PyTree], PyTree],
        like: PyTree,
        structure: Structure,
        method: Method = DEFAULT_METHOD,
        *,
        factor: bool = False,
        unique: bool | None = None,
    ):
        structure = structure._replace(spread=structure.spread or placement.is_spread(like))
        self.operator, self.like, self.structure = operator, like, structure
        self.method, self.unique = method, method.unique if unique is None else unique
        self._of_vectors = _of_vectors(operator, like, structure)
        jaxpr = jax.make_jaxpr(self._of_vectors.mv)(self._of_vectors.in_structure()).jaxpr
        self.ignores_unknowns = not any(depends(jaxpr, [True]))
        solver, policy = method.solver, _policy(method.solver)
        if policy is not None:
            solver = dataclasses.replace(policy, rtol=_attainable_rtol(policy, jaxpr))
        self._may_be_dense = policy is not None and policy.may_be_dense(self._of_vectors)
        assert solver is not None
        self._solver = solver if isinstance(solver, CheckedSolver) else AnySolver(solver)
        # Cut here: JAX cannot differentiate a solve of which only such a constant has a tangent.
        self._sizes = jnp.maximum(jnp.abs(jax.lax.stop_gradient(tree.to_vector(like))), 1.0)
        self.factors = None
        if factor and policy is not None:
            self.factors = policy.factors(self._of_vectors, structure.positive_definite)
        self._prepared = self._prepare()
        self._helper = None
        if method.preconditioner is not None:
            self._helper = _checked_helper(method.preconditioner, like, structure)

    def _prepare(self) -> Any:
        """Return the solver's state: the shared factors, or what it makes of the operator."""
        # Derivatives come from `custom_linear_solve`, never through the solver.
        arrays, static = eqx.partition(self._of_vectors, eqx.is_array)
        fixed = eqx.combine(jax.lax.stop_gradient(arrays), static)
        if self.factors is None:
            return self._solver.init(fixed, {})
        return State(Product(fixed), self.factors, self.structure.positive_definite, False)

    def __call__(self, b: PyTree) -> PyTree:
        """Return ``A^{-1} b``, checked."""
        prepared = self._prepared

        def solve(_: Any, b: Vector) -> Vector:
            x, failed = self._computed(prepared, b, self.unique, self._helper)
            return self._raised(x, failed)

        def transposed_solve(_: Any, w: Vector) -> Vector:
            return self._adjoint(*self._transposed_parts(), w)

        x = jax.lax.custom_linear_solve(
            self._of_vectors.mv,
            tree.to_vector(b),
            solve,
            transposed_solve,
            symmetric=self.structure.hessian,
        )
        return tree.from_vector(x, self.like)

    def constant(self, w: PyTree) -> PyTree:
        """Return ``A^{-1} w`` without a derivative, for a cotangent w; checked.

        Nothing is transposed but the preconditioner, which is one of the transpose: `operator` may
        be any function that is linear in value.
        """
        helper = None if self._helper is None else _transposed_helper(self._helper)
        x = self._adjoint(self._prepared, helper, tree.to_vector(w))
        return tree.from_vector(x, self.like)

    def _transposed_parts(self) -> tuple[Any, lx.AbstractLinearOperator | None]:
        """Return the solver's state and the preconditioner for the transpose.

        Both may be those of the operator itself.
        """
        if self.structure.hessian:
            return self._prepared, self._helper
        helper = None if self._helper is None else _transposed_helper(self._helper)
        return self._solver.transpose(self._prepared, {})[0], helper

    def _computed(
        self,
        state: Any,
        b: Vector,
        unique: bool,
        helper: lx.AbstractLinearOperator | None,
        guess: Vector | None = None,
    ) -> tuple[Vector, Bool[Array, ""]]:
        """Return the solver's answer to `b`, and whether it failed.

        A zero cotangent has the answer zero, whatever the operator: a member of a batch may have
        failed, and the loss ignores it. A zero right-hand side of a tangent does not determine it
        if the operator is singular. A tiny `b` is scaled, because its smaller entries would
        underflow in the solve, and the answer would fail the check.
        """
        if self._may_be_dense:
            b = placement.watched(b, MATRIX_OF_SPREAD)
        largest = jnp.max(jnp.abs(b), initial=0.0)
        zero, unit = largest == 0, _tiny_unit(b.dtype)
        enlarged = largest < unit
        b = jnp.where(enlarged, b / unit, b)
        options: dict[str, Any] = {UNIQUE: unique}
        if helper is not None:
            options["preconditioner"] = helper
        if guess is not None:
            options["y0"] = jnp.where(enlarged, guess / unit, guess)
        x, result, _ = self._solver.compute(state, b, options)
        x, failed = jnp.where(enlarged, x * unit, x), result != lx.RESULTS.successful
        if unique:
            return x, failed
        return jnp.where(zero, 0.0, x), failed & ~zero

    def _adjoint(self, state: Any, helper: lx.AbstractLinearOperator | None, w: Vector) -> Vector:
        """Return the answer to a cotangent, of which the residual is what matters."""
        guess = self.method.guess
        guess = None if guess is None else tree.to_vector(guess)
        x, failed = self._computed(state, w, False, helper, guess)
        negligible = self._negligible(w)
        return self._raised(jnp.where(failed & negligible, 0.0, x), failed & ~negligible)

    def _negligible(self, w: Vector) -> Bool[Array, ""]:
        """Whether a cotangent is zero to rounding: see `NEGLIGIBLE_MAX_CHANGE`."""
        limit = NEGLIGIBLE_MAX_CHANGE * float(jnp.finfo(w.dtype).eps)
        return jnp.sum((w * self._sizes) ** 2) <= limit**2

    def _raised(self, x: Vector, failed: Bool[Array, ""] | bool) -> Vector:
        """Return `x`; where `failed` holds, raise or return NaN."""
        if self.method.throw:
            advice = self._solver.advice if self._helper is None else HELPED_FAILURE
            return raise_if(x, failed, [advice], throw=self.method.throw)
        return jnp.where(failed, jnp.nan, x)

    def refused(self, x: PyTree, v: PyTree) -> PyTree:
        """Raise, or return NaN like `x` that depends linearly on `v`, for JAX to transpose.

        For an operator that ignores its argument: JAX would not call the transposed solve if the
        right-hand side does not depend on `v` either.
        """
        failed = self._raised(tree.to_vector(x), True)
        total = sum(jnp.sum(leaf).astype(failed.dtype) for leaf in jax.tree.leaves(v))
        return tree.from_vector(failed + jnp.nan * total, x)

    def transposed(self, w: PyTree) -> PyTree:
        """Return ``A^{-T} w``, checked by its residual."""
        return jax.linear_transpose(self, self.like)(w)[0]

    def factored(self, b: PyTree, *, transpose: bool = False) -> PyTree:
        """Return ``A^{-1} b`` or ``A^{-T} b`` by the shared factors, unchecked."""
        assert self.factors is not None
        x = substitute(self.factors, tree.to_vector(b), transpose=transpose)
        return tree.from_vector(x, b)

    def product(self, v: PyTree) -> PyTree:
        """Return ``A v``, by the matrix if the factors kept it."""
        if self.factors is None or self.factors.matrix is None:
            return self.operator(v)
        scales = self.factors.scales
        image = self.factors.matrix @ (tree.to_vector(v) / scales.columns)
        return tree.from_vector(image / scales.rows, v)


def _tiny_unit(dtype) -> float:
    """Return the power of two in the middle of the exponents below one."""
    return 2.0 ** (int(jnp.finfo(dtype).minexp) // 2)


def _policy(solver: lx.AbstractLinearSolver | None) -> DenseOrKrylov | None:
    """Return the `DenseOrKrylov` that is used, or None if it is another solver."""
    if solver is None:
        return DenseOrKrylov()
    return solver if isinstance(solver, DenseOrKrylov) else None


def _attainable_rtol(policy: DenseOrKrylov, jaxpr: Any) -> float | None:
    """Return the policy's `rtol`; if it has none, the one of the operator's narrowest dtype.

    A float64 operator may compute a part in float32. Its products are then no more accurate, and
    no answer has a smaller residual.
    """
    if policy.rtol is not None:
        return policy.rtol
    narrowest = narrowest_float(jaxpr)
    if narrowest is None or jnp.finfo(narrowest).eps <= jnp.finfo(jaxpr.invars[-1].aval.dtype).eps:
        return None
    return default_rtol(narrowest)


def _checked_helper(
    preconditioner: Callable[[PyTree], PyTree], like: PyTree, structure: Structure
) -> lx.FunctionLinearOperator:
    """Return a preconditioner as an operator on vectors.

    Raises
    ------
    ValueError
        If its result is not like the unknown.
    """
    expected, found = jax.eval_shape(lambda v: v, like), jax.eval_shape(preconditioner, like)
    if jax.tree.structure(expected) != jax.tree.structure(found) or any(
        a.shape != b.shape for a, b in zip(*map(jax.tree.leaves, (expected, found)), strict=True)
    ):
        raise ValueError(
            f"`preconditioner` must return a function from vectors like x to vectors like x, but "
            f"that one maps {expected} to {found}."
        )
    # A claim of symmetry would keep lineax from transposing it. Conjugate gradients ask for one.
    definite = Structure(False, structure.positive_definite)
    return _of_vectors(preconditioner, like, definite)


def _transposed_helper(helper: lx.FunctionLinearOperator) -> lx.FunctionLinearOperator:
    """Return the transpose of a preconditioner.

    Raises
    ------
    TypeError
        If JAX cannot transpose it.
    """
    vector = helper.in_structure()

    def transposed(w: Vector) -> Vector:
        return manual_axes.linear_transpose(helper.mv, w)

    try:
        jax.eval_shape(transposed, vector)
    except Exception as error:
        raise TypeError(
            "`preconditioner` returned a function that JAX cannot transpose, as the adjoint solve "
            "needs: make it linear in its argument, out of jax.numpy operations."
        ) from error
    return _operator(transposed, vector, helper.tags)


def _of_vectors(
    operator: Callable[[PyTree], PyTree], like: PyTree, structure: Structure
) -> lx.FunctionLinearOperator:
    """Return an operator on pytrees as an operator on vectors."""

    def matvec(v: Vector) -> Vector:
        return tree.to_vector(operator(tree.from_vector(manual_axes.aligned(v, like), like)))

    vector = jax.eval_shape(tree.to_vector, like)
    return _operator(matvec, vector, structure.tags)


def _operator(matvec: Callable, vector: Any, tags: frozenset) -> lx.FunctionLinearOperator:
    """Return a function of vectors as an operator, with the values it closes over as its leaves.

    Not if vectors vary over mesh axes, or are typed as spread: lineax drops that from the leaves.
    """
    if not manual_axes.inside() and not placement.is_spread(vector):
        matvec = Partial(*hoist(matvec, vector))
    return lx.FunctionLinearOperator(matvec, vector, tags, closure_convert=False)
