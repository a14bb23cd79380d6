"""CUDA graphs without a GPU: a recording that runs its region again stands in for a graph."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.inference import cuda_graph
from codetr_cli.inference.cuda_graph import (
    CudaCapture,
    GraphedNetwork,
    Outputs,
    Recording,
    Region,
    static_part,
    with_cuda_graphs,
)
from codetr_cli.inference.pipeline import inference
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.constants import used_constants
from codetr_cli.models.inference_mode import optimize_for_inference
from codetr_cli.models.postprocess import Detections, PostProcess, image_geometry
from codetr_cli.runtime.synthetic import randomize_weights
from tests.models.networks import SWIN, VIT
from tests.strict_device import strict_device, why_not

CPU = torch.device("cpu")


class FakeCapture:
    """Records a region as a graph does: a replay runs it with the values that its inputs have then.

    Args:
        damage: changes the outputs of every replay.
        error: raised instead of recording.
    """

    def __init__(self, damage: float = 0.0, error: Exception | None = None) -> None:
        self.damage, self.error = damage, error
        self.recorded = self.replayed = 0

    def __call__(self, region: Region) -> Recording:
        plain, outputs = region(), region()
        if self.error is not None:
            raise self.error
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            for old, new in zip(self._tensors(outputs), self._tensors(region()), strict=True):
                old.copy_(new)
            outputs.logits.add_(self.damage)

        for tensor in self._tensors(outputs):
            tensor.fill_(float("nan"))  # a graph computes nothing while it is recorded
        return Recording(outputs, replay, plain)

    @staticmethod
    def _tensors(outputs: Outputs) -> list[torch.Tensor]:
        encoded = [] if outputs.encoded is None else [outputs.encoded.memory]
        return [outputs.rows, outputs.logits, outputs.boxes, *encoded]


def make_model(settings: Any, *overrides: str) -> tuple[CoDETR, PostProcess]:
    settings = apply_overrides(settings, list(overrides))
    model = build_model(settings.model)
    randomize_weights(model)
    return optimize_for_inference(model), build_postprocess(settings.test)


def make_inputs(
    seed: int, size: tuple[int, int] = (64, 96), images: int = 2, valid: tuple[int, int] | None = None
) -> Any:
    """Images, padding mask, targets; the last image is smaller if `valid` says so."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, 3, *size, generator=generator)
    mask = torch.zeros(images, *size, dtype=torch.bool)
    sizes = [size] * images if valid is None else [*[size] * (images - 1), valid]
    for image, (height, width) in zip(mask, sizes, strict=True):
        image[height:], image[:, width:] = True, True
    targets = [
        {"size": s, "norm_size": s, "scale_factor": (1.0 + 0.1 * seed, 0.5), "orig_size": s, "pad_size": s}
        for s in sizes
    ]
    return pixels.masked_fill(mask[:, None], 0.0), mask, targets


def plain_detections(model: CoDETR, postprocess: PostProcess, inputs: Any) -> list[Detections]:
    """What a GPU detects without graphs."""
    images, mask, targets = inputs
    encoded = model.encode(images, model.needed_mask(images, mask, targets))
    outputs = model.predict(encoded)
    found = postprocess.at_once(outputs["pred_logits"], outputs["pred_boxes"], targets)
    return model.add_masks(encoded, found, targets, postprocess)


def assert_equal(ours: list[Detections], theirs: list[Detections]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert len(one) > 0
        for name in ("boxes", "scores", "labels", "masks"):
            a, b = getattr(one, name), getattr(other, name)
            assert (a is None and b is None) or torch.equal(a, b), name


@pytest.mark.parametrize("valid", [None, (48, 80)], ids=["full", "padded"])
@pytest.mark.parametrize("family", ["co_dino", "co_deformable"])
def test_replayed_detections_are_those_of_the_network(tiny_settings, family, valid):
    model, postprocess = make_model(tiny_settings, f"model.family={family}")
    capture = FakeCapture()
    graphed = GraphedNetwork(model, capture)
    with inference(model, CPU, "fp32"):
        graphed.detect(*make_inputs(0, valid=valid), postprocess)
        assert capture.recorded == 0, "a shape that came once may never come again"
        for seed in (1, 2, 3):
            smaller = None if valid is None else (valid[0] - seed, valid[1] - 2 * seed)
            inputs = make_inputs(seed, valid=smaller)
            assert_equal(graphed.detect(*inputs, postprocess), plain_detections(model, postprocess, inputs))
    assert (capture.recorded, len(graphed)) == (1, 1)
    assert capture.replayed == 1 + 3, "once to compare it with a plain run"


def test_threads_do_not_mix_their_batches(tiny_settings):
    model, postprocess = make_model(tiny_settings)

    def slow_capture(region: Region) -> Recording:
        recording = FakeCapture()(region)

        def replay() -> None:
            time.sleep(0.005)  # another thread could fill the buffers now
            recording.replay()

        return Recording(recording.outputs, replay, recording.plain)

    graphed = GraphedNetwork(model, slow_capture)

    def detect(seed: int) -> list[Detections]:
        with torch.inference_mode():
            return graphed.detect(*make_inputs(seed), postprocess)

    with inference(model, CPU, "fp32"):
        for seed in (0, 1):
            graphed.detect(*make_inputs(seed), postprocess)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(detect, range(8)))
        for seed, detections in enumerate(found):
            assert_equal(detections, plain_detections(model, postprocess, make_inputs(seed)))


