"""A key-value store in one process."""

from __future__ import annotations


class KeyValueStore(dict[str, bytes]):
    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self[key] for key in keys]

    def add(self, key: str, amount: int) -> int:
        number = int(self.get(key, b"0")) + amount
        self[key] = str(number).encode()
        return number
