from __future__ import annotations

import json
import os
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.distributed.part_frames import Part
from codetr_cli.prediction.drawings import drawing_request, drawn_names
from codetr_cli.prediction.inputs import InputImage
from codetr_cli.prediction.results import ImageResult, check_packed, merge_results, pack_results
from codetr_cli.result_files import ResultRecord, write_result
from tests.prediction.image_results import result


def part(*results: ImageResult) -> Part:
    return Part([each.number for each in results], pack_results(results))


def test_results_come_back_in_the_order_of_the_inputs():
    numbered = [result(number, "disc") for number in range(6)]
    parts = [part(*numbered[:4:3]), part(numbered[1], numbered[4]), part(numbered[2]), part(numbered[5])]
    assert list(merge_results(parts)) == numbered


def test_results_are_merged_as_they_are_needed():
    read: list[int] = []

    def parts():
        for number in range(100):
            read.append(number)
            yield part(result(number))

    for each in merge_results(parts()):
        assert len(read) <= each.number + 2


def test_an_image_in_two_parts_counts_once():
    copied = result(1, error="is being copied")
    parts = [part(result(0, "disc"), copied), part(result(0, "disc", "ring"), result(1, "bar"))]
    assert list(merge_results(parts)) == [result(0, "disc"), result(1, "bar")]


INPUTS = [InputImage(Path(f"a/{number}.jpg"), f"{number}.jpg", number) for number in range(5)]


def packed(**changes: object) -> bytes:
    """A packed result of image 0 with a detection, with other values; `_of_image` and `_of_record` are in these."""
    table: dict[str, Any] = asdict(result(0, "disc"))
    for name, value in changes.items():
        first, _, second = name.partition("_of_")
        place = {"": table, "image": table["image"], "record": table["records"][0]}[second]
        place[first] = value
    return json.dumps([table]).encode()


def test_results_of_these_images_are_accepted():
    check_packed(packed(), [0], INPUTS)
    check_packed(pack_results([result(1), result(4, error="is gone")]), [1, 4], INPUTS)
    check_packed(packed(segmentation_of_record={"size": [8, 8], "counts": "x"}, mask_score_of_record=1), [0], INPUTS)
    for numbers in ([], [1], [0, 1]):
        with pytest.raises(ValueError, match="of other images"):
            check_packed(packed(), numbers, INPUTS)


@pytest.mark.parametrize("key", ["file", "file_of_image", "file_name_of_image", "file_name_of_record", "id_of_image"])
def test_results_that_name_another_file_are_refused(key: str):
    """The file that they name is copied into a data set."""
    changes = {"image_id_of_image": 9} if key == "id_of_image" else {key: "/etc/passwd"}
    with pytest.raises(ValueError, match="of other images"):
        check_packed(packed(**changes), [0], INPUTS)


@pytest.mark.parametrize(
    "content",
    [
        packed(number="0"),
        packed(number=False),
        packed(file=None),
        packed(image=None),
        packed(error="is gone"),
        packed(records={}),
        packed(records=[1]),
        packed(more=1),
        packed(objects_of_image=[]),
        packed(objects_of_image={"disc": "1"}),
        packed(seconds_of_image="1"),
        packed(file_name_of_record=1),
        packed(category_name_of_record=["disc"]),
        packed(bbox_of_record=[0, 0, 1]),
        packed(bbox_of_record=[0, 0, 1, "1"]),
        packed(bbox_of_record=[0, 0, 1, float("inf")]),
        packed(score_of_record=float("nan")),
        packed(segmentation_of_record=[[0, 0, 1, 1]]),
        packed(segmentation_of_record={"size": ["8", 8], "counts": "x"}),
        packed(mask_score_of_record="1"),
        b"{}",
        b"[1]",
        b"[" * 100_000,
        b"\xff",
        b"",
    ],
)
def test_what_is_no_result_is_refused(content: bytes):
    with pytest.raises(ValueError, match=r"."):
        check_packed(content, [0], INPUTS)


def drawn(*names: str, folder: Path = Path("nowhere"), request: str = "", force: bool = False) -> list[str]:
    images = [InputImage(Path("in", name), name, 1) for name in names]
    found = drawn_names(images, ("predictions.json", ".parts"), folder, request=request, force=force)
    return [path.as_posix() for path in found]


def test_drawn_images_have_different_names():
    assert drawn("a.bmp", "b/a.bmp", "a.tif", "a.png", "a_2.png", "c.jpg") == [
        *("a_3.png", "b/a.png", "a_4.png", "a.png", "a_2.png", "c.jpg")
    ]


