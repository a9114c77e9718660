r"""A linear solver that chooses its method by size, structure, counted work and convergence.

==============================  ============================================================
unknowns                        method
==============================  ============================================================
up to `lu_max_unknowns`         form the matrix and factor it once: LU with partial pivoting
up to `factored_max_unknowns`   the same, but Cholesky if the operator is tagged as positive
                                definite (QR if Cholesky fails)
up to `dense_max_unknowns`      the same, or conjugate gradients (GMRES unless tagged as
                                positive definite): whichever takes less time by the counted
                                work and the observed convergence, see `DenseOrKrylov.budget`
above                           conjugate gradients or GMRES
==============================  ============================================================
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Int, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.lax import computed_once, only_if
from iterdiff.jaxtools.linear_map import LinearMap
from iterdiff.linalg.factor import Factors, factor, substitute
from iterdiff.linalg.krylov import Budget, Matvec, Vector, conjugate_gradients, gmres
from iterdiff.linalg.residual_check import (
    Answer,
    CheckedSolver,
    Product,
    default_rtol,
    failed_if,
    residual_too_large,
)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Where `DenseOrKrylov` switches between methods.

    Attributes
    ----------
    lu_max_unknowns : int
        Up to this many unknowns LU is used, whatever the structure. At 200 it takes 6 % longer
        than Cholesky (measured), but Cholesky with QR as its fallback compiles twice as long.
    factored_max_unknowns : int
        Up to this many unknowns the matrix is formed and factored: it takes milliseconds.
    dense_max_unknowns : int
        Above this many unknowns the matrix is never formed.
    product_slowdown : float
        Time of one operation in a matrix-vector product, which waits for memory, relative to one
        in a factorisation. Measured: 4 to 6, for 500 to 5000 unknowns on one core.
    trial_max_time_share : float
        The trial of a Krylov method takes at most this share of the time of the dense method.
    trial_min_products : int
        A trial of fewer products predicts nothing, so the dense method is used at once.
    restart_max_vectors : int
        GMRES restarts after this many products.
    """

    lu_max_unknowns: int = 200
    factored_max_unknowns: int = 500
    dense_max_unknowns: int = 3000
    product_slowdown: float = 5.0
    trial_max_time_share: float = 0.1
    trial_min_products: int = 4
    restart_max_vectors: int = 50


class State(eqx.Module):
    """What `DenseOrKrylov` knows of an operator.

    Attributes
    ----------
    product : Product
        The product with the operator, or with its transpose.
    factors : Factors or None
        Of the operator (not of its transpose); None if a Krylov method is used.
    positive_definite : bool
        Whether the operator is tagged as positive definite.
    """

    product: Product
    factors: Factors | None
    positive_definite: bool = eqx.field(static=True)


