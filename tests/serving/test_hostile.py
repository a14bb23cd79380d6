"""Requests from strangers: each gets a clear answer, and the server still answers others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from codetr_cli.config.overrides import parse_settings
from codetr_cli.serving.options import ServeOptions
from tests.conftest import TINY_TABLE
from tests.serving.client import ask, form, get, post
from tests.serving.fakes import FakeDetector, Served, served
from tests.serving.hostile import Case, of_forms, of_http, of_images, of_json, photo

OPTIONS = ServeOptions(max_pixels=1_000_000, max_body=3_000_000, max_images=3)
CASES = [
    *of_images(OPTIONS.max_pixels),
    *of_forms(OPTIONS.max_images),
    *of_json(OPTIONS.max_images),
    *of_http(OPTIONS.max_body),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    settings = parse_settings(TINY_TABLE, where="tests")
    with served(FakeDetector(settings), replace(OPTIONS)) as found:
        yield found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_is_refused(server: Served, case: Case):
    answer = ask(server.url, case.sent)
    assert (answer.status, answer.code) == (case.status, case.code), answer.body[:500]
    assert 400 <= answer.status < 500
    assert answer.headers["content-type"] == "application/json"


def test_the_server_answers_afterwards(server: Served):
    assert ask(server.url, post(form(photo()))).status == 200
    assert get(server.url, "/healthz").status == 200
    assert server.process.service.in_flight == 0
    assert server.process.service.engine.pending == 0
    assert b'status="500"' not in get(server.url, "/metrics").body


def test_every_case_has_a_name_of_its_own():
    assert len({case.name for case in CASES}) == len(CASES)
