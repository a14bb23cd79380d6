"""Classes and other metadata of checkpoints: typed, limited, and without characters that act on a terminal."""

from __future__ import annotations

import json
import time

import pytest

from codetr_cli.errors import CheckpointError
from codetr_cli.weights.checkpoint import load_checkpoint, save_checkpoint
from codetr_cli.weights.metadata import parse_classes, version_of
from tests.weights.broken_checkpoints import reseal
from tests.weights.published_states import small_settings

GOOD = {"class_names": '["a", "b", "c"]', "category_ids": "[3, 1, 2]", "extra": '{"source": "x"}'}


def parse(**changes):
    return parse_classes({**GOOD, **changes}, 3, "x.safetensors")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "x.safetensors"
    save_checkpoint(path, {}, settings=small_settings(), class_names=["a", "b", "c"], category_ids=[3, 1, 2])
    return path


def test_types_come_back():
    found = parse(category_ids=f"[{-(2**63)}, 0, {2**63 - 1}]")
    assert found.class_names == ["a", "b", "c"]
    assert found.category_ids == [-(2**63), 0, 2**63 - 1]
    assert found.extra == {"source": "x"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"class_names": "null"}, r"class_names: Input should be a valid list"),
        ({"class_names": '{"a":1,"b":2,"c":3}'}, r"class_names: Input should be a valid list"),
        ({"class_names": '["a","b"]'}, r"class_names has 2 items, and the settings have 3 classes"),
        ({"class_names": "[" * 10**5}, r"class_names: it is nested too deeply"),
        ({"class_names": json.dumps(["a", "b", "c" * 10**6])}, r"class_names\.2: String should have at most 1000"),
        ({"class_names": '["a","b","\\u001b[2J"]'}, r"class_names has control characters.*x1b"),
        ({"class_names": '["a","b","\\ud800"]'}, r"class_names\.2: Input should be a valid string"),
        ({"category_ids": "[1,2,true]"}, r"category_ids\.2: Input should be a valid integer"),
        ({"category_ids": "[1,2,1.0]"}, r"category_ids\.2: Input should be a valid integer"),
        ({"category_ids": "[1,2,NaN]"}, r"category_ids\.2: Input should be a valid integer"),
        ({"category_ids": "[1,2,9223372036854775808]"}, r"category_ids\.2: Input should be less"),
        ({"category_ids": "[1,2,1]"}, r"category_ids has 1 twice"),
        ({"extra": '{"a":"b","a":"c"}'}, r"extra: it has the key 'a' twice"),
        ({"extra": '{"a":1}'}, r"extra\.a: Input should be a valid string"),
    ],
)
def test_a_wrong_entry_is_named(change, reason, good, tmp_path):
    with pytest.raises(ValueError, match=reason):
        parse(**change)
    path = reseal(good, tmp_path / "x.safetensors", metadata=lambda metadata: metadata.update(change))
    with pytest.raises(CheckpointError, match=rf"x\.safetensors has metadata that codetr does not write: {reason}"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": json.dumps([1] * 10**6)},
        {"category_ids": json.dumps(["a"] * 10**6)},
        {"extra": json.dumps({str(i): 1 for i in range(10**5)})},
    ],
)
def test_many_wrong_entries_are_counted_first(change):
    started = time.process_time()
    with pytest.raises(ValueError, match=r"has [\d,]+ items, and the settings have 3 classes"):
        parse(**change)
    assert time.process_time() - started < 1


def test_honest_names_are_kept(caplog):
    names = ["größter hen", "سیب\u200cزمینی", "👩\u200d👧", ""]
    found = parse_classes({**GOOD, "class_names": json.dumps(names), "category_ids": "[1,2,3,4]"}, 4, "x")
    assert found.class_names == names
    assert caplog.messages == []


def test_odd_names_are_read_with_a_warning(caplog):
    assert parse(class_names='["a\\tb", "c", "c"]').class_names == ["a b", "c", "c"]
    assert caplog.messages == [
        r"x.safetensors has class names with line breaks or tabs, read as spaces: 'a\tb'",
        "x.safetensors has several classes of the same name: c",
    ]


def test_what_is_saved_can_be_read(tmp_path):
    names = ["\x1b[2Jdog", "a\nb", "c" * 5000, "\udcff"]
    path = tmp_path / "x.safetensors"
    settings = small_settings(4)
    extra = {"source_file": "\udcff.pth", "notes": "one\ntwo\x1b"}
    save_checkpoint(path, {}, settings=settings, class_names=names, category_ids=[1, 2, 3, 4], extra=extra)
    read = load_checkpoint(path)
    assert read.class_names == ["\\x1b[2Jdog", "a b", "c" * 997 + "...", "\\udcff"]
    assert read.extra == {"source_file": "\\udcff.pth", "notes": "one\ntwo\\x1b"}


@pytest.mark.parametrize("version", ["\x1b[2J", "1" * 100, "", "1 2"])
def test_a_version_is_a_short_text(version):
    assert version_of({"codetr_version": "0.1.0+x"}) == "0.1.0+x"
    assert version_of({"codetr_version": version}) == version_of({}) == "of an unknown version"
