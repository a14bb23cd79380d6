from __future__ import annotations

from tests.analysis.input_samples import inputs_of, material


def test_images_and_objects_of_a_part_of_the_images(tmp_path):
    everything = material(tmp_path)
    assert everything.image_ids.tolist() == [5, 7, 12, 13, 14, 15, 16, 17, 18, 900]  # the file starts with 7
    part = inputs_of(tmp_path / "a.json", everything.detections, images=[900, 7, 7, 4])
    truth = part.ground_truth
    assert part.image_ids.tolist() == [7, 900]
    assert truth.image_ids[part.file_rows].tolist() == [7, 900]
    assert set(truth.image_ids[truth.image_rows[part.object_rows]].tolist()) <= {7, 900}
    assert len(part.object_rows) == sum(truth.image_ids[row] in (7, 900) for row in truth.image_rows)
    assert set(part.detections.image_ids.tolist()) == {7, 900}
    assert [part.file_name(image) for image in range(2)] == ["7.jpg", "900.jpg"]
    assert part.image_path(1) == tmp_path / "900.jpg"
    assert part.image_size(0) == tuple(truth.sizes[0].tolist())
