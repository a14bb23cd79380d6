"""Energy that a GPU has used, as its driver counts it; nothing is estimated.

NVIDIA's counter is read through nvidia-ml-py, where that is installed and the GPU has one (Volta and later, not parts
of a GPU). What processors, memory and cooling use is not in it.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)


class GpuEnergy:
    """The energy of one GPU since the last call.

    Args:
        device: any; others than NVIDIA's GPUs have no counter.
    """

    def __init__(self, device: torch.device) -> None:
        self._library: Any = None
        self._handle: Any = None
        self._before = 0
        if device.type != "cuda":
            return
        try:
            self._library = importlib.import_module("pynvml")
            self._library.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = self._library.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
            self._before = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except Exception as error:  # the library has an error class for each cause, and may be missing or another one
            self._handle = None
            logger.debug("the energy of the GPU is not measured: %s: %s", type(error).__name__, error)

    def joules(self) -> float | None:
        """Joules since the last call, or since the start; None where there is no counter.

        Other processes on the same GPU count too.
        """
        if self._handle is None:
            return None
        try:
            now = self._library.nvmlDeviceGetTotalEnergyConsumption(
                self._handle
            )  # millijoules since the driver's start
        except Exception:
            return None
        passed, self._before = now - self._before, now
        return passed / 1000 if passed >= 0 else None
