"""The images that are reserved for validation."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from codetr_cli.formats.reserved import Candidate, choose_validation

NOWHERE = Path("/nowhere")


def images(*classes: str, stem: str = "image") -> list[Candidate]:
    """Images without files, each with the classes of a text of letters."""
    return [Candidate(f"{stem}{i}.jpg", NOWHERE / f"{stem}{i}.jpg", frozenset(text)) for i, text in enumerate(classes)]


def test_a_share_of_the_images_that_is_always_the_same():
    candidates = images(*["a"] * 100)
    chosen, note = choose_validation(candidates, 0.2)
    assert len(chosen) == 20
    assert choose_validation(candidates, 0.2)[0] == chosen
    assert "20 of the 100 images are reserved for validation" in note
    reverse = choose_validation(candidates[::-1], 0.2)[0]
    assert {99 - index for index in reverse} == chosen  # whatever the order in which the folder is listed


def test_folders_that_all_images_share_do_not_count():
    candidates = [image._replace(name=f"{part}/{image.name}") for part in "ab" for image in images(*["a"] * 50)]
    chosen, _ = choose_validation(candidates, 0.2)
    wrapped = [image._replace(name=f"archive/{image.name}") for image in candidates]
    assert choose_validation(wrapped, 0.2)[0] == chosen


def test_a_new_image_moves_few_others():
    before, _ = choose_validation(images(*["a"] * 100), 0.2)
    after, _ = choose_validation(images(*["a"] * 101), 0.2)
    assert len(before ^ after) <= 2


@pytest.mark.parametrize(
    ("count", "fraction", "size"), [(1, 0.2, 0), (2, 0.2, 1), (3, 0.9, 2), (5, 0.0, 0), (4, 0.5, 2)]
)
def test_small_sets_keep_images_for_both(count, fraction, size):
    assert len(choose_validation(images(*["a"] * count), fraction)[0]) == size


def test_rare_classes_are_in_both_parts():
    candidates = images(*["a"] * 90, *["ab"] * 6, *["c"] * 2, "d", "")
    for fraction in (0.1, 0.2, 0.4):
        chosen, _ = choose_validation(candidates, fraction)
        val = [text for index in chosen for text in candidates[index].classes]
        train = [text for index in {*range(100)} - chosen for text in candidates[index].classes]
        assert {"a", "b", "c"} <= set(val)
        assert {"a", "b", "c", "d"} <= set(train)  # the only image of d is for training
        assert abs(len(chosen) - 100 * fraction) <= 2


def test_the_share_of_each_class_is_close_to_that_of_the_images():
    random = np.random.default_rng(0)
    shares = {"a": 0.9, "b": 0.5, "c": 0.2, "d": 0.1, "e": 0.03}
    texts = ["".join(label for label, share in shares.items() if random.random() < share) for _ in range(1000)]
    candidates = images(*texts)
    chosen, _ = choose_validation(candidates, 0.2)
    assert 195 <= len(chosen) <= 215
    for label in "abcde":
        holders = {index for index, each in enumerate(candidates) if label in each.classes}
        assert len(holders & chosen) / len(holders) == pytest.approx(0.2, abs=0.03)


def frames(folder: Path, count: int, *, videos: int, moving: bool = False) -> list[Candidate]:
    """Frames of several cameras, still ones or moving ones."""
    folder.mkdir(exist_ok=True)
    found = []
    for index in range(count):
        small = np.random.default_rng(index % videos).integers(0, 256, (8, 24, 3), dtype=np.uint8)
        wide = cv2.resize(small, (720, 240), interpolation=cv2.INTER_CUBIC)
        start = 4 * (index // videos) if moving else 0
        path = folder / f"video{index % videos}_{index // videos}.png"
        assert cv2.imwrite(str(path), wide[:, start : start + 240])
        found.append(Candidate(path.name, path, frozenset("a")))
    return found


def test_frames_of_a_video_stay_together(tmp_path):
    candidates = frames(tmp_path, 60, videos=10)
    chosen, note = choose_validation(candidates, 0.2)
    assert len(chosen) == 12
    videos = [{candidates[index].name.partition("_")[0] for index in part} for part in (chosen, {*range(60)} - chosen)]
    assert not videos[0] & videos[1]
    assert "50 images that are nearly the same" in note


def test_a_single_video_is_cut_into_runs(tmp_path):
    candidates = frames(tmp_path, 50, videos=1, moving=True)
    chosen, _ = choose_validation(candidates, 0.2)
    numbers = sorted(int(candidates[index].name[7:-4]) for index in chosen)
    assert len(numbers) == 10
    assert sum(after - before > 1 for before, after in pairwise(numbers)) <= 1  # two runs of five


def test_groups_that_are_larger_than_the_part_stay_whole(tmp_path):
    chosen, _ = choose_validation(frames(tmp_path, 12, videos=3, moving=True), 0.1)
    assert len(chosen) == 4


def test_copies_are_never_divided(tmp_path):
    """A video and a copy of each of its frames under other names."""
    first = frames(tmp_path / "a", 40, videos=1, moving=True)
    both = [*first, *(Candidate(f"b/{each.name}", tmp_path / "b" / each.name, each.classes) for each in first)]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    chosen, _ = choose_validation(both, 0.2)
    assert len(chosen) == 16
    assert all((index in chosen) == (index + 40 in chosen) for index in range(40))


def test_a_class_of_one_video_is_in_both_parts(tmp_path):
    """Frames in the order of their classes, as folders of a class a recording give."""
    video = frames(tmp_path, 100, videos=1, moving=True)
    candidates = [each._replace(classes=frozenset("abcde"[int(each.name[7:-4]) // 20])) for each in video]
    chosen, note = choose_validation(candidates, 0.2)
    assert {label for index in chosen for label in candidates[index].classes} == set("abcde")
    assert 17 <= len(chosen) <= 25
    assert "no image of" not in note


def test_a_class_that_one_part_lacks_is_named():
    _, note = choose_validation(images(*["a"] * 20, "rare"), 0.2)
    assert "no image of validation has the classes e, r" in note


def test_the_folder_and_the_slashes_do_not_count():
    names = [f"{i}.jpg" for i in range(50)]
    choices = [
        choose_validation([Candidate(form.format(name), NOWHERE / name, frozenset("a")) for name in names], 0.2)[0]
        for form in ("{}", "images/{}", "images\\{}", "data/set/images/{}")
    ]
    assert choices[1:] == choices[:1] * 3