def test_masks_are_added_to_replayed_detections(tiny_settings):
    model, postprocess = make_model(tiny_settings, "model.mask.kind=refine", "model.mask.dim=16")
    graphed = GraphedNetwork(model, FakeCapture())
    with inference(model, CPU, "fp32"):
        for seed in (0, 1, 2):
            inputs = make_inputs(seed)
            found = graphed.detect(*inputs, replace(postprocess, mask_min_score=0.0))
        assert_equal(found, plain_detections(model, postprocess, inputs))
    assert found[0].masks is not None
    assert len(graphed) == 1


def test_each_shape_dtype_and_post_processing_has_its_graph(tiny_settings):
    model, postprocess = make_model(tiny_settings)
    graphed = GraphedNetwork(model, FakeCapture())

    def detect_twice(*, post: PostProcess = postprocess, **shape: Any) -> int:
        for seed in (0, 1):
            graphed.detect(*make_inputs(seed, **shape), post)
        return len(graphed)

    with inference(model, CPU, "fp32"):
        assert detect_twice() == 1
        assert detect_twice(images=1) == 2
        assert detect_twice(size=(96, 64)) == 3
        assert detect_twice(valid=(48, 80)) == 4
        assert detect_twice(post=replace(postprocess, nms="none")) == 5
        assert detect_twice(post=replace(postprocess, mask_min_score=0.5)) == 5
    with inference(model, CPU, "bf16"):
        assert detect_twice() == 6


def test_only_the_graphs_of_recent_shapes_are_kept(tiny_settings):
    model, postprocess = make_model(tiny_settings)
    capture = FakeCapture()
    graphed = GraphedNetwork(model, capture, max_graphs=2)
    sizes = [(64, 64), (64, 96), (64, 64), (96, 64)]
    with inference(model, CPU, "fp32"):
        for size in sizes:
            for seed in (0, 1):
                graphed.detect(*make_inputs(seed, size=size), postprocess)
        assert (len(graphed), capture.recorded) == (2, 3)
        graphed.detect(*make_inputs(2, size=(64, 64)), postprocess)
        assert capture.recorded == 3
        graphed.detect(*make_inputs(2, size=(64, 96)), postprocess)
        assert capture.recorded == 4


def test_remembered_shapes_are_bounded(tiny_settings, monkeypatch):
    monkeypatch.setattr(cuda_graph, "MAX_REMEMBERED_SHAPES", 3)
    model, postprocess = make_model(tiny_settings)
    graphed = GraphedNetwork(model, FakeCapture())
    with inference(model, CPU, "fp32"):
        for width in (64, 72, 80, 88, 96):
            graphed.detect(*make_inputs(0, size=(64, width), images=1), postprocess)
    assert len(graphed._shapes) <= 3


@pytest.mark.parametrize(
    ("capture", "reason"),
    [
        (
            FakeCapture(error=RuntimeError("operation not permitted when stream is capturing\nmore")),
            "when stream is capturing",
        ),
        (FakeCapture(error=torch.OutOfMemoryError("CUDA out of memory.")), "CUDA out of memory"),
        (FakeCapture(damage=0.5), "its class scores differ by"),
        (FakeCapture(damage=float("nan")), "its class scores differ by nan"),
    ],
    ids=["refused", "memory", "wrong", "nan"],
)
def test_where_recording_fails_the_network_runs_as_before_and_says_so_once(tiny_settings, caplog, capture, reason):
    model, postprocess = make_model(tiny_settings)
    graphed = GraphedNetwork(model, capture)
    with caplog.at_level(logging.WARNING), inference(model, CPU, "fp32"):
        for seed in range(4):
            inputs = make_inputs(seed)
            assert_equal(graphed.detect(*inputs, postprocess), model.detect(*inputs, postprocess))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("inference runs without CUDA graphs: a batch of 2 x 3 x 64 x 96 was not recorded: ")
    assert reason in message
    assert "\n" not in message
    assert len(graphed) == 0


