"""Run the cells of a grid on any executor, and survive the loss of its processes."""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import signal
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from typing import Any

from iterdiff.jaxtools.extras import import_extra
from iterdiff.study.cell import CellOutcome, CellTask, cause_of, compute

BATCH_SECONDS = 5.0
"""How long the work of one submission should take. A crash loses at most this much per process."""

REMEMBERED_TIMES = 5
"""Submissions from whose median the time of a cell is judged: a compilation is an exception."""

MAX_BATCH = 256
"""Upper limit of the number of cells in one submission."""

WAIT_SECONDS = 0.5
"""Longest wait for a result before an interrupt is noticed."""

POLL_SECONDS = 0.05
"""Time between two questions to an executor that does not say when it is done."""

DEFAULT_WINDOW = 64
"""Submissions that wait in an executor whose number of workers is not known."""

LOST = "the process that computed it ended abruptly: it was killed, crashed, or ran out of memory"


@dataclasses.dataclass(frozen=True)
class Pool:
    """Where cells are computed.

    Attributes
    ----------
    make : callable
        Returns an executor: anything with ``submit(function, *args)`` and ``shutdown()`` whose
        results have ``done()`` and ``result()``.
    window : int
        How many submissions are handed over at a time.
    replaceable : bool
        Whether `make` may be called again after the executor broke.
    owned : bool
        Whether to shut the executor down at the end.
    close : callable
        Called at the end.
    """

    make: Callable[[], Any]
    window: int = DEFAULT_WINDOW
    replaceable: bool = False
    owned: bool = False
    close: Callable[[], Any] = lambda: None


class InProcess(Executor):
    """Computes in this process, when the work is submitted."""

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Return the finished result."""
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def this_process() -> Pool:
    """Return the pool that computes in this process."""
    return Pool(InProcess, window=1)


def processes(jobs: int) -> Pool:
    """Return a pool of processes on this machine.

    Raises
    ------
    ValueError
        If `jobs` is less than 1.
    """
    if jobs < 1:
        raise ValueError(f"`jobs` must be at least 1, not {jobs}.")
    # A fork of a process in which JAX has started threads may hang.
    context = multiprocessing.get_context("spawn")

    def make() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(jobs, context, _start_worker)

    return Pool(make, window=2 * jobs, replaceable=True, owned=True)


def _start_worker() -> None:
    """Leave interrupts to the parent, and the other cores to the other processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_one_thread()


def use_one_thread() -> None:
    """Let JAX compute with one thread, unless the variable `NPROC` says otherwise.

    Cells are small and many: processes use the cores better. Has no effect once JAX has computed.
    """
    os.environ.setdefault("NPROC", "1")


def cluster(address: str, timeout: str = "10s") -> Pool:
    """Return the pool of a Dask cluster.

    Parameters
    ----------
    address : str
        The address of its scheduler, such as ``tcp://127.0.0.1:8786``.
    timeout : str
        How long to wait for an answer, in words of Dask.

    Raises
    ------
    ImportError
        If Dask is not installed.
    ValueError
        If no scheduler answers.
    """
    distributed = import_extra("distributed", "distributed")
    try:
        client = distributed.Client(address, timeout=timeout)
    except (OSError, ValueError) as error:
        raise ValueError(f"`scheduler`: none answers at {address} ({error}).") from error
    workers = sum(client.nthreads().values())
    window = max(16, 4 * workers)
    return Pool(lambda: client.get_executor(pure=False), window, close=client.close)


def execute(
    tasks: Iterator[CellTask], pool: Pool, finish: Callable[[CellTask, CellOutcome], None]
) -> None:
    """Compute cells, and hand over each outcome as soon as it is there.

    A process that ends abruptly takes its executor with it. Its cells are then computed one at a
    time, each in an executor of its own, so that the one that ends its process is known and fails,
    and the others are done.

    Parameters
    ----------
    tasks : iterator of CellTask
        Read as needed.
    pool : Pool
        Where to compute.
    finish : callable
        Called in this thread as ``finish(task, outcome)``.

    Raises
    ------
    BrokenExecutor
        If an executor broke that cannot be replaced.
    """
    run = _Run(tasks, pool, finish)
    try:
        while run.fill():
            for future in run.finished():
                run.collect(future)
        if pool.owned:
            run.executor.shutdown()
    except BaseException:
        run.abandon()
        raise
    finally:
        pool.close()


