"""Inference at recurring sizes as CUDA graphs: a batch is one launch instead of about a thousand.

A graph is recorded when a shape of input comes for the second time, from the normalized images to the rows of
detections: backbone, encoder, decoder and the part of the post-processing that runs on the device. It replays on the
same memory, so inputs are copied into static buffers and results are copied to the host before the next batch. What
has another shape in every image stays outside: masks of instances, and boxes that soft-NMS could not settle.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from codetr_cli.boxes import Targets
from codetr_cli.config.schema import TestConfig
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.models.build import build_postprocess
from codetr_cli.models.codetr import CoDETR, Encoded
from codetr_cli.models.constants import used_constants
from codetr_cli.models.postprocess import Detections, PostProcess, image_geometry

logger = logging.getLogger(__name__)

MAX_GRAPHS = 8
"""Graphs that are kept, the most recently used ones. Intermediate values share one memory pool."""

WARMUP_RUNS = 2
"""Runs before the recording, in which kernels are compiled and tuned, and constants computed."""

MAX_REMEMBERED_SHAPES = 1024

SCORE_TOLERANCE = 0.01
"""A replay whose class scores differ by more from those of a plain run is not used."""


class Network(Protocol):
    """What detects objects: `CoDETR`, one whose batches are replayed, or an exported file."""

    def detect(
        self, images: Tensor, padding_mask: Tensor | None, targets: Targets, postprocess: PostProcess
    ) -> list[Detections]:
        """As `CoDETR.detect`."""


@dataclass(frozen=True)
class Outputs:
    """What the recorded region leaves in device memory.

    Attributes:
        rows: (B, N, 7) of `PostProcess.rows`.
        logits: (B, Q, K).
        boxes: (B, Q, 4) cxcywh in [0, 1].
        encoded: for the masks of a network that predicts them.
    """

    rows: Tensor
    logits: Tensor
    boxes: Tensor
    encoded: Encoded | None


@dataclass(frozen=True)
class Recording:
    """A recorded region.

    Attributes:
        outputs: of the region, refreshed by every replay; undefined before the first.
        replay: runs the region.
        plain: outputs of the region before it was recorded, on the same inputs.
    """

    outputs: Outputs
    replay: Callable[[], None]
    plain: Outputs


Region = Callable[[], Outputs]
Capture = Callable[[Region], Recording]
"""Runs and records a region."""


class CudaCapture:
    """Records regions as CUDA graphs that share a memory pool: they must not run at the same time.

    Args:
        device: of everything in the regions.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, region: Region) -> Recording:
        """Warms up and records on a stream of its own.

        Raises:
            RuntimeError: something in the region waits for the device or cannot be recorded, or memory is exhausted.
        """
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        self._stream = self._stream or torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        before, graph = torch.cuda.current_stream(self.device), torch.cuda.CUDAGraph()
        try:
            self._stream.wait_stream(before)
            with torch.cuda.stream(self._stream):
                for _ in range(WARMUP_RUNS):
                    plain = region()
            before.wait_stream(self._stream)
            # Other threads, e.g. the one that pins batches, go on using CUDA.
            mode = "thread_local"
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
                outputs = region()
        finally:
            torch.cuda.set_stream(before)  # a recording that fails leaves its own stream
        return Recording(outputs, graph.replay, plain)


class GraphedNetwork:
    """Detects as its network does, from graphs where an input has the shape of an earlier one.

    Args:
        model: optimized for inference, in the `inference` context whenever it detects, always of the same precision.
        capture: records a region.
        max_graphs: number of graphs that are kept.
    """

    def __init__(self, model: CoDETR, capture: Capture, *, max_graphs: int = MAX_GRAPHS) -> None:
        self.model = model
        self._capture, self._max_graphs = capture, max_graphs
        self._graphs: OrderedDict[object, _Graph] = OrderedDict()
        self._shapes: set[object] = set()  # that came once
        self._plain_only = False
        self._lock = threading.Lock()  # graphs share buffers: one batch after the other, whichever thread it is of

    def __len__(self) -> int:
        """Number of graphs."""
        return len(self._graphs)

    def detect(
        self, images: Tensor, padding_mask: Tensor | None, targets: Targets, postprocess: PostProcess
    ) -> list[Detections]:
        """Detections in the pixels of the original images; arguments and errors as for `CoDETR.detect`."""
        if not self._plain_only and can_be_recorded(postprocess):
            padding_mask = self.model.needed_mask(images, padding_mask, targets)
            with self._lock:
                graph = self._graph(images, padding_mask, targets, postprocess)
                if graph is not None:
                    return graph.detect(images, padding_mask, targets, postprocess)
        return self.model.detect(images, padding_mask, targets, postprocess)

    def _graph(
        self, images: Tensor, padding_mask: Tensor | None, targets: Targets, postprocess: PostProcess
    ) -> _Graph | None:
        """The graph of inputs of this shape, recorded when they come for the second time."""
        key = _key(images, padding_mask, postprocess)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        if key not in self._shapes:
            if len(self._shapes) >= MAX_REMEMBERED_SHAPES:
                self._shapes.clear()
            self._shapes.add(key)
            return None
        while len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)
        inputs = _Inputs.like(images, padding_mask, targets)
        try:
            self._graphs[key] = _Graph(self.model, postprocess, inputs, self._capture)
        except RuntimeError as error:
            self._plain_only = True
            self._graphs.clear()
            reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
            shape = " x ".join(str(side) for side in images.shape)
            logger.warning("inference runs without CUDA graphs: a batch of %s was not recorded: %s", shape, reason)
            return None
        return self._graphs[key]


