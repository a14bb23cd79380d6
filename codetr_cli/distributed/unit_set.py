"""Numbers of units as a set of one byte each: a set of Python's of a million numbers has a hundred times as much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set


class UnitSet(Set[int]):
    """Some of the numbers 0, ..., count - 1.

    Args:
        count: how many there can be.
        units: those that it has.
    """

    def __init__(self, count: int, units: Iterable[int] = ()) -> None:
        self._has = bytearray(count)
        self._size = 0
        self.add(units)

    def add(self, units: Iterable[int]) -> None:
        """Adds numbers; those that cannot be in the set are ignored."""
        for unit in units:
            if 0 <= unit < len(self._has) and not self._has[unit]:
                self._has[unit] = 1
                self._size += 1

    def __contains__(self, unit: object) -> bool:
        return isinstance(unit, int) and 0 <= unit < len(self._has) and self._has[unit] == 1

    def __iter__(self) -> Iterator[int]:
        return (unit for unit, has in enumerate(self._has) if has)

    def __len__(self) -> int:
        return self._size

    def missing(self) -> Iterator[int]:
        """The numbers that it does not have."""
        return (unit for unit, has in enumerate(self._has) if not has)
