"""How values are printed, by their unit."""

import math
from collections.abc import Sequence
from typing import Any


def number(value: float) -> str:
    """Return a number with three digits; very large and very small ones have an exponent."""
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """Return a time in s, ms or µs."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds * 1e6)} µs"


def share(counts: Sequence[int]) -> str:
    """Return ``(part, whole)`` in words and per cent."""
    part, whole = counts
    return f"{part} of {whole} ({part / whole:.1%})" if whole else "–"


FORMATS = {
    "text": str,
    "s": duration,
    "MB": lambda value: f"{number(value)} MB",
    "×": lambda value: f"{number(value)} ×",
    "error": "{:.1e}".format,
    "exponent": lambda value: f"{round(value, 2) + 0.0:.2f}",
    "count": "{:,.0f}".format,
    "gradient": "{:.9f}".format,
    "share": share,
}
"""How a value is printed, by its unit. Errors are relative; shares are pairs (part, whole)."""


def shown(value: Any, unit: str) -> str:
    """Return a value with its unit; a dash for a missing one."""
    if value is None:
        return "–"
    if isinstance(value, float) and not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and unit != "share":
        return ", ".join(shown(one, unit) for one in value)
    return FORMATS[unit](value)
