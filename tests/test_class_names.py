from __future__ import annotations

import pytest

from codetr_cli.class_names import plain_class_name


@pytest.mark.parametrize("spelling", ["Traffic Light", "traffic_light", " TRAFFIC-light ", "traffic  _light"])
def test_spellings_of_a_name_compare_equal(spelling: str):
    assert plain_class_name(spelling) == "traffic light"


def test_other_names_stay_apart():
    assert plain_class_name("trafficlight") != plain_class_name("traffic light")
