"""Opens zip archives whose directory, sizes and members are checked before anything is unpacked."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import IO

ZIP_MAGIC, ZIP_HEADER_BYTES = b"PK\x03\x04", 30  # of a member
MAX_DIRECTORY_BYTES = 1 << 23  # of an archive: about 80,000 tensors
MAX_COMPRESSION = 100  # of a whole archive; weights hardly become smaller
MAX_UNPACKED, MAX_LARGE_COMPRESSION = 1 << 26, 4  # bytes that any archive may unpack to, and the ratio beyond them
PLAIN_FLAGS = 0x800 | 0x8 | 0x6  # text in UTF-8, sizes behind the data, compression options; others mean encryption


class _Directory:
    """A stream for `zipfile` that refuses a directory too large to read; afterwards it reads members of any size."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.is_read = file, False
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        if self.is_read:
            return self._file.read(count)
        wanted = MAX_DIRECTORY_BYTES + 1 if count < 0 else min(count, MAX_DIRECTORY_BYTES + 1)
        content = self._file.read(wanted)
        if len(content) > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("its directory is too large")
        return content


def open_zip(file: IO[bytes]) -> zipfile.ZipFile:
    """Opens an archive for reading.

    Args:
        file: a seekable stream; it stays open.

    Raises:
        BadZipFile: damaged, a directory that is too large, two members of one name, members that overlap, are
            encrypted, compressed by another method than deflate, or become much larger than the file.
    """
    size = file.seek(0, io.SEEK_END)
    directory = _Directory(file)
    archive = zipfile.ZipFile(directory)
    directory.is_read = True
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    if len({entry.filename for entry in entries}) != len(entries):
        raise zipfile.BadZipFile("two members have one name")
    end = 0
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & ~PLAIN_FLAGS:
            raise zipfile.BadZipFile(f"{entry.filename} is encrypted or compressed by an unusual method")
        if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
            raise zipfile.BadZipFile(f"{entry.filename} has two sizes")
        if entry.header_offset < end:
            raise zipfile.BadZipFile("members overlap")
        end = entry.header_offset + ZIP_HEADER_BYTES + entry.compress_size
    unpacked = sum(entry.file_size for entry in entries if entry.compress_type != zipfile.ZIP_STORED)
    if end > size or unpacked > min(MAX_COMPRESSION * size, MAX_UNPACKED + MAX_LARGE_COMPRESSION * size):
        raise zipfile.BadZipFile("members exceed the file, or become much larger than the file")
    return archive


def member_start(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member start in the file of an archive."""
    file.seek(entry.header_offset)
    header = file.read(ZIP_HEADER_BYTES)
    if len(header) < ZIP_HEADER_BYTES or header[:4] != ZIP_MAGIC:
        raise zipfile.BadZipFile(f"{entry.filename} is not where the directory says")
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    start: int = entry.header_offset + ZIP_HEADER_BYTES + name_length + extra_length
    name = file.read(name_length)
    if name != entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437"):
        raise zipfile.BadZipFile(f"{entry.filename} has another name where the directory says it is")
    if start + entry.file_size > file.seek(0, io.SEEK_END):
        raise zipfile.BadZipFile(f"{entry.filename} exceeds the file")
    return start
