"""The rule that gives a solution its implicit derivative."""

from functools import partial

import jax
from jaxtyping import PyTree

from iterdiff.accuracy.sensitivity import Equation, Helpers, explicit
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import Perturbed, attach_jvp, hoist
from iterdiff.linalg.handed import HandedFactors
from iterdiff.linalg.solve import Method
from iterdiff.modes.dependent import refuse_lost
from iterdiff.problems.active_set import regular_at
from iterdiff.problems.problem import Problem


def attached(
    problem: Problem, x: PyTree, theta: PyTree, method: Method, helpers: Helpers
) -> PyTree:
    r"""Return `x` with the implicit derivative in everything that the residual depends on.

    If there is a guess g, it is that of the equation :math:`r(x, \theta) = g - g_0`, where
    :math:`g_0` is the value of g: its derivative in g is :math:`A^{-1}`, and the cotangent of g is
    the adjoint :math:`A^{-\top} w`.

    Parameters
    ----------
    problem : Problem
        Owns the residual.
    x : pytree of real floating arrays
        A solution; its own derivative is cut.
    theta : pytree
        The parameters.
    method : Method
        How systems are solved, without helpers.
    helpers : Helpers
        What helps an iterative solve.
    """
    problem, dependent = regular_at(problem, x, theta)
    residual, inputs = explicit(problem, x, theta)
    structure, preconditioner = problem.structure_at(x, theta), helpers.preconditioner
    guess, factors = helpers.guess, helpers.factors
    if guess is not None:
        guess = _finite_or_zero(guess)
    apply, closed_over = None, None
    if preconditioner is not None:
        apply, closed_over = hoist(preconditioner, x)

    def shifted(y, given):
        inputs, _, (guess, _) = given
        value = residual(y, inputs)
        if guess is None:
            return value
        return tree.sub(value, tree.sub(guess, jax.lax.stop_gradient(guess)))

    def rule(x, perturbed, constants):
        closed_over, helpers = constants
        in_primals = lambda y, primals: shifted(y, perturbed.rebuild(primals))  # noqa: E731
        bound = None if apply is None else partial(apply, closed_over)
        equation = Equation(in_primals, x, perturbed.primals, structure)
        helped = method._replace(
            preconditioner=bound,
            guess=helpers.guess,
            span=helpers.span(),
            factors=helpers.factors,
        )
        moved = _moved_factors(perturbed)
        tangent = equation.derivative(perturbed.tangents, helped, moved)
        if dependent is None:
            return tangent
        return refuse_lost(tangent, residual, x, perturbed, method.throw)

    helpers = helpers._replace(preconditioner=None, guess=guess)
    state = guess, factors
    return attach_jvp(x, (inputs, dependent, state), rule, (closed_over, helpers))


# If a scan drops this rule (see `closures`), the next state of one that is not finite is zero.
@jax.custom_jvp
def _finite_or_zero(guess: PyTree) -> PyTree:
    """Return `guess`, or zero if it is not finite, with the derivative one."""
    return tree.where(tree.all_finite(guess), guess, tree.zeros_like(guess))


@_finite_or_zero.defjvp
def _finite_or_zero_jvp(primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
    return _finite_or_zero(*primals), tangents[0]


def _moved_factors(perturbed: Perturbed) -> HandedFactors | None:
    """Return the tangents of the factors, if their cotangents are asked for."""
    factors = perturbed.inputs[2][1]
    leaves = len(jax.tree.leaves(perturbed.inputs))
    count = len(jax.tree.leaves(factors))
    if not count or leaves - 1 not in perturbed.places:
        return None
    return perturbed.all_tangents()[2][1]
