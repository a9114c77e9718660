"""Any linear solver of lineax, its answers checked by the criterion of our own solves."""

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
from iterdiff.linalg.dense_or_krylov import Limits, factored
from iterdiff.linalg.factor import Vector
from iterdiff.linalg.residual_check import (
    SPREAD,
    UNIQUE,
    Answer,
    CheckedSolver,
    Matvec,
    Product,
    accepted_answer,
    default_rtol,
    known_answer,
    known_found,
    matrix_of,
    residual_small,
    result_of,
)

FUNCTION_RTOL = 1e-6
"""The relative residual at which a user's function ``solve(matvec, b)`` is taken to aim:
`RESIDUAL_SLACK` times as much is accepted."""


class AnySolver(CheckedSolver):
    """Any linear solver of lineax, its answers checked by `iterdiff.linalg.residual_check`.

    Whether the operator is regular is decided by factoring it up to
    `Limits.factored_max_unknowns`. Above, the solver has to find an answer that is known.

    Parameters
    ----------
    solver : lineax.AbstractLinearSolver
        Gives the answers. A result other than ``successful`` stays a failure.
    """

    solver: lx.AbstractLinearSolver

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> tuple:
        """Return the operator's product, the solver's state, and whether vectors are spread."""
        operator = lx.linearise(operator)
        spread = SPREAD in getattr(operator, "tags", ())
        return Product(operator), self.solver.init(operator, options), spread

    def compute(self, state: tuple, vector: PyTree, options: dict[str, Any]) -> Answer:
        """Return the solver's answer to `vector`; its result, unless that is not accepted."""
        product, inner, spread = state
        given = {name: value for name, value in options.items() if name not in (UNIQUE, "y0")}
        unique = options.get(UNIQUE, True)
        b = tree.to_vector(vector)
        small = b.size <= Limits().factored_max_unknowns and not spread
        b = computed_once(b) if small else jax.lax.optimization_barrier(b)

        def matvec(v: Vector) -> Vector:
            return tree.to_vector(product(tree.from_vector(v, vector)))

        def solve(b: Vector, **start: PyTree) -> tuple[Vector, lx.RESULTS, Any]:
            v = tree.from_vector(b, vector)
            x, result, stats = self.solver.compute(inner, v, given | start)
            return tree.to_vector(x), result, stats

        x, result, stats = solve(b, **{k: v for k, v in options.items() if k == "y0"})
        accepted = residual_small(matvec, x, b, *_tolerances(self.solver))
        if small:
            accepted = _accepted_by_factors(matvec, x, b, accepted, unique)
        elif unique:
            known = known_answer(b)
            found, told, _ = solve(matvec(known))
            rtol = jnp.maximum(_tolerances(self.solver)[0], default_rtol(b.dtype))
            accepted &= (told == lx.RESULTS.successful) & known_found(known, found, rtol)
        return tree.from_vector(x, vector), result_of(accepted, b, result), stats

    def transpose(self, state: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Return the state for the transposed operator."""
        product, inner, spread = state
        inner, options = self.solver.transpose(inner, options)
        return (product.transpose(), inner, spread), options

    def conj(self, state: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Return the state for the conjugate operator, which is real."""
        product, inner, spread = state
        inner, options = self.solver.conj(inner, options)
        return (product, inner, spread), options

    def assume_full_rank(self) -> bool:
        """Whether the solver assumes that operators have full rank."""
        return self.solver.assume_full_rank()


class Advised(CheckedSolver):
    """A checked solver whose failures are reported with a message of the caller's.

    Parameters
    ----------
    solver : CheckedSolver
        Solves.
    message : str
        What `SolveError` says if a solve fails.
    """

    solver: CheckedSolver
    message: str = eqx.field(static=True)

    @property
    def advice(self) -> str:
        """The message."""
        return self.message

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        """Return the solver's state."""
        return self.solver.init(operator, options)

    def compute(self, state: Any, vector: PyTree, options: dict[str, Any]) -> Answer:
        """Return the solver's answer."""
        return self.solver.compute(state, vector, options)

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the state for the transposed operator."""
        return self.solver.transpose(state, options)

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the state for the conjugate operator, which is real."""
        return self.solver.conj(state, options)

    def assume_full_rank(self) -> bool:
        """Whether the solver assumes that operators have full rank."""
        return self.solver.assume_full_rank()


class MatvecSolver(lx.AbstractLinearSolver):
    """A function ``solve(matvec, b)`` as a linear solver of lineax.

    Attributes
    ----------
    solve : callable
        ``solve(matvec, b)``, with vectors of shape (n,).
    rtol : float
        The relative residual that the function is taken to aim at.
    """

    solve: Callable[[Callable, PyTree], PyTree]
    rtol: float = FUNCTION_RTOL

    def init(self, operator: Any, options: dict[str, Any]) -> Any:
        """Return the operator; nothing is prepared."""
        del options
        return operator

    def compute(self, state: Any, vector: PyTree, options: dict[str, Any]) -> Any:
        """Return the function's answer."""
        del options
        try:
            x = self.solve(state.mv, vector)
        except TypeError as error:
            raise TypeError(
                f"`linear_solver` must be a function solve(matvec, b), but calling it so fails: "
                f"{str(error).rstrip('.')}. Correct it, or pass a solver of lineax."
            ) from error
        if jnp.shape(x) != jnp.shape(vector):
            raise ValueError(
                f"`linear_solver` must return an array of shape {jnp.shape(vector)}, like `b`, but "
                f"it returned {x!r}."
            )
        return jnp.asarray(x, vector.dtype), lx.RESULTS.successful, {}

    def transpose(self, state: Any, options: dict[str, Any]) -> Any:
        """Return the transposed operator."""
        return state.transpose(), options

    def conj(self, state: Any, options: dict[str, Any]) -> Any:
        """Return the operator, which is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """Return True."""
        return True


def as_linear_solver(solver: Any) -> lx.AbstractLinearSolver | None:
    """Return a solver of lineax, or None; a function ``solve(matvec, b)`` becomes a solver.

    Raises
    ------
    TypeError
        If it is neither; the message names the argument ``linear_solver``.
    """
    if solver is None or isinstance(solver, lx.AbstractLinearSolver):
        return solver
    if callable(solver) and not isinstance(solver, type):
        return MatvecSolver(solver)
    raise TypeError(
        "`linear_solver` must be a lineax solver or a function solve(matvec, b), not "
        f"{solver!r}; pass an instance such as lineax.CG(rtol=1e-8, atol=1e-8)."
    )


def _accepted_by_factors(
    matvec: Matvec, x: Vector, b: Vector, small: Bool[Array, ""], unique: bool
) -> Bool[Array, ""]:
    """Whether an answer is accepted, given whether its residual is `small`."""
    linear_map = LinearMap.of(matvec, b)

    def with_factors(zero: Int[Array, ""] | int = 0) -> Bool[Array, ""]:
        factors = factored(linear_map, False, zero)
        matrix = matrix_of(factors, matvec)
        return accepted_answer(matrix, x, b, unique=True, rtol=0.0, small=small)

    if unique:
        return with_factors()
    zero = jnp.zeros((), jnp.int32)  # closed over: see LinearMap.matrix
    return only_if(~small, lambda: with_factors(zero), small)


def _tolerances(solver: Any) -> tuple[Any, Any]:
    """Return `rtol` and `atol` of a solver, or of the one that it wraps; zero if it has none."""
    solver = getattr(solver, "inner_solver", solver)
    found = (getattr(solver, name, None) for name in ("rtol", "atol"))
    rtol, atol = (0.0 if value is None else value for value in found)
    return rtol, atol
