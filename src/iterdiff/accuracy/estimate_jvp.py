"""The derivative of an error estimate.

An estimate shares factorisations that have no derivative. Where it is differentiated, it is
computed once more, each linear solve by itself, because JAX knows the derivative of a linear solve.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.accuracy.forms import Apply
from iterdiff.accuracy.sensitivity import Equation, Sensitivity, explicit
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import Perturbed, attach_jvp, hoist, with_jvp
from iterdiff.jaxtools.tree import floating_part
from iterdiff.linalg.solve import Method
from iterdiff.problems.problem import Problem


def with_derivative(
    parts: tuple,
    problem: Problem,
    at: tuple[PyTree, PyTree, PyTree],
    apply: Apply,
    method: Method,
) -> tuple:
    """Return the parts of an estimate with their derivatives in everything they depend on.

    Parameters
    ----------
    parts : tuple
        absolute, relative, uncertainty and corrected of an `iterdiff.ErrorEstimate`. The
        derivative of `uncertainty` is zero in the derivative that was judged, and NaN in
        everything else.
    problem : Problem
        Its residual may close over traced values.
    at : tuple
        The derivative that was judged, `x` and `theta`.
    apply : Apply
        Which derivative it is. Closed-over values are differentiated in, too.
    method : Method
        How the estimate's systems are solved.
    """
    derivative, x, theta = at
    derivative = jax.tree.map(jnp.asarray, derivative)
    residual, inputs = explicit(problem, x, theta)
    helper, of_helper = None, []
    if method.preconditioner is not None:
        helper, of_helper = hoist(method.preconditioner, x)

    def linearised(y, inputs, of_helper):
        (of_problem, of_theta), closed_over = inputs
        floating, rest = floating_part(of_theta)

        def in_theta(y, floating):
            return residual(y, ((of_problem, eqx.combine(floating, rest)), closed_over))

        structure = problem.structure_at(y, of_theta)
        bound = None if helper is None else partial(helper, of_helper)
        same = Method(method.solver, preconditioner=bound)
        return Sensitivity(Equation(in_theta, y, floating, structure), same)

    def rule(_, perturbed, of_helper):
        shift, y, inputs = perturbed.inputs
        shift_tangent, tangent, _ = perturbed.all_tangents()
        if any(place < len(jax.tree.leaves(shift)) for place in perturbed.places):
            tangent = tree.add(tangent, linearised(y, inputs, of_helper).forward(shift_tangent))
        return y, tangent

    def again(derivative, x, inputs):
        at = linearised(x, inputs, of_helper)
        corrected = tree.sub(x, at.inverse(at.value))
        floating = floating_part(inputs[0][1])[0]

        def solution(there):
            """Return the solution, linear in the distance from theta."""
            shift = tree.sub(there, floating)
            given = shift, corrected, inputs
            return with_jvp(lambda given, _: given[1], given, rule, of_helper)

        better = apply(solution, floating)
        return (*sizes(derivative, better), better)

    converted, closed_over = hoist(again, derivative, x, inputs)
    return _attached(parts, converted, (closed_over, derivative, x, inputs))


def sizes(derivative: PyTree, better: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the norm of the difference, absolute and relative to the better derivative."""
    absolute, size = tree.norms(tree.sub(better, in_layout(better, derivative)), better)
    return absolute, relative_size(absolute, size)


def relative_size(absolute: Float[Array, ""], size: Float[Array, ""]) -> Float[Array, ""]:
    """Return the quotient; zero over zero is zero."""
    relative = jnp.where(size > 0, absolute / jnp.where(size > 0, size, 1.0), jnp.inf)
    return jnp.where(absolute == 0, 0.0, relative)


def in_layout(like: PyTree, a: PyTree) -> PyTree:
    """Return the leaves of `a` in the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(a))


def _attached(parts: tuple, again: Callable, inputs: Any) -> tuple:
    """Return `parts` with the derivatives of ``again(*inputs)``.

    `inputs` are the closed-over values, the derivative that was judged, and the rest.
    """
    first = len(jax.tree.leaves(inputs[0]))
    judged = range(first, first + len(jax.tree.leaves(inputs[1])))

    def rule(parts: tuple, perturbed: Perturbed) -> tuple:
        del parts
        absolute, relative, corrected = jax.jvp(
            lambda *primals: again(*perturbed.rebuild(primals)),
            perturbed.primals,
            perturbed.tangents,
        )[1]
        pairs = zip(perturbed.places, perturbed.tangents, strict=True)
        others = _unknown([tangent for place, tangent in pairs if place not in judged])
        total = sum((jnp.sum(v) for v in others), start=jnp.zeros(()))
        return absolute, relative, total.astype(absolute.dtype), corrected

    return attach_jvp(parts, inputs, rule)


def _unknown(tangents: list[Array]) -> list[Array]:
    """Return NaN in place of all tangents, and of their cotangents, that are not zero."""

    def unknown(_, vectors):
        return [jnp.where(v == 0, 0.0, jnp.nan).astype(v.dtype) for v in vectors]

    if not tangents:
        return []
    # A product with NaN would turn zero cotangents into NaN, too: this map is linear only in name.
    return jax.lax.custom_linear_solve(lambda v: v, tangents, unknown, symmetric=True)
