"""A pytest plugin that puts our implicit mode in place of `optimistix.ImplicitAdjoint`.

optimistix's tests look the class up by name, so they then run through our code:
``PYTHONPATH=tests/external python -m pytest -p optimistix_plugin PATH/tests -k jvp``.
"""

from typing import Any

import equinox as eqx
import optimistix

import iterdiff as itd

calls = {"apply": 0}


class Ours(optimistix.AbstractAdjoint):
    """Takes the arguments of `optimistix.ImplicitAdjoint` and counts the calls."""

    linear_solver: Any = eqx.field(default=None)

    def apply(self, primal_fn, rewrite_fn, inputs, tags):
        """Call the adjoint under test."""
        calls["apply"] += 1
        adjoint = itd.adapters.as_optimistix_adjoint(itd.Implicit(self.linear_solver))
        return adjoint.apply(primal_fn, rewrite_fn, inputs, tags)


def pytest_configure(config: Any) -> None:
    """Put ours in place for the whole session."""
    config.iterdiff_theirs = optimistix.ImplicitAdjoint
    optimistix.ImplicitAdjoint = Ours


def pytest_unconfigure(config: Any) -> None:
    """Put theirs back."""
    optimistix.ImplicitAdjoint = config.iterdiff_theirs


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how often ours was called."""
    terminalreporter.write_line(f"iterdiff's adjoint was called {calls['apply']} times")
