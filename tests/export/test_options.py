from __future__ import annotations

import pytest

from codetr_cli.errors import ConfigError
from codetr_cli.export.job import DEFAULT_ATTENTION, WRITERS
from codetr_cli.export.options import SUFFIXES, ExportOptions
from codetr_cli.inference.exported.engine import EXPORTED_SUFFIXES
from codetr_cli.inference.options import TileOptions


def test_one_size_or_any():
    with pytest.raises(ConfigError, match="--size sets one size and --dynamic-size allows any"):
        ExportOptions(size=(96, 160), dynamic_size=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"size": (0, 160)}, "--size 0x160"), ({"tiles": TileOptions(size=(20_000, 64))}, "--tiles 20000x64")],
)
def test_sides_have_limits(options: dict, named: str):
    with pytest.raises(ConfigError, match=f"{named}: sides are from 1 to 16384 pixels"):
        ExportOptions(**options)


@pytest.mark.parametrize("format", ["onnx", "tensorrt", "torch"])
def test_int8_is_of_openvino(format):
    with pytest.raises(ConfigError, match=f"--format {format} has no int8: use --format openvino"):
        ExportOptions(precision="int8", format=format)


def test_every_format_has_a_suffix_by_which_its_files_are_recognised():
    assert set(SUFFIXES.values()) == set(EXPORTED_SUFFIXES)
    assert set(DEFAULT_ATTENTION) == set(SUFFIXES) >= set(WRITERS)