class _Run:
    """The state of `execute`: what is handed over, and how large a submission should be."""

    def __init__(self, tasks: Iterator[CellTask], pool: Pool, finish: Callable):
        self.tasks, self.pool, self.finish = tasks, pool, finish
        self.executor = pool.make()
        self.pending: dict[Any, list[CellTask]] = {}
        self.singles: list[CellTask] = []
        self.batch = 1
        self.times: deque[float] = deque(maxlen=REMEMBERED_TIMES)

    def fill(self) -> bool:
        """Hand over work; return whether any is waiting."""
        while len(self.pending) < self.pool.window:
            batch = [self.singles.pop()] if self.singles else []
            batch = batch or list(itertools.islice(self.tasks, self.batch))
            if not batch:
                break
            try:
                future = self.executor.submit(compute, batch)
            except BrokenExecutor:
                self._replace(batch)
                continue
            self.pending[future] = batch
        return bool(self.pending)

    def finished(self) -> Sequence[Any]:
        """Wait for results; return those that are there."""
        if all(isinstance(future, Future) for future in self.pending):
            return list(wait(self.pending, WAIT_SECONDS, FIRST_COMPLETED).done)
        done = [future for future in self.pending if future.done()]
        if not done:
            time.sleep(POLL_SECONDS)
        return done

    def collect(self, future: Any) -> None:
        """Take one result."""
        batch = self.pending.pop(future, None)
        if batch is None:  # it was lost with the executor
            return
        try:
            outcomes = future.result()
        except BrokenExecutor:
            self._replace(batch)
            return
        except Exception as error:
            if len(batch) > 1:
                self.singles += batch
            else:
                self.finish(batch[0], CellOutcome(None, cause_of(error)))
            return
        self._finish(batch, outcomes)
        self.times.append(sum(outcome.seconds for outcome in outcomes) / len(batch))
        seconds = max(statistics.median(self.times), BATCH_SECONDS / MAX_BATCH)
        wanted = int(BATCH_SECONDS / seconds)
        self.batch = max(1, min(wanted, 2 * max(self.batch, len(batch))))

    def _finish(self, batch: list[CellTask], outcomes: list[CellOutcome]) -> None:
        for task, outcome in zip(batch, outcomes, strict=True):
            self.finish(task, outcome)

    def _replace(self, batch: list[CellTask]) -> None:
        """Compute the cells of a broken executor one at a time, then go on with a new one."""
        if not self.pool.replaceable:
            raise BrokenExecutor(
                "The executor broke: one of its processes ended abruptly. Run again to go on."
            )
        suspects = list(batch)
        for future, lost in self.pending.items():
            if future.done() and future.exception() is None:
                self._finish(lost, future.result())
            else:
                suspects += lost
        self.pending.clear()
        self.executor.shutdown(wait=False)
        self.executor = self.pool.make()
        for task in suspects:
            try:
                [outcome] = self.executor.submit(compute, [task]).result()
            except BrokenExecutor:
                outcome = CellOutcome(None, LOST)
                self.executor.shutdown(wait=False)
                self.executor = self.pool.make()
            self.finish(task, outcome)
        self.batch = 1

    def abandon(self) -> None:
        """Drop what is not finished, and end the processes of this pool."""
        for future in self.pending:
            with contextlib.suppress(Exception):
                future.cancel()
        if self.pool.owned:
            before = set(multiprocessing.active_children())
            self.executor.shutdown(wait=False, cancel_futures=True)
            for process in before:
                process.terminate()
