from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetr_cli.distributed.part_files import PartFiles
from codetr_cli.distributed.part_frames import Part
from codetr_cli.prediction.video.encoder import VideoFormat
from codetr_cli.prediction.video.segments import ATTEMPTS, LINES, PIECE, UNITS, SegmentStore, Totals, check_manifest
from tests.prediction.video.videos import TIME_BASE, grey


@pytest.fixture
def parts(tmp_path: Path):
    parts = PartFiles(tmp_path, lambda unit: [], check_manifest)
    parts.open("request")
    yield parts
    parts.close(remove=True)


def write(store: SegmentStore, count: int, *, drawn: bool = True) -> None:
    for _ in range(count):
        writer = store.start()
        writer.add(b'{"frame": %d}\n' % store.count)
        if drawn:
            writer.draw(grey(store.count), store.count, VideoFormat((48, 64), TIME_BASE, TIME_BASE * 10**6))
        store.complete(writer, store.totals.model_copy(update={"frames": store.count + 1}))


def recovered(parts: PartFiles, video: int = 0) -> SegmentStore:
    store = SegmentStore(parts, video)
    store.recover()
    return store


def test_segments_are_found_again(parts: PartFiles):
    write(SegmentStore(parts, 0), 3)
    write(SegmentStore(parts, 1), 1, drawn=False)
    store = recovered(parts)
    assert (store.count, store.totals.frames) == (3, 3)
    assert list(store.lines()) == [b'{"frame": 0}\n', b'{"frame": 1}\n', b'{"frame": 2}\n']
    assert [path.suffix for path in store.paths(PIECE)] == [PIECE] * 3
    other = recovered(parts, 1)
    assert (other.count, other.paths(PIECE)) == (1, [])


@pytest.mark.parametrize("suffix", [LINES, PIECE])
@pytest.mark.parametrize("damage", ["removed", "cut", "replaced"])
def test_segments_after_a_damaged_one_are_deleted(parts: PartFiles, suffix: str, damage: str):
    store = SegmentStore(parts, 0)
    write(store, 4)
    path = store.path(1, suffix)
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif suffix == LINES:
        path.write_bytes(b"x" * len(content))
    else:
        path.unlink()
        path.symlink_to("/dev/zero")
    store = recovered(parts)
    assert (store.count, store.totals.frames) == (1, 1)
    assert sorted(path.name for path in parts.path.glob("video0-*")) == ["video0-000000.jsonl", "video0-000000.nut"]
    write(store, 2)
    assert recovered(parts).count == 3


def test_files_without_a_manifest_are_deleted(parts: PartFiles):
    store = SegmentStore(parts, 0)
    write(store, 1)
    writer = store.start()
    writer.add(b"x\n")
    writer.finish()
    store.path(1, f"{PIECE}.tmp").write_bytes(b"x")
    assert len(list(parts.path.glob("video0-000001*"))) == 2
    assert recovered(parts).count == 1
    assert list(parts.path.glob("video0-000001*")) == []


def test_a_complete_video_has_no_segments(parts: PartFiles):
    store = SegmentStore(parts, 0)
    write(store, 2)
    store.finish(store.totals.model_copy(update={"detections": 7}))
    assert list(parts.path.glob("video0-*")) == []
    store = recovered(parts)
    assert (store.count, store.totals.finished, store.totals.detections) == (0, True, 7)
    store.recover(restart=True)
    assert store.count == 0


def test_an_aborted_segment_is_nothing(parts: PartFiles):
    store = SegmentStore(parts, 0)
    writer = store.start()
    writer.add(b"x\n")
    writer.draw(grey(0), 0, VideoFormat((48, 64), TIME_BASE, TIME_BASE * 10**6))
    writer.abort()
    assert list(parts.path.glob("video0-*")) == []


MANIFEST = {"segment": 2, "totals": Totals().model_dump(), "lines_size": 1, "lines_checksum": 5, "piece_size": 0}


def test_a_manifest_is_checked():
    check_manifest(Part([UNITS + 2 * ATTEMPTS], json.dumps(MANIFEST).encode()))


@pytest.mark.parametrize(
    "content",
    [
        {**MANIFEST, "segment": 3},
        {**MANIFEST, "segment": "2"},
        {**MANIFEST, "lines_size": -1},
        {**MANIFEST, "more": 1},
        {**MANIFEST, "totals": {"frames": -1}},
        {**MANIFEST, "totals": {"time_base": [1]}},
        [],
    ],
)
def test_what_is_no_manifest(content: object):
    with pytest.raises(ValueError, match=r"."):
        check_manifest(Part([UNITS + 2 * ATTEMPTS], json.dumps(content).encode()))
