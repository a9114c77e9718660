"""The targets, each in one line of one table; the tests assert none of the times."""

from benchmarks.harness.results import Measurement, Target

_RUN = "gradient of 10,000 gradient steps, logistic 569×30"
_LARGE_RUN = "gradient of gradient steps, logistic 20,000×500"
_STOPPED = "the same, stopped by a rule"
_WIDE = "Jacobian trace, n = 2000, p = 200"
_SMALL = "Jacobian trace, ridge 569×30, p = 30, T = 2000"
_SCALAR = "scalar study, T = 1000"
_FIRST = "first gradient, fresh process"
_CALL = "first call on ridge 200×10, processor time"
_IMPORT = "`import iterdiff`, and the names of a gradient"
_IMPLICIT = "implicit gradient at convergence, defaults"
_WRONG = "derivatives whose error is known"
_STOPS = "`DerivativeErrorBelow`"
_OUTER = "outer optimisation to 1e-4"

IMPLICIT = (
    "logistic 569×30",
    "ridge 569×30",
    "logistic 20,000×500",
    "ridge condition 1e6",
    "ridge n=5000",
    "nonsymmetric n=1000",
    "batch of 1,000 small ones",
)
"""The problems whose implicit gradient is timed."""

# fmt: off
_ROWS = (
    # key, work, target in words, largest value that meets it, unit
    ("scalar core", _SCALAR, "`trace` once compiled ≤ 1.5 × the hand-written carry", 1.5, "×"),
    ("trace small", _SMALL, "≤ 1.5 × the primal", 1.5, "×"),
    ("trace small best", _SMALL, "≤ 1.1 × the best hand-written variant", 1.1, "×"),
    ("trace wide time", _WIDE, "time ≤ 1.05 × the best carried variant", 1.05, "×"),
    ("trace wide best", _WIDE, "≤ 1.1 × the best hand-written variant", 1.1, "×"),
    ("trace probes", _WIDE, "`probes=8` ≤ 8 × the primal", 8.0, "×"),
    ("trace wide peak", f"{_WIDE}, T = 500", "peak of the process ≤ 450 MB", 450, "MB"),
    ("run default time", _RUN, "default ≤ 2.0 × the primal", 2.0, "×"),
    ("run default memory", _RUN, "default ≤ 2.6 MB", 2.6, "MB"),
    ("run sqrt time", _RUN, "√T policy ≤ 2.4 × the primal", 2.4, "×"),
    ("run sqrt memory", _RUN, "√T policy ≤ 0.8 MB", 0.8, "MB"),
    ("run log time", _RUN, "logarithmic policy ≤ 4 × the primal", 4.0, "×"),
    ("run log memory", _RUN, "logarithmic policy ≤ 0.1 MB", 0.1, "MB"),
    ("run auto time", _RUN, '`last="auto"` ≤ 1.3 × the primal at convergence', 1.3, "×"),
    ("rule time", _STOPPED, "`max_steps` as needed: time ≤ 1.15 × fixed steps", 1.15, "×"),
    ("rule memory", _STOPPED, "`max_steps` as needed: memory ≤ 1.15 × fixed steps", 1.15, "×"),
    ("rule time 100", _STOPPED, "`max_steps` 100 × that: time ≤ 1.15 × fixed steps", 1.15, "×"),
    ("rule memory 100", _STOPPED, "`max_steps` 100 × that: memory ≤ 1.15 × fixed steps", 1.15, "×"),
    ("large run", _LARGE_RUN, "default ≤ 1.1 × `jax.grad` of the plain scan", 1.1, "×"),
    *(row for name in IMPLICIT for row in (
        (f"implicit {name}", f"{_IMPLICIT}: {name}", "≤ 1.2 × the best variant", 1.2, "×"),
        (f"implicit error {name}", f"{_IMPLICIT}: {name}", "true relative error ≤ 1e-6", 1e-6,
         "error"),
    )),
    ("first unrolled", _FIRST, "unrolled ≤ 1.15 × plain `jax.grad` of a scan", 1.15, "×"),
    ("first implicit", _FIRST, "implicit ≤ 1.15 × the hand-written implicit", 1.15, "×"),
    ("first estimate", _CALL, "`derivative_error` ≤ 1.5 s", 1.5, "s"),
    ("first trace", _CALL, "`trace` ≤ 1.5 s", 1.5, "s"),
    ("first check", _CALL, "`check_derivative` ≤ 4 s", 4.0, "s"),
    ("first diagnosis", _CALL, "`diagnose` ≤ 4 s", 4.0, "s"),
    ("first checked", _CALL, "a checked gradient ≤ 2 × the bare one", 2.0, "×"),
    ("import", _IMPORT, "≤ 1.1 × importing jax, equinox and lineax", 1.1, "×"),
    ("unflagged", _WRONG, "wrong ones without a flag: none", 0, "count"),
    ("false alarms", _WRONG, "right ones with a flag: none", 0, "count"),
    ("estimate off", _WRONG, "trusted estimates off by more than a factor of two: none", 0,
     "count"),
    ("checked differs", _WRONG, "flags of `Checked` that differ from the estimate's: none", 0,
     "count"),
    ("bilevel best", _OUTER, "≤ 1.2 × the best fixed tolerance on all but one", 1, "count"),
    ("bilevel median", _OUTER, "≤ 0.5 × the median one on all but one", 1, "count"),
    ("bilevel uphill", _OUTER, "accepted steps that a direct solve calls uphill: none", 0, "count"),
    ("bilevel bars", _OUTER, "trusted error bars within a factor of two: 98 %", 0.02, "error"),
    ("not reached", _STOPS, "runs that miss the tolerance: none", 0, "count"),
    ("stopped early", _STOPS, "true error above 1.1 × the tolerance: none", 0, "count"),
    ("stopped late", _STOPS, "steps above 1.1 × the oracle's and one interval: none", 0, "count"),
)
# fmt: on

TARGETS = {key: Target(*row) for key, *row in _ROWS}


def against(
    key: str, value: float, other: str = "", other_value: float | None = None, note: str = ""
) -> Measurement:
    """Return a measurement for the target of this key."""
    return Measurement(TARGETS[key], value, other, other_value, note)
