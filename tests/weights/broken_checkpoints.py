"""Checkpoints with a right hash and wrong content, and files with broken headers: hundreds of variants of one file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from codetr_cli.weights.checkpoint import _content_hash

DEEP = "[" * 100_000 + "]" * 100_000
MANY_DIGITS = "9" * 100_000

State, Metadata = dict[str, Tensor], dict[str, str]


def reseal(
    source: Path,
    target: Path,
    *,
    state: Callable[[State], object] = lambda state: None,
    metadata: Callable[[Metadata], object] = lambda metadata: None,
) -> Path:
    """Writes a changed copy of a checkpoint, with the hash of what it has then."""
    with safetensors.safe_open(source, "pt") as file:
        texts = dict(file.metadata())
    tensors = load_file(source)
    state(tensors)
    metadata(texts)
    if texts.pop("content_sha256", None):
        texts["content_sha256"] = _content_hash(tensors, texts)
    save_file(tensors, target, texts)
    return target


def set_settings(**values: Any) -> Callable[[Metadata], None]:
    """A change of the metadata: settings by name, with __ for each dot."""

    def change(metadata: Metadata) -> None:
        table = json.loads(metadata["settings"])
        for key, value in values.items():
            *parents, leaf = key.split("__")
            node = table
            for parent in parents:
                node = node[parent]
            node[leaf] = value
        metadata["settings"] = json.dumps(table)

    return change


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file; the header is text or is written as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def broken_headers() -> Iterator[tuple[str, bytes]]:
    """Files that are no checkpoints, by what is wrong with them."""
    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    data = bytes(8)
    for number in (0, 1, 7, 8, 9):
        yield f"{number} bytes", (struct.pack("<Q", 2) + b"{}")[:number]
    for length in (0, 1, 1 << 20, 1 << 31, 1 << 62, (1 << 64) - 1):
        yield f"header of {length} bytes", raw({"a": good}, data, length)
    texts = [
        DEEP,
        '{"a":' * 100_000,
        MANY_DIGITS,
        "null",
        "[]",
        "1",
        '"a"',
        "{",
        '{"a": NaN}',
        "{" + "\0" * 100,
        '{"\\ud800":1}',
    ]
    for text in texts:
        yield f"header {text[:12]!r}", raw(text.encode(), data)
    yield "header that is not UTF-8", raw(b'{"\xff": 1}', data)
    yield "key twice", raw(b'{"a": %b, "a": %b}' % ((json.dumps(good).encode(),) * 2), data)
    yield "metadata twice", raw(b'{"__metadata__": {}, "__metadata__": {}}')
    yield (
        "many entries",
        raw({f"{number}": {**good, "shape": [0], "data_offsets": [0, 0]} for number in range(101_000)}),
    )
    yield "huge header", raw(b"{" + b" " * (9 << 20) + b"}")
    yield "long name", raw({"a" * 100_000: good}, data)
    for metadata in (None, [], 1, "a", {"a": 1}, {"a": None}, {"a": {"b": "c"}}):
        yield f"metadata {metadata}", raw({"__metadata__": metadata, "a": good}, data)
    for key, values in {
        "dtype": (None, 1, [], "F33", "", "f32", "F4", "C64", "U16"),
        "shape": (None, 2, "2", [], [3], [-2], [2.0], [True], ["2"], [1 << 70], [1 << 40] * 3, [0, 1 << 62], [1] * 100),
        "data_offsets": (
            None,
            8,
            [],
            [0],
            [0, 4],
            [4, 12],
            [8, 0],
            [-8, 0],
            [0, 8, 8],
            [0, 1 << 70],
            ["0", "8"],
            [0, 8.0],
        ),
    }.items():
        for value in values:
            yield f"{key} {str(value)[:30]}", raw({"a": {**good, key: value}}, data)
    for entry in (None, [], 1, {}, {**good, "more": 1}, {"dtype": "F32"}):
        yield f"entry {entry}", raw({"a": entry}, data)
    yield "gap", raw({"a": good, "b": {**good, "data_offsets": [12, 20]}}, bytes(20))
    yield "overlap", raw({"a": good, "b": {**good, "data_offsets": [4, 12]}}, bytes(12))
    yield "bytes after the last entry", raw({"a": good}, bytes(9))
    yield "bytes before the first entry", raw({"a": {**good, "data_offsets": [8, 16]}}, bytes(16))


def wrong_metadata() -> Iterator[tuple[str, Callable[[Metadata], object]]]:
    """Changes after which a checkpoint of three classes must be refused, with a right hash."""
    lists = [
        "null",
        "[]",
        '["a"]',
        "{}",
        '{"a":1,"b":2,"c":3}',
        "1",
        '"abc"',
        "",
        "[",
        DEEP,
        MANY_DIGITS,
        "[[],[],[]]",
        "NaN",
    ]
    names = [
        *lists,
        *("[1,2,3]", "[null,null,null]", "[true,false,true]", '["a","b","c","d"]', '["a","b",["c"]]'),
        *(
            '["a","b","\\ud800"]',
            '["a","b","\\u001b[2J"]',
            '["a","b","\\u0000"]',
            '["a","b","\\u009b1m"]',
            '["a","b","\\u007f"]',
        ),
        json.dumps(["a", "b", "c" * 1_000_000]),
    ]
    ids = [
        *lists,
        *(
            '["a","b","c"]',
            "[NaN,NaN,NaN]",
            "[1.5,2.5,3.5]",
            "[1.0,2.0,3.0]",
            "[true,false,true]",
            "[1,1,2]",
            "[1,2,3,4]",
        ),
        *(
            "[1,2,null]",
            "[1,2,9223372036854775808]",
            "[1,2,-9223372036854775809]",
            "[1,2,1e999]",
            f"[1,2,{'9' * 4000}]",
        ),
        *("[1,2,Infinity]", '[1,2,"3"]', "[[1],[2],[3]]"),
    ]
    extras = [
        *(
            "null",
            "[]",
            "1",
            '{"a":1}',
            '{"a":null}',
            '{"a":{"b":"c"}}',
            '{"a":"\\u001b[2J"}',
            '{"a":"\\ud800"}',
            '{"\\u001b":""}',
        ),
        *(
            '{"a":"b","a":"c"}',
            DEEP,
            json.dumps({str(number): "" for number in range(200)}),
            json.dumps({"a": "b" * 200_000}),
        ),
    ]
    for key, texts in {"class_names": names, "category_ids": ids, "extra": extras}.items():
        for text in texts:
            yield f"{key} {text[:30]}", lambda metadata, key=key, text=text: metadata.update({key: text})
    for key in ("class_names", "category_ids", "extra", "settings", "format", "content_sha256"):
        yield f"without {key}", lambda metadata, key=key: metadata.pop(key)
    for text in (
        "",
        "null",
        "[]",
        "1",
        "{}",
        '{"name": 1}',
        '{"name":"a","name":"b"}',
        DEEP,
        MANY_DIGITS,
        "{" * 50,
        '{"name":"a","model":[]}',
    ):
        yield f"settings {text[:30]}", lambda metadata, text=text: metadata.update(settings=text)
    yield "format", lambda metadata: metadata.update(format="\x1b[2J" * 1000)
    for values in WRONG_SETTINGS:
        yield f"settings {str(values)[:60]}", set_settings(**values)


WRONG_SETTINGS: list[dict[str, Any]] = [
    {"name": "../../x"},
    {"name": "/tmp/x"},
    {"name": ""},
    {"name": "\x1b[2J"},
    {"name": "a" * 10_000},
    {"summary": "a" * 1_000_000},
    {"model": None},
    {"model": [1]},
    {"model__backbone": {"kind": ["resnet"]}},
    {"model__backbone": {"kind": "other"}},
    {"model__backbone": []},
    {"unknown": 1},
    {"model__num_classes": 2},
    {"model__num_classes": 10**9},
    {"model__num_classes": -1},
    {"model__num_classes": float("nan")},
    {"model__embed_dim": 2**16},
    {"model__embed_dim": 10**12},
    {"model__embed_dim": 33},
    {"model__ffn_dim": 2**16},
    {"model__num_queries": 10**6},
    {"model__num_queries": 10**9},
    {"model__encoder_layers": 64},
    {"model__encoder_layers": 10**6},
    {"model__decoder_layers": 64},
    {"model__num_levels": 10},
    {"model__num_levels": 10**6},
    {"model__num_points": 2**16},
    {"model__roi__fc_dim": 2**16},
    {"model__roi__num_fcs": 64, "model__roi__fc_dim": 2**16},
    {"model__rpn__scales_per_octave": 10**6},
    {"model__rpn__ratios": [1.0] * 100_000},
    {"model__rpn__ratios": []},
    {"model__backbone__base_channels": 2**16},
    {"model__backbone__layers": [64, 64, 64, 64]},
    {"model__backbone__layers": [10**9] * 4},
    {"model__backbone": {"kind": "swin", "window_size": 1000}},
    {"model__backbone": {"kind": "swin", "embed_dim": 2**16, "num_heads": [1, 1, 1, 1], "layers": [64] * 4}},
    {"model__backbone": {"kind": "vit", "patch_size": 1, "pretrain_size": 2**14}},
    {"model__backbone": {"kind": "vit", "patch_size": 1, "pretrain_size": 2**14, "fixed_size": 2**14}},
    {"model__mask": {"kind": "refine", "dim": 2**16, "pooled_size": 256, "instance_convs": 64}},
    {"model__mask": {"kind": "fcn", "dim": 2**16, "num_convs": 64}},
    {"model__family": "co_deformable"},
    {"model__position_temperature": float("inf")},
    {"test__batch_size": 10**6},
    {"test__batch_size": 10**9},
    {"test__canvas": 2**14},
    {"test__canvas": 10**9},
    {"test__short_side": 2**14, "test__long_side": 2**14},
    {"test__tta_scales": [1.0] * 1000},
    {"test__tta_scales": [float("nan")]},
    {"data__pad_divisor": 2**14},
    {"data__std": [0, 0, 0]},
    {"data__mean": [float("inf")] * 3},
    {"data__short_sides": []},
    {"train__seed": -1},
    {"train__seed": 10**400},
    {"train__lr": 10**400},
    {"train__loggers": ["/bin/sh"]},
]  # fmt: skip


def wrong_states() -> Iterator[tuple[str, Callable[[State], object]]]:
    """Changes of the entries after which no network of the settings can be made of them."""

    def first(state: Mapping[str, Tensor]) -> str:
        return "encoder.level_embed"

    values = {
        "NaN": float("nan"),
        "infinite": float("inf"),
        "negative infinite": -float("inf"),
    }
    for what, value in values.items():
        yield what, lambda state, value=value: state[first(state)].view(-1)[-1:].fill_(value)
        yield f"all {what}", lambda state, value=value: [tensor.fill_(value) for tensor in state.values()]
    yield "NaN in float16", lambda state: state.update({first(state): (state[first(state)] * float("nan")).half()})
    yield (
        "too large for float32",
        lambda state: state.update({first(state): torch.full_like(state[first(state)], 1e300, dtype=torch.float64)}),
    )
    dtypes = (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.complex64,
        torch.float8_e4m3fn,
    )
    for dtype in dtypes:
        yield f"{dtype}", lambda state, dtype=dtype: state.update({first(state): state[first(state)].to(dtype)})
        yield (
            f"all {dtype}",
            lambda state, dtype=dtype: state.update({name: value.to(dtype) for name, value in state.items()}),
        )
    shapes = ((), (0,), (1,), (1, 1, 1, 1, 1, 1), (0, 32), (32, 4), (4, 33), (6, 32), (128,))
    for shape in shapes:
        yield f"shape {shape}", lambda state, shape=shape: state.update({first(state): torch.zeros(shape)})
    yield "without an entry", lambda state: state.pop(first(state))
    yield "without entries", lambda state: state.clear()
    yield "unknown entry", lambda state: state.update({"unknown": torch.zeros(1)})
    yield "many unknown entries", lambda state: state.update({f"x{number}": torch.zeros(1) for number in range(1000)})
    for name in ("\x1b[2J", "a" * 900, "", "..", "encoder.level_embed\0", "class_heads.99999999999999999999.weight"):
        yield f"entry {name[:20]!r}", lambda state, name=name: state.update({name: torch.zeros(1)})
