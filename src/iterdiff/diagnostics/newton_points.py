"""Newton corrections of a point, and whether an algorithm solves the problem it is given."""

from jaxtyping import Array, Bool, PyTree

from iterdiff.accuracy.consistency import disagree, remembers
from iterdiff.accuracy.correction import correct
from iterdiff.accuracy.points import NewtonPoints
from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools.jit import compiled
from iterdiff.problems.problem import Problem


@compiled
def newton_points(problem: Problem, x: PyTree, theta: PyTree) -> NewtonPoints:
    """Return `x` with its Newton corrections."""
    return correct(problem, x, theta).points


def solves_another_problem(
    problem: Problem, algorithm: Algorithm, theta: PyTree, points: NewtonPoints
) -> bool:
    """Whether the algorithm's fixed point is certainly not a root of the residual.

    An algorithm whose state holds more than the iterate cannot be tested: a fresh state may move
    away from a solution. The answer is then False.

    Parameters
    ----------
    problem, algorithm, theta
        As in `solve`.
    points : NewtonPoints
        The iterate at which the run stopped, with its corrections.
    """
    if remembers(algorithm, problem, points.x, theta):
        return False
    return bool(_step_disagrees(problem, algorithm, theta, points))


@compiled
def _step_disagrees(
    problem: Problem, algorithm: Algorithm, theta: PyTree, points: NewtonPoints
) -> Bool[Array, ""]:
    def step(x: PyTree) -> PyTree:
        return algorithm.step(problem, algorithm.init(problem, x, theta), theta).x

    return disagree(step, points)
