"""Text of any origin in Markdown: no markup, and tables that keep their columns."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from codetr_cli.markdown import code, plain, table


def test_text_does_not_become_markup():
    assert plain("a\nb  c") == "a b c"
    assert plain("`code` <b> [link](https://x)") == "'code' &lt;b> \\[link](https:\\//x)"
    assert plain("\udcff") == "\\\\udcff"


@pytest.mark.parametrize(
    "text",
    [
        r"\[click](https://x.org) ![x](https://x.org/a.png)",
        "*a* **b** <img src=x> <https://x.org>",
        r"\\[a](b) \<b> \*c*",
        "https://x.org www.x.org",
    ],
)
def test_a_reader_sees_the_text_itself(text: str):
    rendered = MarkdownIt().render(plain(text))
    assert rendered == f"<p>{text.replace('<', '&lt;').replace('>', '&gt;')}</p>\n"
    # What readers of the Hub look for in the source, before anything else is read.
    assert not any(mark in plain(text) for mark in ("://", "www."))


def test_code_shows_everything_as_it_is():
    assert code("C:\\[a]*b*\n`c`") == "`C:\\[a]*b* 'c'`"


def test_tables_keep_their_columns():
    assert table(("a", "b"), [("x|y", "1")]) == ["| a | b |", "| --- | --- |", "| x\\|y | 1 |"]
