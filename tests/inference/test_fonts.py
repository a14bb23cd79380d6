from __future__ import annotations

import numpy as np
import pytest

from codetr_cli.inference import fonts
from codetr_cli.inference.fonts import GAP, is_drawable, missing_fonts, text_patch, text_size


@pytest.fixture
def without_fonts(monkeypatch):
    """A machine without any font but Pillow's own one."""
    monkeypatch.setattr(fonts, "_fonts", list)
    for cached in (fonts._font_for, fonts.text_size):
        cached.cache_clear()
    yield
    for cached in (fonts._font_for, fonts.text_size):
        cached.cache_clear()


@pytest.mark.parametrize("text", ["thing", "thing" + GAP + "0.90", "\u043a\u043e\u0442", "\xe7al\u0131 ku\u015fu", ""])
@pytest.mark.parametrize("size", [10, 22, 90])
def test_a_patch_has_the_size_of_its_text(text, size):
    patch = text_patch(text, size)
    width, height = text_size(text, size)
    assert patch.shape == (height, width)
    assert patch.dtype == np.uint8
    assert bool(patch.any()) == bool(text)


def test_characters_beyond_pillows_font_are_drawn_with_another():
    """Matplotlib comes with DejaVu Sans, so that these need no font of the machine."""
    names = ["\u043a\u043e\u0448\u043a\u0430", "\u03b3\u03ac\u03c4\u03b1", "chat \xe9l\xe9gant"]
    assert missing_fonts(names) == ""
    empty = text_patch("\ufffe", 20)
    for name in names:
        patch = text_patch(name[:1], 20)
        assert patch.shape != empty.shape or (patch != empty).any()


def test_names_without_a_font_are_listed(without_fonts):
    assert is_drawable("cat" + GAP + "0.50")
    assert not is_drawable("\u732b")
    sentence = missing_fonts(["cat", "\u732b", "\U000f1234"])
    assert "2 class names (\u732b, " in sentence
    assert "Noto" in sentence


def test_a_file_that_is_no_font_is_skipped(tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert fonts._characters(str(tmp_path / "broken.ttf")) == frozenset()
    assert fonts._characters(str(tmp_path / "absent.ttf")) == frozenset()


def test_a_font_of_the_machine_is_found_by_its_characters(tmp_path, monkeypatch):
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib import font_manager

    pen = TTGlyphPen(None)
    for x, y in ((0, 0), (0, 800), (800, 800), (800, 0)):
        (pen.lineTo if x or y else pen.moveTo)((x, y))
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({0x732B: "cat"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Cat", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cat.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    files = [str(tmp_path / name) for name in ("broken.ttf", "cat.ttf")]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    cached = (fonts._fonts, fonts._font_for, fonts.text_size)
    for each in cached:
        each.cache_clear()
    try:
        assert missing_fonts(["\u732b"]) == ""
        assert text_patch("\u732b", 20).max() == 255
        assert missing_fonts(["\u732b\u72ac"]), "no font has both"
    finally:
        for each in cached:
            each.cache_clear()
