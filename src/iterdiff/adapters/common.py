"""The state of a solver of another library, and why some steps have no useful derivative."""

from jaxtyping import PyTree

from iterdiff.algorithms.base import State

BRACKETS_CAVEAT = (
    "its iterates are points of brackets, so the derivative of its steps is zero, whatever the "
    "derivative of the solution is."
)

SIMPLICES_CAVEAT = (
    "it only compares values of the function, so the derivative of its steps is zero, whatever "
    "the derivative of the solution is."
)


class ForeignState(State):
    """The iterate, and the state of the other library's solver.

    Attributes
    ----------
    x : pytree of real floating arrays
        The iterate.
    memory : pytree
        The solver's own state.
    """

    x: PyTree
    memory: PyTree
