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
from tests.compiling import FLAGS

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

LIMIT_SECONDS = 180
"""A call that takes longer hangs: the slowest compiles for about ten seconds."""


def work(family: str, numbers: list[int]) -> None:
    """Make these calls of a family; print one line of JSON for each."""
    jax.config.update("jax_enable_x64", True)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the calls print is not ours
    calls = list(importlib.import_module(f"tests.campaign.{family}").calls())
    for done, number in enumerate(numbers):
        print(json.dumps({"begins": calls[number].name}), file=out, flush=True)
        found = judged(calls[number])
        print(json.dumps(found.__dict__), file=out, flush=True)
        if done % 100 == 99:
            jax.clear_caches()


def collect(family: str, stored: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the outcomes of a family, made by a process of its own.

    Of a family that is stored, only the faults are made again.

    A process that ends or hangs costs the call that it was making; another one goes on.
    """
    count = sum(1 for _ in importlib.import_module(f"tests.campaign.{family}").calls())
    numbers = [i for i in range(count) if not stored or stored[i]["judgement"] in BAD]
    found: list[dict[str, str]] = []
    while len(found) < len(numbers):
        _follow(family, numbers[len(found) :], found)
    again = dict(zip(numbers, found, strict=True))
    return [again[i] if i in again else stored[i] for i in range(count)]


def _follow(family: str, numbers: list[int], found: list[dict[str, str]]) -> None:
    """Append the outcomes of a process to `found`: all of them, or as far as it gets."""
    module = importlib.import_module(f"tests.campaign.{family}")
    flags = " ".join([*FLAGS, *getattr(module, "FLAGS", ())])
    environment = {**os.environ, "NPROC": "1", "JAX_TRACEBACK_FILTERING": "off", "XLA_FLAGS": flags}
    which = ",".join(map(str, numbers))
    words = [sys.executable, "-m", "tests.campaign", "--work", family, which]
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
            return
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
        return
    found.append({"name": current, "judgement": CRASH, "shown": f"exit status {status}"})
    _report(found[-1])


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
    parser.add_argument("--again", action="store_true", help="make only the stored faults again")
    parser.add_argument("--work", nargs=2, metavar=("FAMILY", "NUMBERS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work[0], [int(number) for number in given.work[1].split(",")])
        return 0
    out = given.out or Path("out/campaign")
    out.mkdir(parents=True, exist_ok=True)
    results = _stored(out)
    for family in given.families:
        results[family] = collect(family, results.get(family, []) if given.again else [])
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
    """Write all outcomes as JSON, what is shown of faults alone, and the counts as a table."""
    results = {
        family: [o if o["judgement"] in BAD else {**o, "shown": ""} for o in outcomes]
        for family, outcomes in results.items()
    }
    stored = {
        "iterdiff": itd.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "results": results,
    }
    (out / "campaign.json").write_text(json.dumps(stored) + "\n", encoding="utf-8")
    (out / "campaign.md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
