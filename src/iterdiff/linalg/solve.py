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
from jaxtyping import Array, Bool, PyTree

from iterdiff.jaxtools import placement, tree
from iterdiff.jaxtools.jaxpr import depends, narrowest_float
from iterdiff.jaxtools.lax import tied
from iterdiff.jaxtools.raise_if import Throw, raise_if
from iterdiff.linalg.any_solver import AnySolver
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov, State
from iterdiff.linalg.factor import Vector, substitute
from iterdiff.linalg.handed import HandedFactors, best_in_span
from iterdiff.linalg.krylov import Operand
from iterdiff.linalg.operators import Operands, Structure, checked_helper, transposed_helper
from iterdiff.linalg.residual_check import (
    FACTORS,
    HANDS_ON,
    UNIQUE,
    CheckedSolver,
    Product,
    default_rtol,
)

HELPED_FAILURE = (
    "The linear solve behind an implicit derivative failed with `preconditioner`: the Jacobian of "
    "the residual is singular, or the preconditioner does not approximate its inverse. Try "
    "`preconditioner=None`, or pass `throw=False` for NaN."
)

NO_FACTORS = (
    "`guess` with factors needs the default `linear_solver`, and unknowns on one device whose "
    "matrix fits into memory. Leave out `linear_solver`, or start with factors=False."
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
    span : array, shape (k, n), optional
        Vectors whose best combination replaces the guess: earlier solutions.
    factors : HandedFactors, optional
        Of a matrix near that of the operator: all solves use them, or factor anew.
    unique : bool
        As in `Inverse`.
    """

    solver: lx.AbstractLinearSolver | None = None
    throw: Throw = False
    preconditioner: Callable[[PyTree], PyTree] | None = None
    guess: PyTree | None = None
    span: Array | None = None
    factors: HandedFactors | None = None
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
    operands : Operands
        How the solver sees the unknowns.
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
        solver, policy = method.solver, _policy(method.solver)
        undecided = policy is not None and policy.matrix_free and jax.device_count() > 1
        whole = policy is not None and (structure.spread or undecided)
        self.operands = Operands(like, flat=not whole)
        self._on_operands = self.operands.operator(operator, structure)
        jaxpr = jax.make_jaxpr(self._on_operands.mv)(self._on_operands.in_structure()).jaxpr
        self.ignores_unknowns = not any(depends(jaxpr, [True] * len(jaxpr.invars)))
        if policy is not None:
            solver = dataclasses.replace(policy, rtol=_attainable_rtol(policy, jaxpr))
        self._may_be_dense = policy is not None and policy.may_be_dense(self._on_operands)
        assert solver is not None
        self._solver = solver if isinstance(solver, CheckedSolver) else AnySolver(solver)
        # Cut here: JAX cannot differentiate a solve of which only such a constant has a tangent.
        self._sizes = jax.tree.map(
            lambda v: jnp.maximum(jnp.abs(jax.lax.stop_gradient(v)), 1.0), self.operands.of(like)
        )
        self.factors = None
        if method.factors is not None and (policy is None or not self._may_be_dense):
            raise ValueError(NO_FACTORS)
        if factor and policy is not None and method.factors is None:
            self.factors = policy.factors(self._on_operands, structure.positive_definite)
        self._prepared = self._prepare()
        self._helper = None
        if method.preconditioner is not None:
            self._helper = checked_helper(method.preconditioner, self.operands, structure)

    def _prepare(self) -> Any:
        """Return the solver's state: the shared factors, or what it makes of the operator."""
        # Derivatives come from `custom_linear_solve`, never through the solver.
        arrays, static = eqx.partition(self._on_operands, eqx.is_array)
        fixed = eqx.combine(jax.lax.stop_gradient(arrays), static)
        if self.factors is None and self.method.factors is None:
            return self._solver.init(fixed, {})
        return State(Product(fixed), self.factors, self.structure.positive_definite, False)

    def __call__(self, b: PyTree, moved: HandedFactors | None = None) -> PyTree:
        """Return ``A^{-1} b``, checked.

        Parameters
        ----------
        b : pytree
            Like `like`.
        moved : HandedFactors, optional
            Tangents of the factors that `method` has. They have no influence; but their cotangents
            are the factors that the transposed solve has used or made.
        """
        prepared, operands = self._prepared, self.operands

        def solve(_: Any, b: Operand) -> Operand:
            x, failed, _ = self._computed(prepared, b, self.unique, self._helper)
            return self._raised(x, failed)

        def transposed_solve(_: Any, w: Operand) -> Operand:
            return self._adjoint(*self._transposed_parts(), w)[0]

        if moved is not None:
            return operands.back(self._handing_on(solve, operands.of(b), moved))
        x = jax.lax.custom_linear_solve(
            lambda v: tied(self._on_operands.mv(tied(v))),
            tied(operands.of(b)),
            solve,
            transposed_solve,
            symmetric=self.structure.hessian,
        )
        return operands.back(tied(x))

    def _handing_on(self, solve: Callable, b: Vector, moved: HandedFactors) -> Vector:
        """Return ``solve(None, b)``, the solution of one system for `b` and `moved`."""

        def transposed_solve(_: Any, both: tuple) -> tuple:
            x, factors = self._adjoint(*self._transposed_parts(), both[0], True)
            return x, factors

        return jax.lax.custom_linear_solve(
            lambda both: (self._on_operands.mv(both[0]), both[1]),
            (b, moved),
            lambda _, both: (solve(_, both[0]), both[1]),
            transposed_solve,
        )[0]

    def constant(self, w: PyTree) -> PyTree:
        """Return ``A^{-1} w`` without a derivative, for a cotangent w; checked.

        Nothing is transposed but the preconditioner, which is one of the transpose: `operator` may
        be any function that is linear in value.
        """
        helper = None if self._helper is None else transposed_helper(self._helper)
        x = self._adjoint(self._prepared, helper, self.operands.of(w))[0]
        return self.operands.back(x)

    def _transposed_parts(self) -> tuple[Any, lx.AbstractLinearOperator | None]:
        """Return the solver's state and the preconditioner for the transpose.

        Both may be those of the operator itself.
        """
        if self.structure.hessian:
            return self._prepared, self._helper
        helper = None if self._helper is None else transposed_helper(self._helper)
        return self._solver.transpose(self._prepared, {})[0], helper

    def _computed(
        self,
        state: Any,
        b: Operand,
        unique: bool,
        helper: lx.AbstractLinearOperator | None,
        guess: Operand | None = None,
        hands_on: bool = False,
    ) -> tuple[Operand, Bool[Array, ""], HandedFactors | None]:
        """Return the solver's answer to `b`, whether it failed, and factors for the next solve.

        A zero cotangent has the answer zero, whatever the operator: a member of a batch may have
        failed, and the loss ignores it. A zero right-hand side of a tangent does not determine it
        if the operator is singular. A tiny `b` is scaled, because its smaller entries would
        underflow in the solve, and the answer would fail the check.
        """
        if self._may_be_dense:
            b = placement.watched(b, MATRIX_OF_SPREAD)
        largest = tree.largest(b)
        zero, unit = largest == 0, _tiny_unit(largest.dtype)
        enlarged = largest < unit

        def in_units(v: Operand) -> Operand:
            return jax.tree.map(lambda leaf: jnp.where(enlarged, leaf / unit, leaf), v)

        options: dict[str, Any] = {UNIQUE: unique}
        if helper is not None:
            options["preconditioner"] = helper
        if guess is not None:
            options["y0"] = in_units(guess)
        if self.method.factors is not None:
            options |= {FACTORS: self.method.factors, HANDS_ON: hands_on}
        x, result, stats = self._solver.compute(state, in_units(b), options)
        x = jax.tree.map(lambda leaf: jnp.where(enlarged, leaf * unit, leaf), x)
        failed, factors = result != lx.RESULTS.successful, stats.get(FACTORS)
        if unique:
            return x, failed, factors
        return _filled(x, 0.0, zero), failed & ~zero, factors

    def _adjoint(
        self,
        state: Any,
        helper: lx.AbstractLinearOperator | None,
        w: Operand,
        hands_on: bool = False,
    ) -> tuple[Operand, HandedFactors | None]:
        """Return the answer to a cotangent, of which the residual is what matters, and factors."""
        guess = self._guess(state, w)
        x, failed, factors = self._computed(state, w, False, helper, guess, hands_on)
        negligible = self._negligible(w)
        x = self._raised(_filled(x, 0.0, failed & negligible), failed & ~negligible)
        return x, factors

    def _guess(self, state: Any, w: Operand) -> Operand | None:
        """Return where an iterative solve for a cotangent starts; None if there is no guess."""
        guess, span = self.method.guess, self.method.span
        direct = isinstance(state, State) and state.factors is not None
        if guess is None or direct:
            return None
        if span is None:
            return self.operands.of(guess)
        while isinstance(state, tuple):  # that of a solver which wraps another one
            state = state[0]
        product = state if isinstance(state, Product) else state.product
        vectors = Operands(w, flat=True)  # of the span, whose coordinates are found by QR

        def on_vectors(v: Vector) -> Vector:
            return vectors.of(product(vectors.back(v)))

        return vectors.back(best_in_span(on_vectors, vectors.of(w), span))

    def _negligible(self, w: Operand) -> Bool[Array, ""]:
        """Whether a cotangent is zero to rounding: see `NEGLIGIBLE_MAX_CHANGE`."""
        limit = NEGLIGIBLE_MAX_CHANGE * float(jnp.finfo(tree.result_dtype(w)).eps)
        changes = tree.mul(w, self._sizes)
        return tree.dot(changes, changes) <= limit**2

    def _raised(self, x: Operand, failed: Bool[Array, ""] | bool) -> Operand:
        """Return `x`; where `failed` holds, raise or return NaN."""
        if self.method.throw:
            advice = self._solver.advice if self._helper is None else HELPED_FAILURE
            return raise_if(x, failed, [advice], throw=self.method.throw)
        return _filled(x, jnp.nan, failed)

    def refused(self, x: PyTree, v: PyTree) -> PyTree:
        """Raise, or return NaN like `x` that depends linearly on `v`, for JAX to transpose.

        For an operator that ignores its argument: JAX would not call the transposed solve if the
        right-hand side does not depend on `v` either.
        """
        total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(v))
        nothing = jnp.asarray(jnp.nan * total)
        return jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), self._raised(x, True))

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


def _filled(x: Operand, value: float, where: Bool[Array, ""] | bool) -> Operand:
    """Return `x`, filled with a value if `where` holds."""
    return jax.tree.map(lambda leaf: jnp.where(where, value, leaf), x)


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
