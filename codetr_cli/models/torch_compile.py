"""`torch.compile` for the parts of the network whose control flow depends only on shapes."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

from torch import nn

from codetr_cli.files import COMPILED_FOLDER, cache_dir
from codetr_cli.models.codetr import CoDETR

logger = logging.getLogger(__name__)

HOST_COMPILERS = ("g++", "clang++", "c++", "cl")


def compile_static_parts(model: CoDETR, *, backend: str = "inductor") -> CoDETR:
    """Compiles backbone, neck and each layer of encoder and decoder on their first run; in place.

    The names of the weights stay the same. The first image is slow; from the second size on, sizes are dynamic. Layers
    of the same kind share their compiled code.

    Args:
        model: on its device.
        backend: of torch.compile; "eager" and "aot_eager" need no compiler.

    Returns:
        the same network.
    """
    if backend == "inductor":
        use_private_cache()
    parts: list[nn.Module] = [model.backbone, model.neck, *model.encoder.layers, *model.decoder.layers]
    for part in parts:
        part.compile(fullgraph=True, backend=backend)
    return model


def use_private_cache() -> None:
    """Has torch keep compiled code, which it loads again, where only this user can write.

    Its default is a folder of a predictable name in /tmp, which anybody may have made before. A folder that the user
    named with TORCHINDUCTOR_CACHE_DIR is used as it is.
    """
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return
    folder = private_cache()
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="codetr-compiled-"))
        atexit.register(_remove, folder, os.getpid())
        logger.info(
            "compiled code is kept in %s until the end: it cannot be in %s, or others could write there",
            *(folder, cache_dir() / COMPILED_FOLDER),
        )
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def private_cache() -> Path | None:
    """The folder of the cache where only this user can write; None: it cannot be made, or others could write there."""
    folder = cache_dir() / COMPILED_FOLDER
    return folder if _is_private(folder) else None


def _remove(folder: Path, owner: int) -> None:
    """Deletes a folder at the end of the process that made it, not of one that was forked from it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _is_private(folder: Path) -> bool:
    """Whether a folder, which is made if necessary, belongs to this user, who alone can write to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    if not stat.S_ISDIR(status.st_mode) or not os.access(folder, os.W_OK):
        return False
    return os.name != "posix" or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def why_not_compile(device_type: str) -> str | None:
    """The reason why networks cannot be compiled here for "cpu" or "cuda", one sentence; None where they can."""
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton for GPU kernels, and Triton is not installed."
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else list(HOST_COMPILERS)
    if not any(shutil.which(name) for name in wanted):
        return f"torch.compile needs a C++ compiler, and this machine has no {' or '.join(wanted)}."
    return None
