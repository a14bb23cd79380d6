"""From a batch of pixels to detections: one path for evaluation, prediction and benchmarks, so that they agree."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from codetr_cli.boxes import Targets
from codetr_cli.data.batch import Batch, normalize
from codetr_cli.inference.cuda_graph import Network
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.models.postprocess import Detections, PostProcess
from codetr_cli.runtime.precision import autocast_dtype, float32_arithmetic, resolve_precision
from codetr_cli.runtime.timing import Stopwatch


@contextlib.contextmanager
def inference(model: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """Evaluation mode, inference mode and the arithmetic of a precision; the model's mode is restored afterwards.

    Tensors that a module keeps must be made under `torch.inference_mode(mode=False)`, or training cannot use them.

    Args:
        model: the network, or an exported one, which has the arithmetic of its file whatever the precision.
        device: where the network runs.
        precision: "auto" (fp32), "fp32", "tf32", "bf16" or "fp16".

    Raises:
        ConfigError: the device does not have this precision.
    """
    if isinstance(model, ExportedNetwork):
        with torch.inference_mode():
            yield
        return
    resolved = resolve_precision(precision)
    dtype = autocast_dtype(resolved, device)
    was_training = model.training
    model.eval()
    try:
        with (
            torch.inference_mode(),
            float32_arithmetic(resolved, device),
            torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
        ):
            yield
    finally:
        model.train(was_training)


def detect(
    network: Network, postprocess: PostProcess, batch: Batch, *, mean: Sequence[float], std: Sequence[float]
) -> list[Detections]:
    """Detections of every image of a batch in the pixels of its original image, on the batch's device.

    Args:
        network: in the `inference` context, see `with_cuda_graphs`.
        postprocess: as built from the settings.
        batch: on the model's device.
        mean: of each RGB channel, 0..255.
        std: standard deviation of each RGB channel, 0..255.
    """
    takes_pixels = isinstance(network, ExportedNetwork) and network.takes_pixels
    images = batch.images if takes_pixels else normalize(batch.images, batch.padding_mask, mean, std)
    return network.detect(images, batch.padding_mask, batch.targets, postprocess)


@dataclass(frozen=True, kw_only=True)
class TimedPostProcess(PostProcess):
    """A post-processing that measures how long it takes.

    Args:
        stopwatch: measures every call.
    """

    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @classmethod
    def around(cls, postprocess: PostProcess) -> TimedPostProcess:
        """The same post-processing, timed."""
        return cls(**{name: getattr(postprocess, name) for name in PostProcess.__dataclass_fields__})

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> list[Detections]:
        """As `PostProcess.__call__`."""
        with self.stopwatch.measure(logits.device):
            return super().__call__(logits, boxes, targets)

    @property
    def seconds(self) -> list[float]:
        """Of every call; waits for a GPU to finish the last one."""
        return self.stopwatch.seconds
