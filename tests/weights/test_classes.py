"""Class names that mean the same."""

from __future__ import annotations

from codetr_cli.weights.classes import COCO_CATEGORIES, match_names


def test_names_that_mean_the_same():
    coco = list(COCO_CATEGORIES.values())
    lvis = [
        "aerosol_can",
        "mouse_(computer_equipment)",
        "television_set",
        "orange_(fruit)",
        "orange_juice",
        "teddy_bear",
    ]
    found = match_names(lvis, coco)
    assert [None if label is None else coco[label] for label in found] == [
        None,
        "mouse",
        "tv",
        "orange",
        None,
        "teddy bear",
    ]
    assert match_names(["Person", "Cell Phone", "Moniter/TV"], coco) == [0, coco.index("cell phone"), coco.index("tv")]
    # A word that several classes share is ambiguous.
    assert match_names(["bow_(weapon)", "bow_(tie)"], ["bow"]) == [None, None]
    assert match_names(["bow"], ["bow_(weapon)", "bow_(tie)"]) == [None]
    assert match_names(["bow_(tie)", "bow"], ["bow", "bow_(tie)"]) == [1, 0]
    assert match_names(["sofa", "couch"], ["couch"]) == [None, 0]
    assert match_names([], ["a"]) == []
