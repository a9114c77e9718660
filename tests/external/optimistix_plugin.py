"""A pytest plugin that replaces `optimistix.ImplicitAdjoint` by our implicit mode.

optimistix's tests refer to the class by name, so they then use our mode:
``PYTHONPATH=tests/external python -m pytest -p optimistix_plugin PATH/tests -k jvp``.
"""

from typing import Any

import equinox as eqx
import optimistix

import iterdiff as itd

calls = {"apply": 0}


class Ours(optimistix.AbstractAdjoint):
    """Our implicit mode with the arguments of `optimistix.ImplicitAdjoint`; it counts its calls."""

    linear_solver: Any = eqx.field(default=None)

    def apply(self, primal_fn, rewrite_fn, inputs, tags):
        """Call the adjoint under test."""
        calls["apply"] += 1
        adjoint = itd.adapters.as_optimistix_adjoint(itd.Implicit(self.linear_solver))
        return adjoint.apply(primal_fn, rewrite_fn, inputs, tags)


def pytest_configure(config: Any) -> None:
    """Replace the class for the whole session."""
    config.iterdiff_theirs = optimistix.ImplicitAdjoint
    optimistix.ImplicitAdjoint = Ours


def pytest_unconfigure(config: Any) -> None:
    """Restore optimistix's class."""
    optimistix.ImplicitAdjoint = config.iterdiff_theirs


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Report how often our adjoint was called."""
    terminalreporter.write_line(f"iterdiff's adjoint was called {calls['apply']} times")
