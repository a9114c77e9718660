"""The page for those who leave jaxopt: every call of the right-hand columns is right."""

import re

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest
import scipy.optimize

from tests.test_contributing import ROOT, blocks

PAGE = "docs/how-to/leaving_jaxopt.md"
CODE = re.compile(r"`([^`]+)`")


def section(title: str) -> list[tuple[str, str]]:
    """Return the rows of a section's table: the first call of each cell."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    part = text[text.index(f"## {title}\n") :].split("\n## ")[0]
    rows = [line.split(" | ") for line in part.splitlines() if line.startswith("| ")][2:]
    return [
        (CODE.findall(left)[0] if "`" in left else "", CODE.findall(right)[0])
        for left, right in rows
    ]


@pytest.fixture(scope="module")
def names():
    *_, (_, code) = blocks(PAGE)
    given = {"jaxopt": jaxopt, "optax": optax, "scipy": scipy}
    exec(code, given)
    return given


@pytest.mark.parametrize(
    ("title", "module"),
    [("Projections", jaxopt.projection), ("Proximal operators", jaxopt.prox)],
)
def test_operators_are_those_of_jaxopt(title, module, names):
    rows = section(title)
    assert len(rows) > 6
    for theirs, ours in rows:
        # jaxopt adds integers to floats, and matrices to vectors
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            wanted = eval(theirs, {**vars(module), **names})
        np.testing.assert_allclose(eval(ours, names), wanted, atol=1e-4, err_msg=ours)


# The gradient of f vanishes at A^-1 t = (5/7, -6/7); both constraints: the point (1, 0).
ANSWERS = {
    "minimum": (5 / 7, -6 / 7),
    "equation": (5 / 7, -6 / 7),
    "fit": (5 / 7, -6 / 7),
    "update": (5 / 7, -6 / 7),
    "bounded": (1 / 2, 0.0),
    "inequalities": (1 / 2, 0.0),
    "lasso": (22 / 35, -5 / 7),
    "both": (1.0, 0.0),
    "equalities": (1.0, 0.0),
}


@pytest.mark.parametrize("title", ["Solvers", "Quadratic programs", "Implicit differentiation"])
def test_solvers_find_the_answer(title, names):
    for _, ours in section(title):
        found = eval(ours, names)
        if "Bisection" in ours:
            wanted = 2**0.5
        else:
            problem = re.search(r"(?<!\.)solve\((\w+),|implicit\((\w+)\)", ours)
            which = "equation" if problem is None else problem[1] or problem[2]
            wanted = jnp.array(ANSWERS[which])
        np.testing.assert_allclose(found, wanted, atol=2e-3, err_msg=ours)
