"""Text of any origin in Markdown: no markup, and tables that keep their columns."""

from __future__ import annotations

from codetr_cli.markdown import plain, table


def test_text_does_not_become_markup():
    assert plain("a\nb  c") == "a b c"
    assert plain("`code` <b> [link](https://x)") == "'code' &lt;b> \\[link](https://x)"
    assert plain("\udcff") == "\\udcff"


def test_tables_keep_their_columns():
    assert table(("a", "b"), [("x|y", "1")]) == ["| a | b |", "| --- | --- |", "| x\\|y | 1 |"]
