from __future__ import annotations

import copy

from codetr_cli.distributed.unit_set import UnitSet


def test_numbers_are_in_the_set_once():
    units = UnitSet(5, [3, 1, 3])
    units.add([0, 7, -1])  # two of which a file of somebody else may have
    assert list(units) == [0, 1, 3]
    assert len(units) == 3
    assert list(units.missing()) == [2, 4]
    assert 3 in units
    assert not {2, 7, -1} & units
    assert "3" not in units
    assert units == {0, 1, 3}
    assert list(copy.deepcopy(units)) == [0, 1, 3]
    assert not UnitSet(5)
