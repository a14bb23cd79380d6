"""Start of worker processes: signal handling, limit of open files, termination."""

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

PR_SET_PDEATHSIG = 1  # Linux's prctl option: the signal that a process gets when its parent dies

DESCRIPTORS = 4096
"""Limit of open files that a process with workers requests."""

_torch_handler: Handler = None  # PyTorch's handler of SIGCHLD, which raises an error when a worker died


def restore_sigchld(previous: Handler) -> None:
    """Replaces the handler that PyTorch installs with its first workers by the previous one.

    PyTorch's would raise its error anywhere in the training: in a backward pass, or while it saves.
    """
    global _torch_handler
    if previous is None or threading.current_thread() is not threading.main_thread():
        return
    current = signal.getsignal(signal.SIGCHLD)
    if current is not previous:
        _torch_handler = current
        signal.signal(signal.SIGCHLD, previous)


@contextmanager
def no_worker_count_warning() -> Iterator[None]:
    """Suppresses PyTorch's warning: more workers than processors make sense where reading waits for a network."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


@contextmanager
def torch_sigchld() -> Iterator[None]:
    """Activates PyTorch's handler, which interrupts waiting for a batch when a worker dies."""
    if _torch_handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGCHLD)
    try:  # includes the installation: the handler may be called, and raise, at once
        signal.signal(signal.SIGCHLD, _torch_handler)
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous)


def raise_file_limit() -> None:
    """Raises this process's limit of open files: each batch in transfer needs one descriptor, each worker five."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@functools.cache
def exiting_flag() -> ctypes.c_bool:
    """A flag shared with the workers: true when this process exits and terminates them."""
    flag = multiprocessing.RawValue(ctypes.c_bool, False)
    # Not atexit: a process that multiprocessing itself started does not run it, and would wait for its workers forever.
    multiprocessing.util.Finalize(None, setattr, args=(flag, "value", True), exitpriority=100)
    return flag


def start_method() -> str | None:
    """The start method of workers: fork on Linux, else the system's default.

    A process spawned by our launcher would otherwise spawn its workers too: each would import all modules again, which
    takes seconds, and copy the data set.
    """
    return "fork" if sys.platform == "linux" else None


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Holds back Ctrl-C from this thread, and from processes that it starts meanwhile.

    They would print a traceback while they import; each calls `release_interrupts` once it can handle the signal.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release_interrupts() -> None:
    """Delivers Ctrl-C to this process again, also one that was held back."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))


def init_worker(exiting: ctypes.c_bool, worker: int) -> None:
    """Limits a worker to one thread and makes it ignore signals to the whole job.

    Ctrl-C and a cluster's SIGTERM reach every process of a job at once. The main process saves before it stops and
    needs its workers until then, so a worker obeys SIGTERM only when the main process exits. Its own process group
    protects it from the signal that torchrun sends to a whole group. It is killed when its main process dies: a fork
    holds the connections to other processes too, which would otherwise seem alive for seconds.
    """
    cv2.setNumThreads(0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and sys.platform != "win32" and os.getppid() != parent.pid:
        os._exit(0)  # it died before the option was set
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    release_interrupts()
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if exiting.value else None)
