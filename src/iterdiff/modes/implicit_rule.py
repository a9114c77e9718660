"""The rule that gives a solution its implicit derivative."""

from functools import partial

import jax
from jaxtyping import PyTree

from iterdiff.accuracy.sensitivity import Equation, Helpers, explicit
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import attach_jvp, hoist
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
    structure, (preconditioner, guess) = problem.structure_at(x, theta), helpers
    if guess is not None:
        guess = tree.where(tree.all_finite(guess), guess, tree.zeros_like(guess))
    apply, closed_over = None, None
    if preconditioner is not None:
        apply, closed_over = hoist(preconditioner, x)

    def shifted(y, given):
        inputs, _, guess = given
        value = residual(y, inputs)
        if guess is None:
            return value
        return tree.sub(value, tree.sub(guess, jax.lax.stop_gradient(guess)))

    def rule(x, perturbed, constants):
        closed_over, guess = constants
        in_primals = lambda y, primals: shifted(y, perturbed.rebuild(primals))  # noqa: E731
        bound = None if apply is None else partial(apply, closed_over)
        equation = Equation(in_primals, x, perturbed.primals, structure)
        helped = method._replace(preconditioner=bound, guess=guess)
        tangent = equation.derivative(perturbed.tangents, helped)
        if dependent is None:
            return tangent
        return refuse_lost(tangent, residual, x, perturbed, method.throw)

    return attach_jvp(x, (inputs, dependent, guess), rule, (closed_over, guess))
