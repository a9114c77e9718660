"""The tables of ``docs/solvers.md`` show what a trial finds, and what is stored."""

import pytest

from tests.solver_table import BY_DECORATOR, SOLVERS, TABLES, modes_row, shown

ROWS = shown("modes").splitlines()[2:]
NAMES = [*SOLVERS, BY_DECORATOR]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_shows_what_a_trial_finds(name):
    assert modes_row(name) == ROWS[NAMES.index(name)], "run: python -m tests.solver_table"


def test_the_table_has_a_row_for_each_solver():
    assert len(ROWS) == len(NAMES)
    assert "| Bisection | no | yes | no | Implicit |" in ROWS
    assert "| Anderson | warns | yes | warns | yes |" in ROWS


@pytest.mark.parametrize("suite", ["optimistix", "jaxopt"])
def test_the_page_shows_the_stored_results_of_other_suites(suite):
    assert shown(suite) == TABLES[suite](), "run: python -m tests.solver_table"
