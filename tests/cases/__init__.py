"""Problems whose solution *and* its derivative are known in closed form.

They cover every family of problems, with arrays and pytrees as unknowns and parameters. The
Jacobians are written by hand. ``test_cases.py`` checks them against the solution and the implicit
function theorem, so that other tests can compare with them.

>>> case = build("sqrt", "float64")
>>> [suited.name for suited in case.algorithms]
['Newton', 'Chord', 'Broyden']
"""

import functools

from tests.cases import equations, fixed_points, minimisations
from tests.cases.case import Case as Case
from tests.cases.case import Suited as Suited
from tests.cases.case import push as push

DTYPES = ("float64", "float32")

BUILDERS = {
    builder.__name__: builder
    for builder in (
        minimisations.scalar_quadratic,
        minimisations.matrix_quadratic,
        minimisations.ridge,
        minimisations.poisson,
        minimisations.coupled_tree,
        equations.sqrt,
        equations.cubic_scalar,
        equations.cubic_tree,
        equations.spd_system,
        equations.dominant_system,
        equations.skew_tree_system,
        fixed_points.affine_contraction,
        fixed_points.cosine,
        fixed_points.babylonian_tree,
        minimisations.lasso,
        minimisations.log_regression,
        minimisations.quadratic_program,
        minimisations.nonnegative_tree,
    )
}
NAMES = tuple(BUILDERS)

IN_FLOAT32 = (
    "matrix_quadratic",
    "sqrt",
    "cubic_scalar",
    "spd_system",
    "affine_contraction",
    "lasso",
    "log_regression",
    "quadratic_program",
)
"""The cases to test in float32 too: together they have every family and every algorithm."""

BUILT = [(name, "float64") for name in NAMES] + [(name, "float32") for name in IN_FLOAT32]
"""Each case in float64, and those of `IN_FLOAT32` in float32 too: arguments of `build`."""


@functools.cache
def build(name: str, dtype: str = "float64") -> Case:
    """Return the case of this name, with all leaves in this dtype."""
    return BUILDERS[name](dtype)


def suited(dtype: str = "float64") -> list[tuple[str, int]]:
    """Return all pairs of a case's name and the index of an algorithm that solves it."""
    return [(name, index) for name in NAMES for index in range(len(build(name, dtype).algorithms))]