class DenseOrKrylov(CheckedSolver):
    """Solve a square real system by LU, Cholesky, conjugate gradients or GMRES.

    The method is chosen by the number of unknowns, the operator's tags, the counted work of a
    product and of the factorisation, and the convergence observed during a short trial of the
    Krylov method. Every answer is checked by its residual. A tag `positive_semidefinite_tag` is a
    claim that the operator is positive definite; if it is wrong, the factorisation falls back to
    QR, and an answer that the claim makes wrong fails the check.

    Works with `lineax.linear_solve` and as the `linear_solver` of `Implicit` and `Newton`, whose
    default it is. Right-hand sides batched by ``vmap`` share one factorisation.

    Parameters
    ----------
    rtol : float, optional
        Relative residual at which iterations stop. By default 1e-10 in float64 and 1e-5 in
        float32.
    limits : Limits
        Where it switches between methods.

    Raises
    ------
    ValueError
        If the operator maps between spaces of different structures, or is complex.
    """

    rtol: float | None = eqx.field(static=True, default=None)
    limits: Limits = eqx.field(static=True, default=Limits())

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> State:
        """Return the operator's factors, if the dense method is used at once."""
        del options
        if operator.in_structure() != operator.out_structure():
            raise ValueError(
                "`operator` must map a space to itself, but its input and output structures are "
                f"{operator.in_structure()} and {operator.out_structure()}."
            )
        if not jnp.issubdtype(tree.result_dtype(operator.in_structure()), jnp.floating):
            raise ValueError("`operator` must be real. Split complex numbers into two real ones.")
        operator = lx.linearise(operator)
        definite = lx.is_positive_semidefinite(operator)
        small = operator.in_size() <= self.limits.lu_max_unknowns
        return State(Product(operator), self.factors(operator, definite and not small), definite)

    def compute(self, state: State, vector: PyTree, options: dict[str, Any]) -> Answer:
        """Return the answer to `vector`, and `RESULTS.singular` if its residual is too large."""
        del options
        # The compiler may evaluate `vector` once for the solve and once for the check, with
        # different rounding. If it is itself a residual near zero, no answer passes such a check.
        b = computed_once(tree.to_vector(vector))
        rtol = default_rtol(b.dtype) if self.rtol is None else self.rtol
        matvec = _on_vectors(state.product, vector)
        factors, transposed = state.factors, state.product.transposed
        if factors is None:
            x = self._iterate(matvec, b, state.positive_definite, rtol)
        else:
            x = substitute(factors, b, transpose=transposed)
            if factors.matrix is not None:
                matrix = factors.matrix.T if transposed else factors.matrix
                matvec = lambda v: matrix @ v  # noqa: E731
        failed = residual_too_large(matvec, x, b, rtol)
        return tree.from_vector(x, vector), failed_if(failed, lx.RESULTS.successful), {}

    def transpose(self, state: State, options: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        """Return the state for the transposed operator, which shares the factors."""
        return State(state.product.transpose(), state.factors, state.positive_definite), options

    def conj(self, state: State, options: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        """Return `state`: the operator is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """Return True: a singular operator is a failure."""
        return True

    def budget(self, linear_map: LinearMap, positive_definite: bool, columns: int = 1) -> Budget:
        r"""Return how many products a Krylov method may take before the dense method is faster.

        Forming and factoring the matrix take w operations. A product takes p operations and the
        rest of a step :math:`10 n`; each takes `product_slowdown` times as long as an operation of
        a factorisation, s. With k right-hand sides the products are matrix products, without the
        slowdown, but k times as many. In the time of the dense method there is room for

        .. math:: m = \frac{w}{(p + 10 n) \max(s, k)}

        steps. The trial takes the share `trial_max_time_share` of them, and the method continues
        while it is expected to need at most m.

        Parameters
        ----------
        linear_map : LinearMap
            The operator.
        positive_definite : bool
            Cholesky takes :math:`n^3 / 3` operations, LU twice as many.
        columns : int
            The number of right-hand sides, k.
        """
        size, limits = linear_map.size, self.limits
        factoring = size**3 // 3 if positive_definite else 2 * size**3 // 3
        step = (linear_map.product_flops + 10 * size) * max(limits.product_slowdown, columns)
        most = (linear_map.matrix_flops + factoring) / step
        return Budget(int(limits.trial_max_time_share * most), int(min(most, 10 * size)))

    def factors(
        self, operator: lx.AbstractLinearOperator, positive_definite: bool
    ) -> Factors | None:
        """Return the operator's factors; None if a Krylov method is worth a trial."""
        like = operator.in_structure()
        size, limits = operator.in_size(), self.limits
        if size > limits.dense_max_unknowns:
            return None
        vector = jax.ShapeDtypeStruct((size,), tree.result_dtype(like))
        linear_map = LinearMap.of(_on_vectors(operator.mv, like), vector)
        if size > limits.factored_max_unknowns:
            budget = self.budget(linear_map, positive_definite)
            if budget.trial_products >= limits.trial_min_products:
                return None
        return _factored(linear_map, positive_definite)

    def _iterate(self, matvec: Matvec, b: Vector, positive_definite: bool, rtol: float) -> Vector:
        """Solve by a Krylov method; if that converges too slowly, by the dense method."""
        size = b.shape[0]
        if size > self.limits.dense_max_unknowns:
            budget = Budget(10 * size, 10 * size)
            return self._krylov(matvec, b, positive_definite, budget, rtol)[0]
        linear_map = LinearMap.of(matvec, b)
        solve = self._shared_solve(linear_map, positive_definite, rtol)
        return solve(linear_map.constants, b[None])[0]

    def _shared_solve(
        self, linear_map: LinearMap, positive_definite: bool, rtol: float
    ) -> Callable:
        """Return ``(constants, rows) -> answers``, which sees all rows that ``vmap`` batches."""

        def solve_rows(constants, rows):
            bound = linear_map.with_constants(constants)
            budget = self.budget(bound, positive_definite, len(rows))
            if budget.trial_products < self.limits.trial_min_products:
                factors = _factored(bound, positive_definite)
                return jax.vmap(lambda b: substitute(factors, b))(rows)

            def iterate(b):
                return self._krylov(bound, b, positive_definite, budget, rtol)

            if len(rows) == 1:
                answers, solved = jax.tree.map(lambda v: v[None], iterate(rows[0]))
            else:
                answers, solved = jax.vmap(iterate)(rows)
            zero = jnp.zeros((), jnp.int32)  # closed over: see LinearMap.matrix

            def solve_densely():
                factors = _factored(bound, positive_definite, zero)
                dense = jax.vmap(lambda b: substitute(factors, b))(rows)
                return jnp.where(solved[:, None], answers, dense)

            return only_if(~jnp.all(solved), solve_densely, answers)

        solve = jax.custom_batching.custom_vmap(solve_rows)

        @solve.def_vmap
        def batched(_, in_batched, constants, rows):
            constants_batched, rows_batched = in_batched
            if any(constants_batched):
                axes = [0 if batched else None for batched in constants_batched]
                axes = (axes, 0 if rows_batched else None)
                return jax.vmap(solve_rows, axes)(constants, rows), True
            answers = solve(constants, rows.reshape(-1, rows.shape[-1]))
            return answers.reshape(rows.shape), True

        return solve

    def _krylov(
        self, matvec: Matvec, b: Vector, positive_definite: bool, budget: Budget, rtol: float
    ) -> tuple[Vector, Bool[Array, ""]]:
        """Solve for `b` scaled to norm one: the square of a tiny cotangent would underflow."""
        largest = jnp.max(jnp.abs(b))
        unit = b / jnp.where(largest > 0, largest, 1.0)
        length = tree.norm(unit)
        unit = unit / jnp.where(length > 0, length, 1.0)
        if positive_definite:
            x, solved = conjugate_gradients(matvec, unit, budget, rtol)
        else:
            x, solved = gmres(matvec, unit, budget, rtol, self.limits.restart_max_vectors)
        return largest * length * x, solved


def _on_vectors(function: Callable[[PyTree], PyTree], like: PyTree) -> Matvec:
    """Return a function of pytrees such as `like` as a function of vectors."""
    return lambda v: tree.to_vector(function(tree.from_vector(v, like)))


def _factored(
    linear_map: LinearMap, positive_definite: bool, zero: Int[Array, ""] | int = 0
) -> Factors:
    """Factor the map's matrix; `zero` as in `LinearMap.matrix`.

    The matrix is kept to check answers if a product with it takes less than half the operations
    of a product with the map.
    """
    constants = jax.lax.stop_gradient(linear_map.constants)
    return factor(
        linear_map.with_constants(constants).matrix(zero),
        positive_definite=positive_definite,
        keep=linear_map.product_flops > 2 * (2 * linear_map.size**2),
    )
