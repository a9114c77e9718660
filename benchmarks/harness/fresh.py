"""Measurements that need a process of their own: peak memory, imports, first calls."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """Return the most memory that this process has held.

    Linux counts it for the program alone; elsewhere the figure may contain what the process
    inherited from the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def fresh(module: str, *arguments: str) -> Any:
    """Run ``python -m module arguments`` in a fresh process; return the JSON it prints last.

    It finds every library in bytecode, as installed ones are, and leaves that of this checkout
    behind, wherever `PYTHONDONTWRITEBYTECODE` is set: the first run compiles it, the next do not.
    """
    root = Path(__file__).resolve().parents[1]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=root,
        env={**kept, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])
