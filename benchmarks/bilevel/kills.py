"""Kill outer runs at random moments and resume them: ``python -m benchmarks.bilevel.kills``.

A child process compiles its programs, reports that it is ready, and starts an outer run with
snapshots. It is killed (SIGKILL) after a random part of the time that a run takes. The next child
resumes. When one has finished, the result is compared with that of a run that nobody disturbed, bit
by bit, and the next run begins.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

READY = "ready"


def child(path: str) -> None:
    """Run once to compile, report, and run with snapshots; print theta and the work."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp

    import iterdiff as itd

    problem = itd.Minimization(lambda x, theta: jnp.sum(jnp.cosh(x - theta) + x**2 / 2))

    def loss(x, theta):
        return jnp.sum((x - 1.0) ** 2) / 2 + 0.05 * jnp.sum(theta**4)

    run = (loss, problem, itd.GradientDescent(0.1), jnp.zeros(3), jnp.array([0.3, 1.0, 2.0]))
    start = time.perf_counter()
    itd.bilevel.minimize(*run, rtol=1e-10)
    start = time.perf_counter()
    whole = itd.bilevel.minimize(*run, rtol=1e-10)
    print(READY, time.perf_counter() - start, flush=True)
    result = itd.bilevel.minimize(*run, rtol=1e-10, resume=path)
    same = bool(jnp.all(result.theta == whole.theta)) and result.gradients == whole.gradients
    print("same" if same else "different", flush=True)


def main() -> None:
    """Kill, resume, compare; write the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/bench/bilevel-kills.json"))
    parser.add_argument("--child", default="")
    given = parser.parse_args()
    if given.child:
        child(given.child)
        return
    draw = random.Random(given.seed)
    found = {"seed": given.seed, "kills": 0, "mid_run": 0, "same": 0, "different": 0, "failed": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.npz"
        while found["kills"] < given.kills:
            command = [sys.executable, "-m", "benchmarks.bilevel.kills", "--child", str(path)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            line = process.stdout.readline().split()
            if not line:
                found["failed"] += 1
                break
            time.sleep(draw.uniform(0.0, 2.0) * float(line[1]))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            last = process.stdout.read().strip()
            process.wait()
            if last:
                found[last] += 1
                path.unlink(missing_ok=True)
            else:
                found["kills"] += 1
                found["mid_run"] += path.exists()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()
