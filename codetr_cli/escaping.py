"""Text from files, names and servers as a terminal may show it: control characters become visible."""

from __future__ import annotations

import re

# C0 and C1 controls, among them escape sequences and line ends; marks that change the direction of what follows; line
# and paragraph separators; surrogates, which stand for the bytes of names that are not UTF-8.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_USER = re.compile(r"""(:/{1,2})[^\s/@?#'"]{1,500}@""")
_PARAMETER = re.compile(
    r"""([?&][\w.-]{0,40}?(?:token|sig|key|secret|passw|credential|auth)[\w.-]{0,40}=)[^\s&'"]+""", re.IGNORECASE
)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str) -> str:
    r"""The text in one line, with every control character escaped: `\n`, `\x1b`, `\u202e`.

    A byte of a file name that is not UTF-8 becomes `\xff`. Everything else stays as it is, backslashes too.
    """
    return _CONTROL.sub(_escaped, text)


def visible_lines(text: str) -> str:
    r"""As `visible`, but line ends and tabs stay."""
    return _CONTROL.sub(lambda match: match[0] if match[0] in "\n\t" else _escaped(match), text)


def without_credentials(text: str) -> str:
    """The text without user and password of URLs, and without the values of parameters that are secret by their names.

    For errors that repeat a word of the command: a URL may be where a path is expected. `weights.urls.shown_url` hides
    more of a URL that is one.
    """
    return _PARAMETER.sub(r"\1***", _USER.sub(r"\1***@", text))


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte
        code -= 0xDC00
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
