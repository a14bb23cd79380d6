"""Broken variants of JSON files: values of any kind in any place, keys gone or doubled, bytes changed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

RAW = ("NaN", "-Infinity", "1e400", "9" * 30, "9" * 5000, "1.5", "1.0", "-1", "-0.0", "1e300", "2147483648",
       "18446744073709551616", "9007199254740993", "1" + "0" * 400, '"\\u0000"', '"\\ud800"', '"\\u001b[2J\\n"',
       '"../x"', '"/etc/passwd"', '"' + "a" * 5000 + '"', '""', '"segmentation"', "[" * 200 + "]" * 200,
       "[" * 3000 + "]" * 3000, '{"a":' * 300 + "1" + "}" * 300, "[[1,2,3]]", "[[1e9,1,1e9,2,1e9,3]]",
       '{"size":[9,9],"counts":[81]}',
       '{"size":[1e6,1000000],"counts":"0"}', '{"size":[48,64],"counts":[0,18446744073709551616]}',
       '{"size":[48,64],"counts":"0oooooooooooo0"}', "[true]", "[0]", "[1,,2]")  # fmt: skip
"""JSON texts, valid or not, that take the place of a value."""
PLAIN: tuple[Any, ...] = (None, True, False, 0, 1, 2, "", "x", "1", [], {}, [None], {"id": 1}, [[]], 0.5)
BYTES = (b"\0", b"\xff", b"{", b"}", b"[", b"]", b'"', b"\\", b",", b"e", b"-", b"\xed\xa0\x80", b"")
_HOLE = "@hole@"


def variants(content: Any, seed: int, count: int) -> Iterator[bytes]:
    """Broken variants of a JSON value, the same ones for a seed."""
    generator = random.Random(seed)
    places = list(_places(content))
    for _ in range(count):
        kind = generator.random()
        if kind < 0.75:
            yield _with_other_value(content, generator.choice(places), generator)
        else:
            yield _with_other_bytes(json.dumps(content).encode(), generator)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in entries:
        yield (*path, key)
        yield from _places(child, (*path, key))


def _with_other_value(content: Any, path: tuple[Any, ...], generator: random.Random) -> bytes:
    content = copy.deepcopy(content)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    action = generator.random()
    if action < 0.1:
        del parent[key]
    elif action < 0.2 and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    elif action < 0.2:
        return json.dumps(content).replace(f'"{key}":', f'"{key}": {generator.choice(RAW)}, "{key}":', 1).encode()
    elif action < 0.5:
        parent[key] = generator.choice(PLAIN)
    else:
        parent[key] = _HOLE
    return json.dumps(content).replace(f'"{_HOLE}"', generator.choice(RAW)).encode()


def _with_other_bytes(text: bytes, generator: random.Random) -> bytes:
    start = generator.randrange(len(text))
    action = generator.random()
    if action < 0.3:
        return text[:start]
    if action < 0.4:
        return generator.choice((b"\xef\xbb\xbf", b"\xff\xfe", b" \n", b"\0" * 9)) + text
    if action < 0.5:
        return text.decode().encode(generator.choice(("utf-16", "utf-32", "utf-16-be")))
    stop = start + generator.randrange(0, 40)
    return text[:start] + generator.choice(BYTES) * generator.randrange(1, 5) + text[stop:]
