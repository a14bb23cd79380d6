"""One list of the layouts that are written."""

from __future__ import annotations

from typing import get_args

from codetr_cli.config.data_settings import FormatName
from codetr_cli.data.writers.write import WRITERS
from codetr_cli.formats.layout_names import LAYOUTS, LISTED, TITLES
from codetr_cli.prediction.outputs import check_formats


def test_every_layout_has_a_writer_a_reader_and_a_title() -> None:
    assert set(LAYOUTS) == {"coco", *WRITERS} == set(TITLES)
    assert set(LAYOUTS) <= set(get_args(FormatName))
    assert check_formats(LAYOUTS) == LAYOUTS
    assert LISTED.replace(" or ", ", ").split(", ") == list(LAYOUTS)
