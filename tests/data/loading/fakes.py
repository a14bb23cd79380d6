"""Images that make the worker that reads them fail, and a comparison of batches."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch

from codetr_cli.data.batch import Batch
from codetr_cli.data.targets import Target

ORDER = [[(0, index), (0, index + 1)] for index in range(0, 12, 2)]


class Images:
    """Random images, of which some do something to the worker that reads them."""

    def __init__(self, folder: Path, fault: str = "", at: int = 5, times: int = 1) -> None:
        self.folder, self.fault, self.at, self.times = folder, fault, at, times

    def __len__(self) -> int:
        return 12

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[np.ndarray, Target]:
        index = key[1] if isinstance(key, tuple) else key
        if self.fault and index == self.at and self._is_due():
            if self.fault == "stop":
                time.sleep(60)
            if self.fault == "exit":
                os._exit(3)
            if self.fault == "memory":
                raise MemoryError
            os.kill(os.getpid(), getattr(signal, self.fault))
        random = np.random.default_rng(index)
        height, width = random.integers(20, 60, 2).tolist()
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        target = {
            "boxes": torch.from_numpy(random.random((index, 4), dtype=np.float32)),
            "labels": torch.arange(index),
            "image_id": index,
            "size": (height, width),
            "pad_size": (height + 3, width + 5),
            "masks": torch.from_numpy(random.integers(0, 2, (index, height + 3, width + 5), dtype=np.uint8)),
        }
        return image, target

    def image_path(self, index: int) -> Path:
        return self.folder / f"{index}.jpg"

    def _is_due(self) -> bool:
        done = len(list(self.folder.glob("fault*")))
        if done < self.times:
            (self.folder / f"fault{done}").touch()
        return done < self.times


def same(first: list[Batch], second: list[Batch]) -> bool:
    for a, b in zip(first, second, strict=True):
        if not (torch.equal(a.images, b.images) and torch.equal(a.padding_mask, b.padding_mask)):
            return False
        for one, other in zip(a.targets, b.targets, strict=True):
            if list(one) != list(other) or any(
                not torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one
            ):
                return False
    return True
