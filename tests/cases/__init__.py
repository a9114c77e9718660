"""A zoo of problems whose solution *and* its derivative are known in closed form.

Every family of problems is here, with array-valued and pytree-valued unknowns and parameters.
The Jacobians are written by hand; ``test_problem_zoo.py`` holds them against the solution and
against the implicit function theorem, so that other tests may take them for the truth.

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
        minimisations.nonnegative_tree,
    )
}
NAMES = tuple(BUILDERS)


@functools.cache
def build(name: str, dtype: str = "float64") -> Case:
    """Return the case of this name with all leaves of this dtype."""
    return BUILDERS[name](dtype)


def suited(dtype: str = "float64") -> list[tuple[str, int]]:
    """Return every pair of a case's name and the index of an algorithm that solves it."""
    return [(name, index) for name in NAMES for index in range(len(build(name, dtype).algorithms))]
