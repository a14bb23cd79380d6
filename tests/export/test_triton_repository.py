"""Model repositories of Triton: every text is read with Triton's own schema where its client is installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.export.job import describe
from codetr_cli.export.options import ExportOptions
from codetr_cli.export.triton_repository import TensorSpec, TritonModel, add_to_repository, config_text, triton_model
from codetr_cli.inference.exported.metadata import input_names, output_names, parse_metadata
from codetr_cli.inference.loading import LoadedModel
from codetr_cli.models.build import build_postprocess
from tests.export.networks import CATEGORY_IDS, CLASS_NAMES, REFINE, load_random

INPUTS = (TensorSpec("images", "float32", (-1, 3, 800, 1344)), TensorSpec("image_sizes", "int64", (-1, 2)))
RAW = (TensorSpec("logits", "float32", (-1, 900, 80)), TensorSpec("boxes", "float32", (-1, 900, 4)))
DETECTIONS = (
    TensorSpec("boxes", "float32", (-1, 300, 4)),
    TensorSpec("scores", "float32", (-1, 300)),
    TensorSpec("labels", "int64", (-1, 300)),
)
MODEL = TritonModel(name="co_dino", format="onnx", inputs=INPUTS, outputs=RAW, class_names=["disc", "bar"])


def parsed(model: TritonModel) -> Any:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
    from google.protobuf import text_format

    return text_format.Parse(config_text(model), schema.ModelConfig())


def fixed(tensors: tuple[TensorSpec, ...], batch: int) -> tuple[TensorSpec, ...]:
    return tuple(replace(tensor, shape=(batch, *tensor.shape[1:])) for tensor in tensors)


def test_the_text():
    assert config_text(replace(MODEL, parameters={"codetr": "{}"})) == (
        'name: "co_dino"\n'
        'backend: "onnxruntime"\n'
        'platform: "onnxruntime_onnx"\n'
        'default_model_filename: "model.onnx"\n'
        "max_batch_size: 8\n"
        'input [\n  {\n    name: "images"\n    data_type: TYPE_FP32\n    dims: [ 3, 800, 1344 ]\n  }\n]\n'
        'input [\n  {\n    name: "image_sizes"\n    data_type: TYPE_INT64\n    dims: [ 2 ]\n  }\n]\n'
        'output [\n  {\n    name: "logits"\n    data_type: TYPE_FP32\n    dims: [ 900, 80 ]\n'
        '    label_filename: "labels.txt"\n  }\n]\n'
        'output [\n  {\n    name: "boxes"\n    data_type: TYPE_FP32\n    dims: [ 900, 4 ]\n  }\n]\n'
        "dynamic_batching {\n  max_queue_delay_microseconds: 5000\n}\n"
        "instance_group [\n  {\n    count: 1\n    kind: KIND_GPU\n  }\n]\n"
        'parameters {\n  key: "codetr"\n  value {\n    string_value: "{}"\n  }\n}\n'
    )


@pytest.mark.parametrize(
    ("format", "kind", "backend", "platform", "file"),
    [
        ("onnx", "cpu", "onnxruntime", "onnxruntime_onnx", "model.onnx"),
        ("onnx", "gpu", "onnxruntime", "onnxruntime_onnx", "model.onnx"),
        ("openvino", "cpu", "openvino", "", "model.xml"),
        ("tensorrt", "gpu", "tensorrt", "tensorrt_plan", "model.plan"),
        ("torch", "cpu", "pytorch", "torch_aoti", "model.pt2"),
    ],
)
def test_formats(format, kind, backend, platform, file):
    config = parsed(replace(MODEL, format=format, kind=kind, outputs=DETECTIONS, instances=2))
    assert (config.name, config.backend, config.platform) == ("co_dino", backend, platform)
    assert (config.default_model_filename, config.max_batch_size) == (file, 8)
    assert config.dynamic_batching.max_queue_delay_microseconds == 5000
    assert [(group.count, group.kind) for group in config.instance_group] == [(2, 1 if kind == "gpu" else 2)]
    names = [tensor.name for tensor in (*config.input, *config.output)]
    if format == "torch":
        assert names == ["INPUT__0", "INPUT__1", "OUTPUT__0", "OUTPUT__1", "OUTPUT__2"]
    else:
        assert names == ["images", "image_sizes", "boxes", "scores", "labels"]
    assert [list(tensor.dims) for tensor in config.output] == [[300, 4], [300], [300]]
    assert [tensor.label_filename for tensor in config.output] == ["", "", "labels.txt"]


def test_sizes_may_be_any():
    images = TensorSpec("images", "uint8", (-1, -1, -1, 3))
    config = parsed(replace(MODEL, inputs=(images, INPUTS[1])))
    assert list(config.input[0].dims) == [-1, -1, 3]
    assert config.input[0].data_type == 2  # TYPE_UINT8


def test_a_fixed_batch_is_part_of_the_shape():
    model = replace(MODEL, inputs=fixed(INPUTS, 4), outputs=fixed(RAW, 4), max_batch=0)
    config = parsed(model)
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [4, 3, 800, 1344]
    assert not config.HasField("dynamic_batching")


def test_a_tensor_with_one_number_per_image():
    config = parsed(replace(MODEL, outputs=(TensorSpec("count", "int32", (-1,)),)))
    (output,) = config.output
    assert list(output.dims) == [1]
    assert output.HasField("reshape")
    assert list(output.reshape.shape) == []


@pytest.mark.parametrize("text", ['{"names": ["a \\"b\\"", "c\\\\d"]}', "zwei\nZeilen\t\x00", "öäü 猫 \U0001f408"])
def test_any_text_survives(text):
    assert parsed(replace(MODEL, parameters={"codetr": text})).parameters["codetr"].string_value == text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a/b"}, "the model's name 'a/b'"),
        ({"name": ".."}, "the model's name"),
        ({"max_batch": -1}, "max_batch=-1"),
        ({"instances": 0}, "instances=0"),
        ({"format": "tensorrt", "kind": "cpu"}, "tensorrt runs on a gpu in Triton"),
        ({"format": "openvino"}, "openvino runs on a cpu in Triton"),
        ({"inputs": (TensorSpec("images", "complex64", (-1, 3)),)}, "images has type complex64"),
        ({"inputs": (TensorSpec("images", "float32", (-1, 0)),)}, r"images has shape \(-1, 0\)"),
        ({"inputs": fixed(INPUTS, 1)}, "a fixed batch of 1.* --batch dynamic"),
    ],
)
def test_what_triton_would_refuse(changes, words):
    with pytest.raises(ConfigError, match=words):
        replace(MODEL, **changes)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("postprocess", [False, True])
@pytest.mark.parametrize("preprocess", [False, True])
def test_the_model_of_an_exported_file(masks, postprocess, preprocess):
    loaded = load_random(*(REFINE if masks else ()), "test.nms=none", "test.max_detections=10")
    options = ExportOptions(preprocess=preprocess, postprocess=postprocess, size=(96, 160))
    metadata = describe(loaded, options)
    config = parsed(triton_model(metadata, "tiny", kind="cpu"))
    assert [tensor.name for tensor in config.input] == input_names(metadata)
    assert [tensor.name for tensor in config.output] == output_names(metadata)
    assert list(config.input[0].dims) == ([96, 160, 3] if preprocess else [3, 96, 160])
    if postprocess or masks:
        assert list(config.output[0].dims) == [10 if masks else 30, 4]  # the best, or as many as queries
    else:
        assert list(config.output[0].dims) == [30, len(CLASS_NAMES)]
    assert parse_metadata(config.parameters["codetr"].string_value, "Triton") == metadata


def test_sizes_and_batches_of_an_exported_file(tiny_settings):
    loaded = LoadedModel(None, build_postprocess(tiny_settings.test), tiny_settings, CLASS_NAMES, CATEGORY_IDS, None)
    config = parsed(triton_model(describe(loaded, ExportOptions(dynamic_size=True)), "tiny", kind="gpu", max_batch=4))
    assert (config.max_batch_size, list(config.input[0].dims)) == (4, [3, -1, -1])
    config = parsed(triton_model(describe(loaded, ExportOptions(batch=2, size=(96, 160))), "tiny", kind="gpu"))
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [2, 3, 96, 160])


def test_the_files(tmp_path: Path):
    (tmp_path / "out").mkdir()
    exported, data = tmp_path / "out/co_dino.onnx", tmp_path / "out/co_dino.onnx.data"
    exported.write_bytes(b"graph")
    data.write_bytes(b"weights")
    folder = add_to_repository(tmp_path / "models", MODEL, [exported, data])
    found = {path.relative_to(tmp_path / "models").as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert sorted(found) == [
        "co_dino/1/co_dino.onnx.data",  # the ONNX file names it
        "co_dino/1/model.onnx",
        "co_dino/config.pbtxt",
        "co_dino/labels.txt",
    ]
    assert found["co_dino/1/model.onnx"].read_bytes() == b"graph"
    assert found["co_dino/labels.txt"].read_text() == "disc\nbar\n"
    assert found["co_dino/config.pbtxt"].read_text() == config_text(MODEL)


def test_the_weights_of_openvino_have_the_name_of_the_model(tmp_path: Path):
    for name in ("a.xml", "a.bin"):
        (tmp_path / name).write_text(name)
    model = replace(MODEL, format="openvino", kind="cpu", class_names=())
    folder = add_to_repository(tmp_path / "models", model, [tmp_path / "a.xml", tmp_path / "a.bin"])
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["model.bin", "model.xml"]
    assert not (folder / "labels.txt").exists()


def test_another_model_stays(tmp_path: Path):
    (tmp_path / "a.onnx").write_bytes(b"graph")
    (tmp_path / "models/co_dino/1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="co_dino is there already"):
        add_to_repository(tmp_path / "models", MODEL, [tmp_path / "a.onnx"])
    assert list((tmp_path / "models/co_dino").iterdir()) == [tmp_path / "models/co_dino/1"]


def test_nothing_is_left_of_a_failure(tmp_path: Path):
    with pytest.raises(ResourceError, match=r"missing\.onnx"):
        add_to_repository(tmp_path / "models", MODEL, [tmp_path / "missing.onnx"])
    assert list((tmp_path / "models").iterdir()) == []
