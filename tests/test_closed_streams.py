"""Streams that can no longer be written, or whose encoding lacks characters."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from codetr_cli import console
from codetr_cli.closed_streams import tolerate_closed_streams


@pytest.fixture(autouse=True)
def _default_mode():
    yield
    console.set_mode()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_every_name_is_written_to_a_stream_of_any_encoding(monkeypatch, encoding, errors):
    name = "caf\u00e9 \u65e5 \U0001f600 " + os.fsdecode(b"\xe9\xff")
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with tolerate_closed_streams():
        console.set_mode(json=True)
        console.warn(name)
        console.table(name, [name], [[name]])
        console.result_json({"name": name})
        with console.progress(name, 2) as advance:
            advance()
        sys.stdout.flush()
        sys.stderr.flush()
    assert json.loads(streams[0].buffer.getvalue().decode("utf-8")) == {"name": name}
    text = streams[1].buffer.getvalue().decode(encoding)
    assert "warning: caf" in text
    assert "\\xe9\\xff" in text
    assert ("\u65e5" in text) == (encoding == "utf-8")