@pytest.mark.parametrize("changes", [{"nms": "hard"}, {"head": "atss"}], ids=str)
def test_what_depends_on_values_is_not_recorded(tiny_settings, changes):
    model, postprocess = make_model(tiny_settings, "test.head=atss")
    postprocess = replace(postprocess, head="decoder")
    capture = FakeCapture()
    graphed = GraphedNetwork(model, capture)
    with inference(model, CPU, "fp32"):
        for seed in range(3):
            inputs = make_inputs(seed)
            found = graphed.detect(*inputs, replace(postprocess, **changes))
    assert len(found) == 2
    assert capture.recorded == 0


def test_boxes_that_the_rounds_of_soft_nms_did_not_settle(tiny_settings, monkeypatch):
    monkeypatch.setattr("codetr_cli.models.postprocess.SOFT_NMS_ROUNDS", 1)
    model, postprocess = make_model(tiny_settings, "test.nms_iou=0.05")
    graphed = GraphedNetwork(model, FakeCapture())
    with inference(model, CPU, "fp32"):
        for seed in (0, 1):
            graphed.detect(*make_inputs(seed), postprocess)
        inputs = make_inputs(2)
        found = graphed.detect(*inputs, postprocess)
        graph = next(iter(graphed._graphs.values()))
        assert graph.outputs.rows[..., 6].any(), "the recorded rounds are not enough for these boxes"
        monkeypatch.undo()
        assert_equal(found, plain_detections(model, postprocess, inputs))