def test_drawn_images_are_different_files_on_any_file_system():
    """Letters are large or small, composed or not: some file systems do not distinguish them."""
    composed, decomposed = "caf\u00e9.jpg", "cafe\u0301.jpg"
    assert drawn(
        "a.jpg", "A.jpg", "a.JPG", composed, decomposed, "B/x.png", "b/X.png", "stra\u00dfe.png", "STRASSE.png"
    ) == [
        *("a.jpg", "A_2.jpg", "a_3.JPG", composed, "cafe\u0301_2.jpg", "B/x.png", "b/X_2.png"),
        *("stra\u00dfe.png", "STRASSE_2.png"),
    ]


def test_drawn_images_have_no_name_of_a_folder_or_of_the_results():
    assert drawn("a.jpg", "a.jpg/b.jpg", "c.jpg/d.jpg", "c.jpg") == ["a.jpg", "a_2.jpg/b.jpg", "c.jpg/d.jpg", "c_2.jpg"]
    assert drawn("predictions.json/a.jpg", "PREDICTIONS.JSON/a.bmp", ".parts/a.png", "x/.parts/a.png") == [
        *("predictions_2.json/a.jpg", "PREDICTIONS_2.JSON/a.png", ".parts_2/a.png", "x/.parts/a.png")
    ]


def test_drawn_images_of_long_names_and_of_names_that_are_not_utf_8():
    long, bytes_name = "\u00e9" * 125 + "x.bmp", os.fsdecode(b"caf\xe9\n.tif")
    names = drawn(long, long[:-4] + ".png", bytes_name)
    assert names[1] == long[:-4] + ".png"
    assert names[0] != names[1]
    assert names[2] == bytes_name[:-4] + ".png"
    assert max(len(os.fsencode(name)) for name in names) <= 255


@pytest.mark.parametrize("seed", range(3))
def test_drawn_images_of_any_names_can_be_side_by_side(seed: int):
    draw = random.Random(seed)
    parts = ["a", "A", "a_2", "a.png", "A.PNG", "b.jpg", "predictions.json", ".parts"]
    files = ["a.png", "A.bmp", "a.tif", "a_2.png", "b.jpg"]
    names = list({"/".join([*draw.choices(parts, k=draw.randint(0, 2)), draw.choice(files)]) for _ in range(60)})
    found = [name.casefold() for name in drawn(*names)]
    assert len(set(found)) == len(names)
    folders = {parent.as_posix() for name in found for parent in Path(name).parents}
    assert not folders & set(found)
    assert not {"predictions.json", ".parts"} & (folders | set(found))


def test_many_images_of_one_name_get_their_names_at_once():
    names = drawn(*["a.bmp" for _ in range(5_000)])
    assert len(set(names)) == 5_000


def test_drawn_images_have_no_name_that_is_taken(tmp_path: Path):
    """A drawing of the same image by the same request keeps its name, wherever that request was interrupted."""
    (tmp_path / "mine.jpg").write_bytes(b"a photo")
    (tmp_path / "link.jpg").symlink_to("nowhere")
    (tmp_path / "b").write_bytes(b"a file where a folder would be")
    record = ResultRecord(tmp_path)
    for name, request, number in (("own.jpg", "r", 2), ("other.jpg", "r", 9), ("before.jpg", "q", 4)):
        of = drawing_request(request, number)
        with write_result(tmp_path / name, by="predict", request=of, record=record) as temporary:
            temporary.write_bytes(b"a drawing")
    names = ("mine.jpg", "link.jpg", "own.jpg", "other.jpg", "before.jpg", "b/c.jpg")
    assert drawn(*names, folder=tmp_path, request="r") == [
        *("mine_2.jpg", "link_2.jpg", "own.jpg", "other_2.jpg", "before_2.jpg", "b_2/c.jpg")
    ]
    assert drawn(*names, folder=tmp_path, request="r", force=True) == [
        *("mine_2.jpg", "link_2.jpg", "own.jpg", "other.jpg", "before.jpg", "b_2/c.jpg")
    ]
    (tmp_path / "other.jpg").write_bytes(b"retouched")  # the user's from now on
    assert drawn("other.jpg", folder=tmp_path, request="r", force=True) == ["other_2.jpg"]
    inputs = [InputImage(tmp_path / "own.jpg", "own.jpg", 1)]  # a drawing that is predicted
    assert drawn_names(inputs, (), tmp_path, request="r", force=True) == [Path("own_2.jpg")]
