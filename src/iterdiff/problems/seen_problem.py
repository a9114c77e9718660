"""A problem whose functions convert what we compute with to what the user wrote them for."""

from jaxtyping import Array, Float, PyTree

from iterdiff.jaxtools.complex_pairs import from_pairs
from iterdiff.linalg.operators import Structure
from iterdiff.problems.layout import Layout, Seen
from iterdiff.problems.problem import P, Problem, replaced
from iterdiff.problems.quadratic_program import QuadraticProgram


def seen_problem(problem: P, layout: Layout | None) -> "P | Viewed":
    """Return the problem whose unknowns are those of `layout`; None: they are the answer.

    Raises
    ------
    TypeError
        If this kind of problem has real unknowns only.
    """
    if layout is None:
        return problem if problem.layout is None else replaced(problem, layout=None)
    if isinstance(problem, QuadraticProgram) and not layout.only_cast:
        raise TypeError(
            "`x0` of a QuadraticProgram must consist of real floating arrays; write complex "
            "unknowns as real and imaginary parts, and leave out what is no unknown."
        )
    if problem.like_x is None:
        return Viewed(problem, layout, layout=layout)
    like_x, functions = problem.like_x, {}
    for name, inputs in problem.functions.items():
        function = getattr(problem, name)
        if callable(function):
            functions[name] = Seen(function, layout, inputs > 1, name in like_x)
    return replaced(problem, layout=layout, **functions)


class Viewed(Problem):
    """A problem of a class of the user's, of which only the residual is known.

    Attributes
    ----------
    of : Problem
        The problem.
    seen : Layout
        How its unknowns are laid out.
    """

    of: Problem
    seen: Layout

    def __check_init__(self):
        """Check that the unknowns of the residual are those of the answer."""
        if type(self.of).start is not Problem.start:
            raise TypeError(
                f"`x0` must consist of real floating arrays, because a {type(self.of).__name__} "
                "has unknowns of its own; convert it."
            )

    @property
    def symmetric(self) -> bool:
        """Whether the Jacobian in real and imaginary parts is declared symmetric."""
        return self.of.symmetric

    @property
    def positive_definite(self) -> bool:
        """Whether it is declared symmetric positive definite."""
        return self.of.positive_definite

    @property
    def structure(self) -> Structure:
        """What the problem declares."""
        return self.of.structure

    def value(self, unknowns: PyTree, theta: PyTree) -> Float[Array, ""] | None:
        """Return what the problem minimises, or None."""
        return self.of.value(self.seen.joined(unknowns), from_pairs(theta))

    def aux(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return the auxiliary output at `x`."""
        return self.of.aux(self.seen.joined(x), from_pairs(theta))

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return the residual, like the unknowns."""
        return self.seen.value(self.of.residual(self.seen.joined(x), from_pairs(theta)))