@dataclass(frozen=True)
class _Inputs:
    """Static buffers: images (B, 3, H, W), their padding (B, H, W) if any, and `image_geometry` (2, B, 4)."""

    images: Tensor
    padding_mask: Tensor | None
    geometry: Tensor

    @classmethod
    def like(cls, images: Tensor, padding_mask: Tensor | None, targets: Targets) -> _Inputs:
        """Buffers with these values."""
        mask = None if padding_mask is None else padding_mask.clone()
        return cls(images.clone(memory_format=torch.contiguous_format), mask, image_geometry(targets, images))

    def fill(self, images: Tensor, padding_mask: Tensor | None, targets: Targets) -> None:
        """Replaces the values by those of another batch."""
        self.images.copy_(images)
        if self.padding_mask is not None and padding_mask is not None:
            self.padding_mask.copy_(padding_mask)
        self.geometry.copy_(image_geometry(targets, images))


class _Graph:
    """One recorded region with its buffers, and everything that it reads beside them."""

    def __init__(self, model: CoDETR, postprocess: PostProcess, inputs: _Inputs, capture: Capture) -> None:
        self.model, self.inputs = model, inputs

        def region() -> Outputs:
            with _without_cached_casts():
                return static_part(model, postprocess, inputs.images, inputs.padding_mask, inputs.geometry)

        # The graph has the addresses of the constants: they must not be freed while it may run.
        with used_constants() as self._constants:
            recording = capture(region)
        self.outputs, self._replay = recording.outputs, recording.replay
        self._check(recording.plain)

    def _check(self, plain: Outputs) -> None:
        """Compares a replay with the run before the recording.

        Raises:
            RuntimeError: they differ.
        """
        self._replay()
        difference = (self.outputs.logits.sigmoid() - plain.logits.sigmoid()).abs().max().item()
        if not difference <= SCORE_TOLERANCE:
            raise RuntimeError(f"its class scores differ by {difference:.2g} from those of a plain run")

    def detect(
        self, images: Tensor, padding_mask: Tensor | None, targets: Targets, postprocess: PostProcess
    ) -> list[Detections]:
        self.inputs.fill(images, padding_mask, targets)
        self._replay()
        outputs = self.outputs
        detections = postprocess.read_rows(outputs.rows, outputs.logits, outputs.boxes, self.inputs.geometry)
        if outputs.encoded is None:
            return detections
        return self.model.add_masks(outputs.encoded, detections, targets, postprocess)


def static_part(
    model: CoDETR, postprocess: PostProcess, images: Tensor, padding_mask: Tensor | None, geometry: Tensor
) -> Outputs:
    """The part of a detection whose work depends on shapes alone: no wait for the device, and no data from the host.

    Args:
        model: in the `inference` context.
        postprocess: with soft or no NMS.
        images: (B, 3, H, W) normalised; zero where `padding_mask` is True.
        padding_mask: bool (B, H, W), True = padding; None: no padding.
        geometry: (2, B, 4) of `image_geometry`.
    """
    encoded = model.encode(images, padding_mask)
    outputs = model.predict(encoded)
    logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
    rows = postprocess.rows(logits, boxes, geometry)
    return Outputs(rows, logits, boxes, None if model.mask_branch is None else encoded)


def with_cuda_graphs(model: CoDETR | ExportedNetwork, test: TestConfig, device: torch.device) -> Network:
    """The network as `test.cuda_graph` asks for it; logs why it stays as it is where graphs were requested.

    Args:
        model: graphs are of networks that are optimized for inference; others are returned as they are.
        test: its settings.
        device: where the model is.
    """
    requested = test.cuda_graph
    automatic = requested == "auto" and test.canvas is not None
    if not (requested is True or automatic):
        return model
    if device.type != "cuda":
        if requested is True:
            logger.warning("test.cuda_graph=true has no effect: CUDA graphs need a GPU, the device is %s", device)
        return model
    if isinstance(model, ExportedNetwork) or not model.optimized_for_inference:
        return model
    if requested is True and not can_be_recorded(build_postprocess(test)):
        logger.warning("test.cuda_graph=true has no effect: auxiliary heads and hard NMS cannot be recorded")
        return model
    return GraphedNetwork(model, CudaCapture(device))


def can_be_recorded(postprocess: PostProcess) -> bool:
    """Whether the work of a post-processing depends on shapes alone: of the decoder's head, without hard NMS."""
    return postprocess.head == "decoder" and postprocess.nms != "hard"


def _key(images: Tensor, padding_mask: Tensor | None, postprocess: PostProcess) -> object:
    """What a graph is for: shapes, whether there is padding, the dtype of autocast, the post-processing."""
    kind = images.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else images.dtype
    of_rows = ("max_detections", "candidates", "nms", "nms_iou", "nms_min_score")
    return (*images.shape, padding_mask is None, dtype, *(getattr(postprocess, name) for name in of_rows))


@contextlib.contextmanager
def _without_cached_casts() -> Iterator[None]:
    """Autocast keeps no weights in reduced precision: it would free them, and the graph has their addresses."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
