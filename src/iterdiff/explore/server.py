"""Start the explorer: a server that this machine alone can reach, and that asks nobody anything."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from iterdiff.jaxtools.extras import import_extra

ADDRESS = "127.0.0.1"
"""The loopback address: no other machine can reach it."""

MAX_UPLOAD_MB = 50
"""Largest table that a reader may give, in megabytes."""

OPTIONS = {
    "server.address": ADDRESS,
    "browser.serverAddress": ADDRESS,
    "browser.gatherUsageStats": "false",
    "server.showEmailPrompt": "false",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": str(MAX_UPLOAD_MB),
    "client.toolbarMode": "viewer",
    "runner.magicEnabled": "false",
    "global.developmentMode": "false",
}
"""What Streamlit is told: no telemetry, no other machine, no question on the terminal."""


QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
"""Flags of XLA with which it compiles in half the time: the programs are small and run rarely."""


def command(path: Path | None, port: int | None, browser: bool) -> list[str]:
    """Return the words that start the server.

    Parameters
    ----------
    path : Path, optional
        A study's folder or dataset to open.
    port : int, optional
        By default the first free one from 8501 on.
    browser : bool
        Whether to open a browser.

    Raises
    ------
    ImportError
        If Streamlit or Plotly is not installed.
    ValueError
        If the port is in use.
    """
    for library in ("streamlit", "plotly"):
        import_extra(library, "explore")
    options = {**OPTIONS, "server.headless": str(not browser).lower()}
    if port is not None:
        _check_free(port)
        options["server.port"] = str(port)
    words = [f"--{name}={value}" for name, value in options.items()]
    app = Path(__file__).with_name("app.py")
    given = [] if path is None else ["--", str(path.resolve())]
    return [sys.executable, "-m", "streamlit", "run", str(app), *words, *given]


def environment() -> dict[str, str]:
    """Return the variables of the server's process; those that are set already stay.

    JAX computes with one thread: its linear algebra may hang with several, before JAX 0.12.
    """
    return {"XLA_FLAGS": QUICK, "NPROC": "1", **os.environ}


def serve(words: list[str]) -> int:
    """Run the server until it is interrupted; return its exit status."""
    server = subprocess.Popen(words, env=environment())
    try:
        return server.wait()
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
        return 0


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"`--port` {port} cannot be used ({error}). Leave it out, or give another one."
            ) from error
