from __future__ import annotations

import pytest

from codetr_cli.data.writers.names import MAX_BYTES, NamePlan


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("a.jpg", "a.jpg"),
        ("two words/ü.b.PNG", "two words/ü.b.PNG"),
        ("../../etc/a.jpg", "etc/a.jpg"),
        ("/home/me/a.jpg", "home/me/a.jpg"),
        ("C:/a.jpg", "a.jpg"),
        ("a\\b.jpg", "a_b.jpg"),
        ("a\nb\udcff.jpg", "a_b_.jpg"),
        (".hidden.jpg", "_.hidden.jpg"),
        ("images/a.jpg", "_images/a.jpg"),
        ("photo", "photo.jpg"),
        ("x.data", "x.data.jpg"),
    ],
)
def test_a_name_that_every_reader_finds(name: str, given: str) -> None:
    assert NamePlan(by_stem=True).assign("train", name, "jpeg") == given


def test_names_differ_in_what_readers_join_by() -> None:
    plan = NamePlan(by_stem=True)
    assert [plan.assign("train", name) for name in ("a.jpg", "a.png", "A.JPG", "a_2.jpg")] == [
        "a.jpg",
        "a_2.png",
        "A_3.JPG",
        "a_2_2.jpg",
    ]
    assert plan.assign("val", "a.jpg") == "a.jpg"
    whole = NamePlan(by_stem=False)
    assert [whole.assign("", name) for name in ("a.jpg", "a.png", "A.jpg")] == ["a.jpg", "a.png", "A_2.jpg"]


def test_names_for_lists_have_no_flags_and_no_second_suffix() -> None:
    plan = NamePlan(by_stem=True, for_lists=True)
    given = [plan.assign("", name) for name in ("n 1.jpg", "n -1.jpg", "x.jpg.png", "b .jpg", "n 12.jpg")]
    assert given == ["n_1.jpg", "n_-1.jpg", "x_jpg.png", "b.jpg", "n 12.jpg"]


def test_long_names_are_shortened_and_stay_different() -> None:
    plan = NamePlan(by_stem=True)
    given = [plan.assign("", f"{'狐' * 80}{number}.jpg") for number in range(2)]
    assert all(len(name.encode()) <= MAX_BYTES and name.endswith(".jpg") for name in given)
    assert given[0] != given[1]
