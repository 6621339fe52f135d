"""A pool of processes for NumPy work: none outlives its parent, and Ctrl-C ends them at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ProcessDiedError(Exception):
    """A process of the pool was killed: one line."""


@contextmanager
def process_pool(
    num_processes: int, prepare: Callable[..., None] | None = None, arguments: tuple[object, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """So many processes of one thread each, which first call prepare(*arguments). Raises ProcessDiedError.

    Spawned, since a fork would copy the locks that other threads hold (a progress bar's, BLAS's).
    """
    spawn = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with _one_thread():
        pool = ProcessPoolExecutor(num_processes, spawn, _start, (prepare, arguments))
        try:
            yield pool
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise ProcessDiedError("a process was killed, perhaps for want of memory; try fewer cases") from None
            raise
        pool.shutdown()


@contextmanager
def _one_thread() -> Iterator[None]:
    """In processes that are started meanwhile: they read the environment when they import NumPy, before `_start`."""
    before = {name: os.environ[name] for name in THREADS if name in os.environ}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name in THREADS:
            del os.environ[name]
        os.environ.update(before)


def _start(prepare: Callable[..., None] | None, arguments: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    threading.Thread(target=_follow_parent, daemon=True).start()
    if prepare is not None:
        prepare(*arguments)


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
