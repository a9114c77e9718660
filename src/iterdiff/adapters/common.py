"""What the adapters share."""

from jaxtyping import PyTree

from iterdiff.algorithms.base import State

BRACKETS = (
    "its iterates are points of brackets, which do not depend differentiably on `theta`; the "
    "derivative of the steps is zero, whatever that of the solution is."
)

SIMPLICES = (
    "it only compares values of the function; its iterates are combinations of the points that it "
    "started from, the same for all `theta` nearby. The derivative of the steps is zero, whatever "
    "that of the solution is."
)


class ForeignState(State):
    """The iterate, and what the foreign solver remembers."""

    x: PyTree
    memory: PyTree
