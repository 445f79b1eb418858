"""A set of texts that only says whether one is in it, for millions of records in little memory."""

from __future__ import annotations

from array import array
from hashlib import blake2b

_FREE = 0


class Seen:
    """The digests of the texts added so far: 16 to 32 bytes a text, where a `set` of texts takes over 100.

    A digest has 64 bits: among two million texts the chance that any two are taken for one is 1e-7.
    """

    def __init__(self) -> None:
        self._slots = _free_slots(1024)
        self._count = 0

    def __contains__(self, text: str) -> bool:
        return self._slots[self._place(_digest(text))] != _FREE

    def add(self, text: str) -> None:
        """Take `text` in; once more changes nothing."""
        digest = _digest(text)
        place = self._place(digest)
        if self._slots[place] == _FREE:
            self._slots[place] = digest
            self._count += 1
            # Beyond half full the search for a free slot grows long.
            if 2 * self._count > len(self._slots):
                self._grow()

    def _place(self, digest: int) -> int:
        """The slot that `digest` is in, or the free one where it belongs."""
        slots, last = self._slots, len(self._slots) - 1
        place = digest & last
        while slots[place] not in (_FREE, digest):
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        old = self._slots
        self._slots = _free_slots(2 * len(old))
        for digest in old:
            if digest != _FREE:
                self._slots[self._place(digest)] = digest


def _free_slots(count: int) -> array[int]:
    return array("Q", [_FREE]) * count


def _digest(text: str) -> int:
    # Ids of a base may hold half surrogates.
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") or 1
