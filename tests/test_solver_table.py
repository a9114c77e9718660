"""The page of solvers and modes says what a trial finds."""

from tests.solver_table import FOOT, HEAD, PAGE, SOLVERS, table


def test_the_page_is_what_the_trial_finds():
    page = PAGE.read_text(encoding="utf-8")
    assert page == HEAD + table() + FOOT, "run: python -m tests.solver_table"
    assert page.split("\n## ")[0].count("\n| ") == len(SOLVERS) + 2
    assert "| Bisection | no | yes | no | Implicit |" in page
    assert "| Anderson | warns | yes | warns | yes |" in page
