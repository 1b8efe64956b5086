"""The tail of one worker: an append-only file of the steps that its next posting enters into the books.

An entry is written by one call, and is there for everybody once the call returns: `kill -9` loses none. Nothing is
synced; after a power loss the file may end early, and all that its owner held is UNKNOWN (`buyer.lease`).

The file decides who was first. Whoever wants the lease back appends a last word to it, and what its owner appends after
that does not count, which the owner sees by the place where its entry came to lie. So one writes without asking, the
other takes back without waiting, and no lock is between them.

An entry is its length and CRC-32 as two little-endian 32-bit numbers, and a MessagePack array: the step's name, the
authorization's row, the step's values.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from contracts.errors import StoreUnavailable

__all__ = ["Entry", "Tail", "Unposted", "call_in", "read_tail"]

_HEAD = struct.Struct("<II")
# The last word is not an entry: nothing has its row.
_LAST_WORD = "called in"
_NO_ROW = 0


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One step of a claim: its name in `buyer.steps`, the row of the authorization, and what it says."""

    step: str
    row_id: int
    values: dict[str, Any]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


@dataclass(frozen=True, slots=True)
class Unposted:
    """What a tail holds behind an offset. `end` is where its last whole entry ends; `is_over`: nothing may follow."""

    entries: list[Entry]
    end: int
    is_over: bool


class Tail:
    """The owner's side of a new file at `path`, mode 0600; safe for threads. Raises `StoreUnavailable`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Of the entries that count, in bytes; what lies behind it after a failed write does not count.
        self.size = 0
        self.is_over = False
        # What nobody has asked for yet of what counts, each with where it ends, and where the first of it begins.
        self._recent: deque[tuple[int, str, int, dict[str, Any]]] = deque()
        self._recent_from = 0
        self._lock = threading.Lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailable(f"{path.name}: {error.strerror}") from None

    def append(self, step: str, row_id: int, values: dict[str, Any]) -> bool:
        """Write one entry; False when the tail is over, so that the entry does not count.

        Raises `StoreUnavailable` when nobody knows whether it was written; then the tail is over, too.
        """
        body = _encode((step, row_id, values))
        data = _HEAD.pack(len(body), zlib.crc32(body)) + body
        with self._lock:
            if self.is_over:
                return False
            # Over, unless all of it lies where it should.
            self.is_over = True
            try:
                written, end = os.write(self._file, data), os.lseek(self._file, 0, os.SEEK_CUR)
            except OSError as error:
                raise StoreUnavailable(f"{self.path.name}: {error.strerror}") from None
            if written != len(data):
                raise StoreUnavailable(f"{self.path.name}: only part of a step could be written")
            if end != self.size + written:
                return False
            self.size, self.is_over = end, False
            self._recent.append((end, step, row_id, values))
            return True

    def finish(self) -> None:
        """Append nothing more."""
        with self._lock:
            self.is_over = True

    def reach(self) -> tuple[int, bool]:
        """Return how many bytes count, and whether that is final."""
        with self._lock:
            return self.size, self.is_over

    def since(self, start: int) -> Unposted | None:
        """Return what counts behind the byte `start`, without a look at the file; None where one is needed.

        What ends at `start` or before is forgotten here: whoever asks has it. A last word of others is not looked for:
        they say it in the books, too, or the next entry finds it.
        """
        with self._lock:
            while self._recent and self._recent[0][0] <= start:
                self._recent_from, *_ = self._recent.popleft()
            if self._recent_from != start:
                return None
            entries = [Entry(step, row_id, values) for _, step, row_id, values in self._recent]
            return Unposted(entries, self.size, self.is_over)

    def close(self) -> None:
        """Close and remove the file. What it says must be in the books, or void."""
        self.finish()
        os.close(self._file)
        self.path.unlink(missing_ok=True)


def call_in(path: Path) -> None:
    """Say the last word: what is appended after it does not count. Raises `FileNotFoundError`, `OSError`."""
    body = _encode((_LAST_WORD, _NO_ROW, {}))
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(file, _HEAD.pack(len(body), zlib.crc32(body)) + body)
    finally:
        os.close(file)


def read_tail(path: Path, start: int, limit: int | None = None) -> Unposted:
    """Return what follows the byte `start`, up to `limit`. Raises `FileNotFoundError`, `OSError`.

    It ends at the first entry that is not whole: one that is being written, or could not be.
    """
    with path.open("rb") as file:
        file.seek(start)
        data = file.read() if limit is None else file.read(max(0, limit - start))
    entries: list[Entry] = []
    place = 0
    while (entry := _entry_at(data, place)) is not None:
        found, place = entry
        if found.step == _LAST_WORD:
            return Unposted(entries, start + place, is_over=True)
        entries.append(found)
    return Unposted(entries, start + place, is_over=False)


def _entry_at(data: bytes, place: int) -> tuple[Entry, int] | None:
    begin = place + _HEAD.size
    if begin > len(data):
        return None
    length, checksum = _HEAD.unpack_from(data, place)
    body = data[begin : begin + length]
    if len(body) < length or zlib.crc32(body) != checksum:
        return None
    try:
        return _decode(body), begin + length
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
