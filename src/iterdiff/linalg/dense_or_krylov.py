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
above                           conjugate gradients or GMRES; if these stagnate, once more on
                                the equilibrated system; then a tridiagonal solve if the
                                matrix is tridiagonal, and the dense method while the matrix
                                fits into `dense_max_bytes`
==============================  ============================================================

The options ``"preconditioner"`` (a lineax operator that approximates the inverse) and ``"y0"``
(where an iteration starts) of `lineax.linear_solve` are for the Krylov methods; the direct ones
need neither.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Int, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.lax import computed_once, only_if
from iterdiff.jaxtools.linear_map import LinearMap
from iterdiff.linalg.factor import Factors, Vector, factor
from iterdiff.linalg.handed import HandedFactors
from iterdiff.linalg.iterate import (
    Rows,
    System,
    for_all_rows,
    is_regular,
    iterate,
    or_by_bands,
    with_handed,
)
from iterdiff.linalg.krylov import Budget, Matvec, Operand
from iterdiff.linalg.operators import Operands
from iterdiff.linalg.residual_check import (
    FACTORS,
    HANDS_ON,
    SPREAD,
    UNIQUE,
    Answer,
    CheckedSolver,
    Product,
    default_rtol,
    result_of,
    solve_by_factors,
)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Where `DenseOrKrylov` switches between methods.

    Attributes
    ----------
    lu_max_unknowns : int
        Up to this many unknowns LU is used, whatever the structure. At 200 it takes 6 % longer
        than Cholesky (measured), but Cholesky with QR as its fallback compiles twice as long.
        Where it is asked whether the matrix is positive definite, Cholesky answers beside LU.
    factored_max_unknowns : int
        Up to this many unknowns the matrix is formed and factored: it takes milliseconds.
    dense_max_unknowns : int
        Above this many unknowns the matrix is formed only if no other method solves the system.
    dense_max_bytes : int
        A larger matrix is never formed. Forming and factoring it takes about four times as much
        memory; in float64 the limit admits 8192 unknowns.
    product_slowdown : float
        Time of one operation in a matrix-vector product, which waits for memory, relative to one
        in a factorisation. Measured: 4 to 6, for 500 to 5000 unknowns on one core.
    trial_max_time_share : float
        The trial of a Krylov method takes at most this share of the time of the dense method.
    trial_min_products : int
        A trial of fewer products predicts nothing, so the dense method is used at once.
    trial_max_products : int
        The longest trial of GMRES where the dense method is no alternative; a tenth of the
        products that it may take in all.
    restart_max_vectors : int
        GMRES restarts after this many products.
    """

    lu_max_unknowns: int = 200
    factored_max_unknowns: int = 500
    dense_max_unknowns: int = 3000
    dense_max_bytes: int = 2**29
    product_slowdown: float = 5.0
    trial_max_time_share: float = 0.1
    trial_min_products: int = 4
    trial_max_products: int = 1000
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
    spread : bool
        Whether to form no matrix, and to bring no vector together on one device.
    """

    product: Product
    factors: Factors | None
    positive_definite: bool = eqx.field(static=True)
    spread: bool = eqx.field(static=True)


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
    matrix_free : bool
        Whether to form no matrix, whatever the size: a system that the Krylov methods do not solve
        is a failure. It is so in any case for arrays that JAX knows to be spread over several
        devices, see :doc:`devices`; iterations leave these arrays where they are.

    Raises
    ------
    ValueError
        If the operator maps between spaces of different structures, or is complex.
    """

    rtol: float | None = eqx.field(static=True, default=None)
    limits: Limits = eqx.field(static=True, default=Limits())
    matrix_free: bool = eqx.field(static=True, default=False)

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
        factors = self.factors(operator, definite and not small)
        return State(Product(operator), factors, definite, self._spread(operator))

    def compute(self, state: State, vector: PyTree, options: dict[str, Any]) -> Answer:
        """Return the answer to `vector`, and `RESULTS.singular` if it is not accepted."""
        unique, definite = options.get(UNIQUE, True), state.positive_definite
        operands = Operands(vector, flat=not state.spread)
        b = operands.of(vector)
        rtol = default_rtol(tree.result_dtype(b)) if self.rtol is None else self.rtol
        matvec = _on(operands, state.product)
        system = System(matvec, definite, unique, rtol, state.spread)
        stats: dict[str, Any] = {}
        if FACTORS in options:
            x, accepted, stats[FACTORS] = self._by_handed(state, system, b, options)
        elif state.factors is None:
            helper, guess = options.get("preconditioner"), options.get("y0")
            if helper is not None:
                system = system.helped_by(_on(operands, helper.mv), b)
            guess = None if guess is None else operands.of(guess)
            x, accepted = self._iterate(system, b, guess)
        else:
            # The compiler may evaluate `b` once for the solve and once for the check, with
            # different rounding. If it is a residual near zero, no answer passes such a check.
            # Iterations are loops, into which it enters once.
            b, transpose = computed_once(b), state.product.transposed
            x, accepted = solve_by_factors(
                state.factors, system.matvec, b, transpose=transpose, unique=unique, rtol=rtol
            )
        result = result_of(accepted, b, lx.RESULTS.successful)
        return operands.back(x), result, stats

    def transpose(self, state: State, options: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        """Return the state for the transposed operator, which shares the factors."""
        product, definite = state.product.transpose(), state.positive_definite
        return State(product, state.factors, definite, state.spread), options

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
        if size > limits.dense_max_unknowns or not self.may_be_dense(operator):
            return None
        vector = jax.ShapeDtypeStruct((size,), tree.result_dtype(like))
        linear_map = LinearMap.of(_on(Operands(like, flat=True), operator.mv), vector)
        if size > limits.factored_max_unknowns:
            budget = self.budget(linear_map, positive_definite)
            if budget.trial_products >= limits.trial_min_products:
                return None
        return factored(linear_map, positive_definite, by_lu=size <= limits.lu_max_unknowns)

    def _iterate(
        self, system: System, b: Operand, guess: Operand | None
    ) -> tuple[Operand, Bool[Array, ""]]:
        """Solve by a Krylov method; if that is too slow or not accepted, by a direct method."""
        rows, guesses = jax.tree.map(lambda v: v[None], (b, guess))
        if not system.spread and self._fits(b):
            linear_map = LinearMap.of(system.matvec, b)
            solve = self._shared_solve(linear_map, system)
            answers, accepted = solve((linear_map.constants, system.helper), rows, guesses)
        else:
            budget = self._patience(tree.size(b), system.positive_definite)
            answers, accepted = self._by_iteration(system, rows, guesses, budget)
        return tree.row(answers, 0), accepted[0]

    def _by_iteration(
        self, system: System, rows: Rows, guesses: Rows | None, budget: Budget
    ) -> tuple[Rows, Bool[Array, " k"]]:
        """Solve by a Krylov method, or by a tridiagonal solve; both without the matrix."""
        restart = self.limits.restart_max_vectors
        answers, solved = iterate(system, rows, guesses, budget, restart)
        if system.unique:
            solved &= is_regular(system, tree.row(rows, 0), budget, restart)
        if system.spread:
            return answers, solved
        return or_by_bands(system, rows, answers, solved)

    def _by_handed(
        self, state: State, system: System, b: Vector, options: dict[str, Any]
    ) -> tuple[Vector, Bool[Array, ""], HandedFactors | None]:
        """Solve by the factors of a nearby matrix; if that fails, by new ones, and return these.

        The factors are always those of the operator, which may have been transposed since.
        """
        handed, transpose = options[FACTORS], state.product.transposed
        guess = options.get("y0")
        x, solved = with_handed(system, b, guess, handed, transpose=transpose)
        linear_map = LinearMap.of(state.product.operator.mv, b)
        zero = jnp.zeros((), jnp.int32)  # closed over: see LinearMap.matrix

        def anew() -> tuple[Vector, Bool[Array, ""], HandedFactors | None]:
            factors = factored(linear_map, False, zero)
            found, accepted = solve_by_factors(
                factors,
                system.matvec,
                b,
                transpose=transpose,
                unique=system.unique,
                rtol=system.rtol,
            )
            return found, accepted, HandedFactors.of(factors) if options[HANDS_ON] else None

        return only_if(~solved, anew, (x, solved, handed if options[HANDS_ON] else None))

    def may_be_dense(self, operator: lx.AbstractLinearOperator) -> bool:
        """Return whether the matrix may be formed: it fits, and its vectors are on one device."""
        dtype = tree.result_dtype(operator.in_structure())
        vector = jax.ShapeDtypeStruct((operator.in_size(),), dtype)
        return self._fits(vector) and not self._spread(operator)

    def _spread(self, operator: lx.AbstractLinearOperator) -> bool:
        return self.matrix_free or SPREAD in getattr(operator, "tags", ())

    def _fits(self, vector: Any) -> bool:
        """Whether the matrix fits into `dense_max_bytes`."""
        return vector.size**2 * vector.dtype.itemsize <= self.limits.dense_max_bytes

    def _patience(self, size: int, positive_definite: bool) -> Budget:
        """Return the budget of a Krylov method that has no alternative.

        Conjugate gradients may make no progress until they converge in n steps. GMRES with restarts
        that has not made progress in a long trial will not.
        """
        longest = 10 * size
        if positive_definite:
            return Budget(longest, longest)
        trial = min(longest, self.limits.trial_max_products)
        return Budget(trial, min(longest, 10 * trial))

    def _shared_solve(self, linear_map: LinearMap, system: System) -> Callable:
        """Return ``(constants, rows, guesses) -> answers, accepted``, for all rows of a batch.

        The constants are those of the linear map, and those of the preconditioner.
        """
        definite = system.positive_definite

        def solve_rows(constants, rows, guesses):
            bound = linear_map.with_constants(constants[0])
            bound_system = system._replace(matvec=bound, helper=constants[1])
            budget = self.budget(bound, definite, len(rows))
            zero = jnp.zeros((), jnp.int32)  # closed over: see LinearMap.matrix

            def solve_densely(zero: Int[Array, ""] | int = 0):
                factors = factored(bound, definite, zero)
                return jax.vmap(partial(_by_factors, factors, bound_system))(rows)

            if budget.trial_products < self.limits.trial_min_products:
                return solve_densely()
            answers, solved = self._by_iteration(bound_system, rows, guesses, budget)

            def solve_the_rest():
                dense, accepted = solve_densely(zero)
                return jnp.where(solved[:, None], answers, dense), solved | accepted

            return only_if(~jnp.all(solved), solve_the_rest, (answers, solved))

        return for_all_rows(solve_rows)


def _by_factors(factors: Factors, system: System, b: Vector) -> tuple[Vector, Bool[Array, ""]]:
    """Solve `system` by factors of its own matrix."""
    return solve_by_factors(
        factors, system.matvec, b, transpose=False, unique=system.unique, rtol=system.rtol
    )


def _on(operands: Operands, function: Callable[[PyTree], PyTree]) -> Matvec:
    """Return a function of pytrees as one of operands."""
    return lambda v: operands.of(function(operands.back(v)))


def factored(
    linear_map: LinearMap,
    positive_definite: bool,
    zero: Int[Array, ""] | int = 0,
    *,
    by_lu: bool = False,
) -> Factors:
    """Factor the map's matrix; `zero` as in `LinearMap.matrix`, `by_lu` as in `factor`.

    The matrix is kept to check answers if a product with it takes less than half the operations
    of a product with the map.
    """
    constants = jax.lax.stop_gradient(linear_map.constants)
    return factor(
        linear_map.with_constants(constants).matrix(zero),
        positive_definite=positive_definite,
        keep=linear_map.product_flops > 2 * (2 * linear_map.size**2),
        by_lu=by_lu,
    )
