"""What a study says on the terminal: a table, and verdicts in plain words."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iterdiff.study.extras import load
from iterdiff.study.grid import cases
from iterdiff.study.summary import (
    ROUNDING,
    TOLERANCE,
    Convergence,
    best_start,
    deviation,
    iterate_of,
    jacobian_of,
    times,
)

if TYPE_CHECKING:
    import xarray


def save_report(data: "xarray.Dataset", path: Path) -> None:
    """Write table and verdicts to a text file.

    Parameters
    ----------
    data : xarray.Dataset
        As `iterdiff.study.grid.run` returns it.
    path : Path
        Of the file.
    """
    with path.open("w", encoding="utf-8") as file:
        print_report(data, load("rich.console").Console(file=file, width=100))


def print_report(data: "xarray.Dataset", console: Any) -> None:
    """Print table and verdicts.

    Parameters
    ----------
    data : xarray.Dataset
        As `iterdiff.study.grid.run` returns it.
    console : rich.console.Console
        Where to.
    """
    console.print(table(data))
    for line in verdicts(data):
        console.print(line, markup=False, highlight=False)


def table(data: "xarray.Dataset") -> Any:
    """Return the numbers of a study as a table (rich's), at most 100 columns wide."""
    made = load("rich.table").Table(
        title=data.attrs["title"],
        caption=(
            "Rows: the iterate, then its Jacobian in each mode. start, final: absolute errors "
            "(Euclidean, Frobenius norm); peak: times the start; small: below "
            f"{TOLERANCE:g} of the iterate's start, or of the norm of the true Jacobian."
        ),
        title_justify="left",
        caption_justify="left",
    )
    made.add_column(data.attrs["axis"])
    made.add_column("error of")
    for name in ("start", "peak", "at", "burn-in\nuntil", "small\nfrom", "final"):
        made.add_column(name, justify="right", no_wrap=True)
    for label, case in cases(data):
        made.add_section()
        made.add_row(label, "iterate", *_cells(iterate_of(case)))
        for mode in case["mode"].values:
            made.add_row("", str(mode), *_cells(jacobian_of(case, str(mode))))
    return made


def _cells(found: Convergence) -> tuple[str, ...]:
    peak = times(found.growth) if found.has_burn_in else "-"
    at = str(found.peak_iteration) if found.has_burn_in else "-"
    end = "never" if found.burn_in_end is None else str(found.burn_in_end or "-")
    small = "never" if found.small_from is None else str(found.small_from)
    return f"{found.start:.2e}", peak, at, end, small, f"{found.final:.2e}"


def verdicts(data: "xarray.Dataset") -> list[str]:
    """Return what the dataset shows, in sentences."""
    lines = []
    for label, case in cases(data):
        lines.append(f"{label}:")
        status = str(case.status.values)
        if status.startswith("diverged"):
            lines.append(f"  the run {status}.")
        for mode in case["mode"].values:
            found = jacobian_of(case, str(mode))
            lines.append(f"  {mode} Jacobian: {_sentence(found, int(case.steps))}.")
        lines.extend(f"  {line}" for line in (*_crossing(case), *_theory(case)))
    return lines


def _sentence(found: Convergence, steps: int) -> str:
    start = "its start"
    if found.start_iteration:
        start = f"its value at iteration {found.start_iteration} (it starts at 0)"
    if not found.has_burn_in:
        burn_in = "no burn-in"
    else:
        end = f"until iteration {found.burn_in_end}"
        if found.burn_in_end is None:
            end = f"not over at iteration {steps}"
        height = times(found.growth) + (" above" if found.growth < 1.005 else "")
        burn_in = f"burn-in {end}, peak {height} {start} at {found.peak_iteration}"
    kind = "relative error" if found.relative else "absolute error (the true Jacobian is 0)"
    small = f"{kind} below {TOLERANCE:g} from iteration {found.small_from}"
    if found.small_from is None:
        small = f"{kind} {found.final / found.scale:.2g} after {steps} iterations"
    return f"{burn_in}; {small}"


def _crossing(case: "xarray.Dataset") -> list[str]:
    """Return a sentence on which of unrolled and implicit is nearer to the truth, and when."""
    if not {"unrolled", "implicit"} <= set(case["mode"].values):
        return []
    unrolled = case.jacobian_error.sel(mode="unrolled").values
    implicit = case.jacobian_error.sel(mode="implicit").values
    floor = ROUNDING * max(float(case.reference_norm), float(np.nanmax(unrolled)))
    matters = np.maximum(unrolled, implicit) > floor
    worse = np.flatnonzero(matters & ~(implicit < unrolled))
    if not worse.size:
        return ["the implicit Jacobian is the more accurate at every iteration."]
    later = np.flatnonzero(matters & (np.arange(len(matters)) > worse[-1]))
    if not later.size:
        return ["the implicit Jacobian is not more accurate than the unrolled one in the end."]
    first = int(case.iteration.values[later[0]])
    return [f"the implicit Jacobian is the more accurate one from iteration {first} on."]


def _theory(case: "xarray.Dataset") -> list[str]:
    """Return sentences on what theory says beside the measurement."""
    lines = []
    gap = deviation(case)
    if gap is not None:
        lines.append(
            f"closed form and measurement differ by {gap[0]:.1e} at most ({gap[1]:.1e} of the "
            "largest)."
        )
    if "exponential_factor" in case and np.isfinite(case.exponential_factor.values).all():
        factor = case.exponential_factor.values
        ratio = (factor[-1] / factor[1]) ** (1 / float(case.iteration[-1] - case.iteration[1]))
        peak = -1 / np.log(ratio)
        lines.append(
            f"theory: linear times exponential, peak at -1/ln(1 - eta theta) = {peak:.1f}, "
            f"which is about 1/(eta theta) = {1 / (1 - ratio):.0f}; burn-in over at iteration "
            f"{_end_of_burn_in(ratio)}."
        )
    lines.extend(_bounds(case))
    if "late_start_error" in case:
        lines.append(_late_start(case))
    return lines


def _bounds(case: "xarray.Dataset") -> list[str]:
    """Return a sentence for every mode of which theory has a bound."""
    lines = []
    for mode in case["mode"].values if "bound" in case else ():
        error, bound = (case[name].sel(mode=mode).values for name in ("jacobian_error", "bound"))
        if not np.isfinite(bound).all():
            continue
        meaningful = (bound > 1e-12 * bound.max()) & (case.iteration.values > 0)
        ratios = (error / bound)[meaningful]
        holds = "holds" if (ratios <= 1 + 1e-9).all() else "DOES NOT hold"
        lines.append(
            f"theory, {mode}: the bound {holds}; measured over bound is {ratios.min():.2g} to "
            f"{ratios.max():.3g} from iteration 1 on."
        )
    return lines


def _late_start(case: "xarray.Dataset") -> str:
    """Return a sentence on late starts of the whole run, measured and predicted."""
    total = int(case.total[-1])
    errors = case.late_start_error.sel(total=total)
    best = best_start(case, total)
    error = {k: float(errors.sel(start=k)) for k in (0, best)}
    said = f"late start, T = {total}: best after {best} steps, error {error[best]:.2g} against "
    said += f"{error[0]:.2g} for all steps"
    predicted = float(case.late_start_predicted)
    if not np.isfinite(predicted):
        return f"{said}."
    k = min(round(predicted), total)
    return f"{said}; theory says {k}, error {float(errors.sel(start=k)):.2g}."


def _end_of_burn_in(ratio: float) -> int:
    """Return the first t after the peak at which t ratio**(t - 1) is at most 1 again."""
    t = math.ceil(-1 / math.log(ratio))
    while math.log(t) + (t - 1) * math.log(ratio) > 0:
        t += 1
    return t
