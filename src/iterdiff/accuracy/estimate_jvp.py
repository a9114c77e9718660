"""The derivative of an error estimate, which shares factorisations that have none.

What is estimated is computed once more, each linear solve by itself, whose derivative JAX knows;
but only where an estimate is differentiated.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from iterdiff.accuracy.sensitivity import Sensitivity, explicit
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import hoist, perturbed
from iterdiff.jaxtools.tree import floating_part
from iterdiff.problems.problem import Problem, structure_of

Apply = Callable[[Callable[[PyTree], PyTree], PyTree], PyTree]
"""Maps the solution, as a function of theta's floating part, to a derivative of it there."""


def with_derivative(
    parts: tuple,
    problem: Problem,
    at: tuple[PyTree, PyTree, PyTree],
    apply: Apply,
    solver: lx.AbstractLinearSolver | None,
) -> tuple:
    """Return the parts of an estimate with their derivatives in all that they depend on.

    Parameters
    ----------
    parts : tuple
        absolute, relative, uncertainty and corrected of an `iterdiff.ErrorEstimate`. The
        derivative of `uncertainty` is NaN, but for that in the derivative that was judged, 0.
    problem : Problem
        Its residual may close over traced values.
    at : tuple
        The derivative that was judged, `x` and `theta`.
    apply : Apply
        Which derivative it is; closed-over values are differentiated in, too.
    solver : lineax.AbstractLinearSolver, optional
        As in `Implicit`.
    """
    derivative, x, theta = at
    derivative = jax.tree.map(jnp.asarray, derivative)
    residual, inputs = explicit(problem, x, theta)

    def linearised(y, inputs):
        (of_problem, of_theta), closed_over = inputs
        moving, rest = floating_part(of_theta)

        def in_moving(y, moving):
            return residual(y, ((of_problem, eqx.combine(moving, rest)), closed_over))

        return Sensitivity(in_moving, y, moving, structure_of(problem), solver=solver)

    @jax.custom_jvp
    def solution(shift, y, inputs):
        del shift, inputs
        return y

    @solution.defjvp
    def _(primals, tangents):
        _, y, inputs = primals
        return y, tree.add(tangents[1], linearised(y, inputs).forward(tangents[0]))

    def again(derivative, x, inputs):
        at = linearised(x, inputs)
        corrected = tree.sub(x, at.solve(at.value))
        moving = floating_part(inputs[0][1])[0]
        better = apply(lambda m: solution(tree.sub(m, moving), corrected, inputs), moving)
        return (*sizes(derivative, better), better)

    converted, closed_over = hoist(again, derivative, x, inputs)
    return _attached(jax.lax.stop_gradient(parts), converted, (closed_over, derivative, x, inputs))


def sizes(derivative: PyTree, better: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the norm of the difference, absolute and relative to the better derivative's."""
    derivative = jax.tree.unflatten(jax.tree.structure(better), jax.tree.leaves(derivative))
    absolute, size = tree.norm(tree.sub(better, derivative)), tree.norm(better)
    relative = jnp.where(size > 0, absolute / jnp.where(size > 0, size, 1.0), jnp.inf)
    return absolute, jnp.where(absolute == 0, 0.0, relative)


def _attached(parts: tuple, again: Callable, inputs: Any) -> tuple:
    """Return `parts` with the derivatives of ``again(*inputs)``, and NaN for the uncertainty's.

    `inputs` are what is closed over, the derivative that was judged, and the rest.
    """

    @jax.custom_jvp
    def known(parts, inputs):
        del inputs
        return parts

    def rule(primals, tangents):
        parts, inputs = known(*primals), primals[1]
        moving, dots, fixed = perturbed(inputs, tangents[1])
        if not moving:
            return parts, tree.zeros_like(parts)
        found = jax.jvp(lambda *m: again(*fixed(m)), tuple(moving), tuple(dots))[1]
        absolute, relative, corrected = found
        closed_over, _, *rest = zip(inputs, tangents[1], strict=True)
        besides = _unknown([dot for pair in (closed_over, *rest) for dot in perturbed(*pair)[1]])
        total = sum((jnp.sum(dot) for dot in besides), start=jnp.zeros(()))
        return parts, (absolute, relative, total.astype(parts[2].dtype), corrected)

    known.defjvp(rule, symbolic_zeros=True)
    return known(parts, inputs)


def _unknown(dots: list[Array]) -> list[Array]:
    """Return NaN in place of all tangents, and of their cotangents, that are not zero."""

    def unknown(_, dots):
        return [jnp.where(v == 0, 0.0, jnp.nan).astype(v.dtype) for v in dots]

    if not dots:
        return []
    # A product with NaN would make NaN of zero cotangents too: this one is linear in name alone.
    return jax.lax.custom_linear_solve(lambda v: v, dots, unknown, symmetric=True)
