"""How worker processes are started: which signals reach whom, how many files may be open, how they end."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import cv2

Handler = Callable[[int, FrameType | None], Any] | int | None

PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent dies

DESCRIPTORS = 4096
"""Open files that a process with workers wants to be allowed, if the system lets it."""

_torch_hears: Handler = None  # torch's handler of SIGCHLD, which raises an error when a worker died


def keep_deaths_quiet(outside: Handler) -> None:
    """Takes away the handler that torch installs with its first workers.

    It would raise its error wherever the training is just then: within a backward pass, or while it saves.
    """
    global _torch_hears
    if outside is None or threading.current_thread() is not threading.main_thread():
        return
    inside = signal.getsignal(signal.SIGCHLD)
    if inside is not outside:
        _torch_hears = inside
        signal.signal(signal.SIGCHLD, outside)


@contextmanager
def many_workers_allowed() -> Iterator[None]:
    """Without torch's warning: more workers than processors may well be wanted, where reading waits for a network."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


@contextmanager
def hearing_of_deaths() -> Iterator[None]:
    """Lets torch's handler interrupt what waits for a batch."""
    if _torch_hears is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    outside = signal.getsignal(signal.SIGCHLD)
    try:  # from here on: it may be called, and raise, at once
        signal.signal(signal.SIGCHLD, _torch_hears)
        yield
    finally:
        signal.signal(signal.SIGCHLD, outside)


def allow_descriptors() -> None:
    """Raises this process's limit of open files as far as it may: each batch on its way needs one, each worker five."""
    try:
        import resource
    except ImportError:  # Windows knows no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@functools.cache
def leaving_flag() -> ctypes.c_bool:
    """A flag shared with the workers: true once this process exits and ends them."""
    flag = multiprocessing.RawValue(ctypes.c_bool, False)
    # Not atexit: a process that multiprocessing itself started ends without those and waits for its workers for ever.
    multiprocessing.util.Finalize(None, setattr, args=(flag, "value", True), exitpriority=100)
    return flag


def start_method() -> str | None:
    """How workers are started: as copies of this process on Linux, else as the system has it.

    A process that a launcher of ours started would otherwise start its workers as it was started itself: each would
    import everything anew, which takes seconds, and hold a data set of its own.
    """
    return "fork" if sys.platform == "linux" else None


def start_worker(leaving: ctypes.c_bool, worker: int) -> None:
    """Limits a worker to one thread and lets signals of strangers pass.

    Ctrl-C and a cluster's SIGTERM reach every process of a job at once. The main process saves before it stops and
    needs its workers until then, so a worker obeys SIGTERM only when the main process leaves. Its own process group
    keeps it out of reach of the signal that torchrun sends to a whole group. It dies with its main process at once:
    as a copy it holds the connections to other processes too, which would otherwise seem alive for seconds.
    """
    cv2.setNumThreads(0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and sys.platform != "win32" and os.getppid() != parent.pid:
        os._exit(0)  # it died before anyone was told to watch it
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if leaving.value else None)
