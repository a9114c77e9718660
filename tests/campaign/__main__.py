"""Run the campaign: ``python -m tests.campaign --out FOLDER [FAMILY ...]``."""

import argparse
import collections
import importlib
import json
import os
import platform
import selectors
import subprocess
import sys
from pathlib import Path

import jax

import iterdiff as itd
from tests.campaign.call import BAD, CRASH, GOOD, HANG, judged

FAMILIES = {
    "transforms": "solves under JAX's transformations",
    "values": "extreme values",
    "kinds": "kinds of arguments",
    "arguments": "wrong arguments",
    "callables": "functions and solvers",
    "devices": "several devices",
    "precision": "JAX's settings",
    "estimates": "estimates of known errors",
    "command_line": "the command line",
}
"""The families, and what the table calls them."""

QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=1",
    "--xla_cpu_parallel_codegen_split_count=1",
)
"""Settings of XLA that halve the time of a call, which is mostly compiling."""

LIMIT_SECONDS = 180
"""A call that takes longer hangs: the slowest compiles for about ten seconds."""


def work(family: str, first: int) -> None:
    """Make the calls of a family from the `first` on; print one line of JSON for each."""
    jax.config.update("jax_enable_x64", True)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the calls print is not ours
    calls = list(importlib.import_module(f"tests.campaign.{family}").calls())
    for number in range(first, len(calls)):
        print(json.dumps({"begins": calls[number].name}), file=out, flush=True)
        found = judged(calls[number])
        print(json.dumps(found.__dict__), file=out, flush=True)
        if number % 100 == 99:
            jax.clear_caches()


def collect(family: str) -> list[dict[str, str]]:
    """Return the outcomes of a family, made by a process of its own.

    A process that ends or hangs costs the call that it was making; another one goes on.
    """
    found: list[dict[str, str]] = []
    begun = True
    while begun:
        begun = _follow(family, found)
    return found


def _follow(family: str, found: list[dict[str, str]]) -> bool:
    """Append a process's outcomes to `found`; return whether there may be more."""
    module = importlib.import_module(f"tests.campaign.{family}")
    flags = " ".join([*QUICK_TO_COMPILE, *getattr(module, "FLAGS", ())])
    environment = {**os.environ, "NPROC": "1", "JAX_TRACEBACK_FILTERING": "off", "XLA_FLAGS": flags}
    words = [sys.executable, "-m", "tests.campaign", "--work", family, str(len(found))]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert process.stdout is not None
    lines, current = _Lines(process.stdout.fileno()), None
    while True:
        line = lines.next(LIMIT_SECONDS)
        if line is None:  # too slow
            process.kill()
            process.wait()
            assert current is not None
            found.append({"name": current, "judgement": HANG, "shown": ""})
            _report(found[-1])
            return True
        if not line:
            break
        record = json.loads(line)
        if "begins" in record:
            current = record["begins"]
        else:
            found.append(record)
            current = None
            _report(record)
    status = process.wait()
    if current is None:
        assert status == 0, f"{family}: the process ended with {status}"
        return False
    found.append({"name": current, "judgement": CRASH, "shown": f"exit status {status}"})
    _report(found[-1])
    return True


def _report(outcome: dict[str, str]) -> None:
    """Print an outcome that is a fault."""
    if outcome["judgement"] in BAD:
        print(f"  {outcome['judgement']}: {outcome['name']}\n    {outcome['shown']}", flush=True)


class _Lines:
    """Lines of a pipe, with a time limit for each."""

    def __init__(self, descriptor: int):
        self.descriptor, self.rest = descriptor, b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(descriptor, selectors.EVENT_READ)

    def next(self, seconds: float) -> bytes | None:
        """Return the next line, an empty one at the end, None after `seconds` without one."""
        while b"\n" not in self.rest:
            if not self.selector.select(seconds):
                return None
            part = os.read(self.descriptor, 1 << 16)
            if not part:
                return b""
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\n")
        return line


def table(results: dict[str, list[dict[str, str]]]) -> str:
    """Return the counts of all judgements as a table in Markdown."""
    judgements = [*GOOD, *BAD]
    lines = [
        f"| calls | number | {' | '.join(judgements)} |",
        f"|---|{'---:|' * (len(judgements) + 1)}",
    ]
    total: collections.Counter = collections.Counter()
    for family in sorted(results, key=list(FAMILIES).index):
        outcomes = results[family]
        counts = collections.Counter(outcome["judgement"] for outcome in outcomes)
        total += counts
        lines.append(_row(FAMILIES[family], counts, judgements))
    return "\n".join([*lines, _row("**all**", total, judgements), ""])


def _row(name: str, counts: collections.Counter, judgements: list[str]) -> str:
    cells = [str(counts[judgement]) for judgement in judgements]
    return f"| {name} | {sum(counts.values())} | {' | '.join(cells)} |"


def main() -> int:
    """Run the campaign, store its results, and list what is at fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign")
    parser.add_argument("families", nargs="*", default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--work", nargs=2, metavar=("FAMILY", "FIRST"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work[0], int(given.work[1]))
        return 0
    out = given.out or Path("out/campaign")
    out.mkdir(parents=True, exist_ok=True)
    results = _stored(out)
    for family in given.families:
        results[family] = collect(family)
        faults = sum(outcome["judgement"] in BAD for outcome in results[family])
        print(f"{family}: {len(results[family])} calls, {faults} faults", flush=True)
        _store(out, results)
    print(table(results))
    return int(any(o["judgement"] in BAD for family in results.values() for o in family))


def _stored(out: Path) -> dict[str, list[dict[str, str]]]:
    """Return what an earlier run stored there, for the families that are not run again."""
    file = out / "campaign.json"
    return json.loads(file.read_text(encoding="utf-8"))["results"] if file.exists() else {}


def _store(out: Path, results: dict[str, list[dict[str, str]]]) -> None:
    """Write all outcomes as JSON, and their counts as a table."""
    stored = {
        "iterdiff": itd.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "results": results,
    }
    (out / "campaign.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    (out / "campaign.md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
