"""Two processes of one group, as torchrun would start them."""

from __future__ import annotations

from tests.distributed.ports import free_port
from tests.forked import ForkedPython


def run_pair(*words: object) -> None:
    """Runs a program in the processes of rank 0 and 1 of a group; both must succeed and report no traceback."""
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    pair = [ForkedPython(*words, **group, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in (0, 1)]
    errors = [process.communicate(timeout=300)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors
    assert "Traceback" not in "".join(errors)
