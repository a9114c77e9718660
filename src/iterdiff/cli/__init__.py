"""The command ``iterdiff``: run the built-in studies, or your own, from a terminal."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import iterdiff as itd
from iterdiff.cli.parser import make_parser

USAGE_ERROR = 2
INTERRUPTED = 130
INTERRUPTED_MESSAGE = "iterdiff: interrupted; no file was written."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default the arguments of the process.

    Returns
    -------
    int
        The exit status: 0; 1 if some cells of a grid failed; 2 after an error, which is reported in
        one line; 130 after an interrupt.

    Notes
    -----
    Everything runs in float64: this switches on JAX's ``jax_enable_x64`` for the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with _interrupts_end_the_process():
            parsed = make_parser().parse_args(arguments)
            parsed.arguments = list(arguments)
            import jax

            jax.config.update("jax_enable_x64", True)
            command = parsed.load(parsed)
        return command() or 0
    except KeyboardInterrupt:
        print(INTERRUPTED_MESSAGE, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if "--traceback" in arguments:
            raise
        print(f"iterdiff: error: {_in_one_line(error)}", file=sys.stderr)
        return USAGE_ERROR


@contextlib.contextmanager
def _interrupts_end_the_process() -> Iterator[None]:
    """Let an interrupt end the process at once, while libraries are imported.

    The initialisation of an extension module may drop a KeyboardInterrupt, or crash. Only the main
    thread receives signals.
    """

    def end(number: int, frame: Any) -> NoReturn:
        del number, frame
        print(INTERRUPTED_MESSAGE, file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _in_one_line(error: Exception) -> str:
    """Return the message of an error; with its type, if it is none of those that explain."""
    text = " ".join(str(error).split())
    explains = isinstance(error, ImportError | OSError | TypeError | ValueError | itd.SolveError)
    if explains and text:
        return text
    kind = type(error).__name__
    return f"{kind}{f': {text}' if text else ''} (`iterdiff --traceback ...` shows where)"
