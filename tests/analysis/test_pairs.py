from __future__ import annotations

import numpy as np

from codetr_cli.analysis.matches import inside_area, match_pairs
from codetr_cli.analysis.pairs import pair_detections
from tests.analysis.input_samples import material
from tests.analysis.run_samples import annotations, detections, inputs


def test_large_numbers_of_pairs_are_split(tmp_path, monkeypatch):
    sample = material(tmp_path)
    expected = pair_detections(sample).pairs
    monkeypatch.setattr("codetr_cli.analysis.pairs.PAIRS_AT_ONCE", 7)
    found = pair_detections(sample).pairs
    assert len(found.ious) > 7
    for name in ("detections", "objects", "ious"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))


def test_one_pairing_serves_all_ranges():
    truth = annotations(30, crowds=3)
    sample = inputs(truth, detections(truth, seed=3))
    paired = pair_detections(sample)
    before = match_pairs(paired, *inside_area(sample))
    small = match_pairs(paired, *inside_area(sample, (0, 32**2)))
    again = match_pairs(paired, *inside_area(sample))
    assert not np.array_equal(small.ignored, before.ignored)
    assert np.array_equal(again.objects, before.objects)
    assert np.array_equal(again.ignored, before.ignored)