class ReadTensors(TorchDispatchMode):
    """Collects the tensors that a region reads and did not make."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[int] = set()
        self.read: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor) and address(value) not in self.made:
                self.read[address(value)] = value
        result = func(*args, **(kwargs or {}))
        self.made |= {address(value) for value in tree_leaves(result) if isinstance(value, torch.Tensor)}
        return result


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("valid", [None, (48, 80)], ids=["full", "padded"])
@pytest.mark.parametrize("backbone", [[], SWIN, VIT], ids=["resnet", "swin", "vit"])
def test_a_graph_keeps_everything_that_it_reads(tiny_settings, backbone, valid):
    """It has the addresses: what it does not keep could be freed and hold something else when it is replayed."""
    model, postprocess = make_model(tiny_settings, *backbone)
    images, mask, targets = make_inputs(0, valid=valid)
    geometry = image_geometry(targets, images)
    arguments = (model, postprocess, images, model.needed_mask(images, mask, targets), geometry)
    with inference(model, CPU, "fp32"), used_constants() as constants:
        static_part(*arguments)
        reader = ReadTensors()
        with reader:
            static_part(*arguments)
    kept = [images, mask, geometry, *model.parameters(), *model.buffers(), *tree_leaves(constants)]
    unknown = reader.read.keys() - {address(tensor) for tensor in kept if isinstance(tensor, torch.Tensor)}
    assert not [tuple(reader.read[key].shape) for key in unknown]


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
@pytest.mark.parametrize(
    ("overrides", "valid", "precision"),
    [
        ([], None, "fp32"),
        ([], (48, 80), "bf16"),
        (["model.family=co_deformable", *SWIN], (48, 80), "fp32"),
        (VIT, None, "bf16"),
    ],
    ids=["dino resnet", "dino resnet padded", "deformable swin padded", "dino vit"],
)
def test_the_recorded_part_neither_waits_nor_uploads(tiny_settings, overrides, valid, precision):
    """Either would break a recording; what has been waited for and uploaded before is in static memory."""
    gpu = torch.device("cuda", 0)
    model, postprocess = make_model(tiny_settings, *overrides)
    images, mask, targets = make_inputs(0, valid=valid)
    with strict_device() as recorder:
        model, images, mask = model.to(gpu), images.to(gpu), mask.to(gpu)
        geometry = image_geometry(targets, images)
        with inference(model, gpu, precision):
            arguments = (model, postprocess, images, model.needed_mask(images, mask, targets), geometry)
            static_part(*arguments)  # makes constants
            recorder.clear()
            static_part(*arguments)
        assert not recorder.syncs
        assert not recorder.uploads
        assert not recorder.problems
        assert sum(recorder.kernels.values()) > 100, "it counts"


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("overrides", "device", "graphed", "says"),
    [
        ((), "cuda", False, ""),
        (("test.canvas=128",), "cuda", True, ""),
        (("test.cuda_graph=true",), "cuda", True, ""),
        (("test.canvas=128", "test.cuda_graph=false"), "cuda", False, ""),
        (("test.canvas=128",), "cpu", False, ""),
        (("test.cuda_graph=true",), "cpu", False, "CUDA graphs need a GPU, the device is cpu"),
        (("test.cuda_graph=true", "test.nms=hard"), "cuda", False, "hard NMS cannot be recorded"),
    ],
)
def test_the_setting(tiny_settings, caplog, overrides, device, graphed, says):
    settings = apply_overrides(tiny_settings, list(overrides))
    model, _ = make_model(settings)
    with caplog.at_level(logging.WARNING):
        network = with_cuda_graphs(model, settings.test, torch.device(device))
    assert isinstance(network, GraphedNetwork) == graphed
    assert (network is model) != graphed
    assert says in caplog.text
    assert bool(says) == bool(caplog.records)


def test_a_network_in_training_has_no_graphs(tiny_settings):
    """Its weights move to other addresses or change their form; nor is its time worth a recording."""
    settings = apply_overrides(tiny_settings, ["test.cuda_graph=true"])
    model = build_model(settings.model)
    assert with_cuda_graphs(model, settings.test, torch.device("cuda")) is model


# ------------------------------------------------------------------------------------------------------------ recording


def test_a_recording_warms_up_and_leaves_the_stream_as_it_was(monkeypatch):
    log: list[Any] = []
    streams = FakeStreams(log)
    streams.install(monkeypatch)
    capture = CudaCapture(torch.device("cuda", 0))
    runs: list[int] = []

    def make() -> Any:
        runs.append(streams.current)
        return len(runs)

    recording = capture(make)
    recording.replay()
    assert runs == [1] * 3, "all on a stream of their own"
    assert (recording.plain, recording.outputs) == (2, 3)
    assert log == [("wait", 1, 0), ("wait", 0, 1), ("graph", "pool", "thread_local"), "replay"]
    assert streams.current == 0
    capture(make)
    assert log[-1] == ("graph", "pool", "thread_local"), "the pool is shared"


def test_a_failed_recording_leaves_the_stream_as_it_was(monkeypatch):
    streams = FakeStreams([])
    streams.install(monkeypatch)

    def fail() -> Any:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        CudaCapture(torch.device("cuda", 0))(fail)
    assert streams.current == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("valid", [None, (48, 80)], ids=["full", "padded"])
@pytest.mark.parametrize("overrides", [[], ["model.family=co_deformable", *SWIN], VIT], ids=["resnet", "swin", "vit"])
def test_graphs_on_a_gpu(tiny_settings, overrides, valid, precision):
    gpu = torch.device("cuda", 0)
    model, postprocess = make_model(tiny_settings, "test.cuda_graph=true", *overrides)
    graphed = GraphedNetwork(model.to(gpu), CudaCapture(gpu))
    with inference(model, gpu, precision):
        for seed in range(4):
            images, mask, targets = make_inputs(seed, valid=valid)
            inputs = (images.to(gpu), mask.to(gpu), targets)
            found = graphed.detect(*inputs, postprocess)
            assert_equal(found, model.detect(*inputs, postprocess))
            torch.empty(2**24, device=gpu).fill_(float("nan"))  # memory that a graph would need to own
    assert len(graphed) == 1, "recorded"


class FakeStreams:
    """`torch.cuda`'s streams and graphs; a context that fails does not restore the stream, like `torch.cuda.graph`."""

    def __init__(self, log: list[Any]) -> None:
        self.log, self.current = log, 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self

        class Stream:
            def __init__(self, device: Any = None, number: int = 1) -> None:
                self.number = number

            def wait_stream(self, other: Stream) -> None:
                fake.log.append(("wait", self.number, other.number))

        class Switch:
            def __init__(self, stream: Stream) -> None:
                self.stream = stream

            def __enter__(self) -> None:
                self.before, fake.current = fake.current, self.stream.number

            def __exit__(self, kind: Any, *args: Any) -> None:
                if kind is None:
                    fake.current = self.before

        class Graph:
            def replay(self) -> None:
                fake.log.append("replay")

        def graph(graph: Graph, *, pool: Any, stream: Stream, capture_error_mode: str) -> Switch:
            fake.log.append(("graph", pool, capture_error_mode))
            return Switch(stream)

        replacements = {
            "Stream": Stream,
            "stream": Switch,
            "CUDAGraph": Graph,
            "graph": graph,
            "graph_pool_handle": lambda: "pool",
            "current_stream": lambda device: Stream(number=fake.current),
            "set_stream": lambda stream: setattr(fake, "current", stream.number),
        }
        for name, replacement in replacements.items():
            monkeypatch.setattr(torch.cuda, name, replacement)
