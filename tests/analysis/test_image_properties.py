"""What images look like, which are read, and the groups that come of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from codetr_cli.analysis import image_properties as module
from codetr_cli.analysis.image_properties import groups_of_images, image_properties
from codetr_cli.analysis.inputs import AnalysisInputs
from tests.analysis.scene import Scene

COUNT = 60


def write(path: Path, pixels: np.ndarray) -> None:
    assert cv2.imwrite(str(path), pixels)


def dark_to_bright(folder: Path, suffix: str = ".jpg", count: int = COUNT) -> AnalysisInputs:
    """Images from black to white; every third has fine stripes."""
    scene = Scene(folder, images=count)
    for image in range(1, count + 1):
        name = f"{image}{suffix}"
        scene.content["images"][image - 1]["file_name"] = name
        pixels = np.full((300, 400, 3), 20 + image * 3, np.uint8)
        if image % 3 == 0:
            pixels[:, ::8] = 255 - pixels[:, ::8]
        write(folder / name, pixels)
        scene.annotate((10, 10, 50, 50), image=image)
    return scene.inputs()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_properties_are_measured(tmp_path: Path, suffix: str) -> None:
    found = image_properties(dark_to_bright(tmp_path, suffix))
    assert found.read == found.sampled == COUNT
    plain = np.arange(COUNT) % 3 != 2
    assert found.brightness[plain] == pytest.approx((20 + 3 * np.arange(1, COUNT + 1)[plain]) / 255, abs=0.01)
    assert found.contrast[plain].max() < 0.01
    assert found.contrast[2] > 0.1
    assert found.sharpness[2] > 0.5 > found.sharpness[plain].max()


def test_large_images_are_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, images=2)
    pixels = np.random.default_rng(0).integers(0, 255, (2000, 3000, 3), np.uint8)
    write(tmp_path / "1.jpg", pixels)
    write(tmp_path / "2.png", pixels)
    scene.content["images"][1]["file_name"] = "2.png"
    sizes = []
    laplacian = cv2.Laplacian
    monkeypatch.setattr(
        module.cv2, "Laplacian", lambda image, kind: (sizes.append(image.shape), laplacian(image, kind))[1]
    )
    assert image_properties(scene.inputs()).read == 2
    assert sizes == [(250, 375)] * 2


def test_groups_are_of_equal_size(tmp_path: Path) -> None:
    inputs = dark_to_bright(tmp_path)
    groups, reasons = groups_of_images(inputs, image_properties(inputs))
    by_key = {group.key: group.groups for group in groups}
    assert [len(images) for images, _, _ in by_key["brightness"].values()] == [20, 20, 20]
    assert next(iter(by_key["brightness"])).startswith("0.")
    assert reasons["image-size"] == "nearly all images have about the same value"
    assert "objects-per-image" in reasons


def test_missing_and_broken_images_are_skipped(tmp_path: Path) -> None:
    inputs = dark_to_bright(tmp_path)
    (tmp_path / "1.jpg").unlink()
    (tmp_path / "2.jpg").write_bytes(b"not an image")
    (tmp_path / "3.jpg").write_bytes((tmp_path / "3.jpg").read_bytes()[:300])
    (tmp_path / "4.jpg").unlink()
    (tmp_path / "4.jpg").mkdir()
    found = image_properties(inputs)
    assert found.read == COUNT - 4
    assert np.isnan(found.brightness[:4]).all()
    groups, _ = groups_of_images(inputs, found)
    assert "Measured on 56 of 60 images." in groups[0].how_to_read


def test_names_that_lead_out_of_the_data_set_are_not_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    write(outside, np.zeros((50, 50, 3), np.uint8))
    (tmp_path / "data").mkdir()
    scene = Scene(tmp_path / "data", images=2)
    scene.content["images"][0]["file_name"] = "../outside.png"
    scene.content["images"][1]["file_name"] = str(outside)
    inputs = scene.inputs()
    assert image_properties(inputs).read == 0
    allowed = replace(inputs.paths, names=replace(inputs.paths.names, allow_outside=True))
    assert image_properties(replace(inputs, paths=allowed)).read == 2


def test_without_images_there_is_a_reason(tmp_path: Path) -> None:
    inputs = Scene(tmp_path, images=50).inputs()
    groups, reasons = groups_of_images(inputs, image_properties(inputs))
    assert groups == []
    assert reasons["brightness"] == f"none of 50 images could be read in {tmp_path}"


def test_few_images_have_no_groups(tmp_path: Path) -> None:
    inputs = dark_to_bright(tmp_path, count=30)
    groups, reasons = groups_of_images(inputs, image_properties(inputs))
    assert groups == []
    assert reasons["brightness"] == "30 images are too few for groups of 20"


def test_the_sample_is_limited_by_number_and_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = dark_to_bright(tmp_path)
    inputs.ground_truth.sizes[:] = 1  # the files decide
    monkeypatch.setattr(module, "MAX_IMAGES", 10)
    found = image_properties(inputs)
    assert (found.read, found.sampled) == (10, 10)
    monkeypatch.setattr(module, "MAX_PIXELS", 4 * 400 * 300)
    assert image_properties(inputs).read == 4
    monkeypatch.setattr(module, "MAX_PIXELS", 400 * 300 - 1)  # none of them is read
    assert image_properties(inputs).read == 0


def test_images_without_a_size(tmp_path: Path) -> None:
    inputs = Scene(tmp_path, images=50).inputs()
    inputs.ground_truth.sizes[:] = 0
    _, reasons = groups_of_images(inputs, image_properties(inputs))
    assert reasons["image-size"] == "the annotations have no sizes of images"


def test_images_by_their_number_of_objects(tmp_path: Path) -> None:
    scene = Scene(tmp_path, images=4)
    for image, objects in ((1, 1), (2, 3), (3, 60)):
        for _ in range(objects):
            scene.annotate((10, 10, 50, 50), image=image)
    scene.annotate((10, 10, 50, 50), image=4, crowd=1)
    inputs = scene.inputs()
    groups, _ = groups_of_images(inputs, image_properties(inputs))
    (group,) = groups
    assert {label: (rows.tolist(), high) for label, (rows, _, high) in group.groups.items()} == {
        "1": ([0], 1),
        "2 to 4": ([1], 3),
        "50 and more": ([2], 60),
    }


@pytest.mark.parametrize(("widths", "divided"), [((400, 440), False), ((200, 800), True)])
def test_images_of_about_one_size_are_not_divided(tmp_path: Path, widths: tuple[int, int], divided: bool) -> None:
    inputs = Scene(tmp_path, images=60).inputs()
    inputs.ground_truth.sizes[:, 1] = np.linspace(*widths, 60).astype(int)
    groups, reasons = groups_of_images(inputs, image_properties(inputs))
    assert [group.key for group in groups] == ["image-size"] * divided
    assert ("image-size" in reasons) != divided


def test_groups_whose_values_round_to_the_same_are_all_kept() -> None:
    values = 0.08 + np.arange(80) * 1e-5
    groups = module._quantile_groups(values, 2)
    assert sum(len(members) for members, _, _ in groups.values()) == 80
    assert list(groups) == ["0.0800 to 0.0802", "0.0802 to 0.0804", "0.0804 to 0.0806", "0.0806 to 0.0808"]
