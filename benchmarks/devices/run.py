"""Weak scaling: what a device holds when the unknown is spread over more of them."""

import os

from benchmarks.devices.one_count import COLLECTIVES, MODES, STEPS, UNKNOWNS
from benchmarks.harness.fresh import fresh
from benchmarks.harness.measure import Effort
from benchmarks.harness.results import Column, Measurement, Section, Table, Target

COUNTS = (1, 2, 4, 8)
"""Numbers of devices."""
LIMIT = 1.2
"""The bytes of a device may be this many times their share of the bytes on one device."""


def run(effort: Effort) -> Section:
    """Measure; nothing is timed, so that the effort does not matter."""
    del effort
    found = {count: on_devices(count) for count in COUNTS}
    return Section(
        "Weak scaling of gradients over devices",
        tables=[table(found)],
        measurements=[measurement(found, name) for name in MODES],
    )


def on_devices(count: int) -> dict[str, dict[str, float]]:
    """Return what `one_count` measures in a fresh process."""
    before = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
    try:
        return fresh("benchmarks.devices.one_count", str(count))
    finally:
        if before is None:
            del os.environ["XLA_FLAGS"]
        else:
            os.environ["XLA_FLAGS"] = before


def share(found: dict, name: str, count: int) -> float:
    """Return a device's bytes over its share of the bytes on one device."""
    return found[count][name]["bytes"] * count / found[1][name]["bytes"]


def table(found: dict) -> Table:
    """Return one row for each mode and number of devices."""
    rows = [
        [
            name,
            count,
            found[count][name]["bytes"] / 1e6,
            share(found, name, count),
            *(found[count][name][kind] for kind in COLLECTIVES),
            found[count][name]["error"],
        ]
        for name in MODES
        for count in COUNTS
    ]
    columns = [
        Column("mode"),
        Column("devices", "count"),
        Column("memory of a device", "MB"),
        Column("over its share", "×"),
        *(Column(kind, "count") for kind in COLLECTIVES),
        Column("relative error", "error"),
    ]
    note = (
        f"{UNKNOWNS:,} unknowns and parameters in float64, spread over an explicit mesh; the "
        f"gradient through {STEPS} steps of gradient descent. Memory is what the compiled program "
        "plans for inputs, outputs and temporaries of one device. The counts are the collectives "
        "that occur in the text of the program. All devices are played by one processor."
    )
    return Table("Memory and collectives", columns, rows, note)


def measurement(found: dict, name: str) -> Measurement:
    """Return the largest excess over the share, beside its limit."""
    target = Target(f"memory of a device, {name}", f"at most {LIMIT} × its share", LIMIT)
    value = max(share(found, name, count) for count in COUNTS)
    return Measurement(target, value, note=f"on {COUNTS[-1]} devices or fewer")
