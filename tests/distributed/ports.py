"""Ports at which processes of a test meet."""

from __future__ import annotations

import os
import socket

FIRST, COUNT = 20_000, 12_000
"""Below the ports that Linux gives to outgoing connections (from 32,768), which could take a port before it is used."""


def free_port() -> int:
    """A port of this machine at which nothing listens; another one for each process that asks, and for each call."""
    start = int.from_bytes(os.urandom(4), "little")
    for number in range(COUNT):
        port = FIRST + (start + number) % COUNT
        with socket.socket() as server:
            try:
                server.bind(("localhost", port))
            except OSError:
                continue
        return port
    raise OSError(f"no free port in {FIRST} to {FIRST + COUNT - 1}")
