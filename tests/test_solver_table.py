"""The tables of ``docs/solvers.md`` show what a trial finds, and what is stored."""

import pytest

from tests.solver_table import SOLVERS, TABLES, modes_table, shown


def test_the_page_shows_what_a_trial_finds():
    found = modes_table()
    assert shown("modes") == found, "run: python -m tests.solver_table"
    assert len(found.splitlines()) == len(SOLVERS) + 3  # the header, its line, and `@implicit`
    assert "| Bisection | no | yes | no | Implicit |" in found
    assert "| Anderson | warns | yes | warns | yes |" in found


@pytest.mark.parametrize("suite", ["optimistix", "jaxopt"])
def test_the_page_shows_the_stored_results_of_other_suites(suite):
    assert shown(suite) == TABLES[suite](), "run: python -m tests.solver_table"
