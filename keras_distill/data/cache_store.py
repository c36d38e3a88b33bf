"""The folder of a `TeacherCache`: a manifest, a file of records a view, checksums.

    manifest.json     the layout and what the cache was made from, with a checksum of itself
    view-00000-ID.bin the records of view 0, by sample id: record i begins at byte i * size
    marks/            one small file a block while the cache is built: its checksum
    checksums.json    the checksum (CRC-32) of each block, written once all are there

A block is so many records of a view. It is written to its place, then marked: what a kill leaves
without a mark is made again. Numbers are little-endian. Nothing is pickled.
"""

import concurrent.futures
import json
import os
import pathlib
import shutil
import zlib

import numpy as np

from keras_distill import _files

BLOCK_BYTES = 2**24
READ_BYTES = 2**22
MOST_JSON_BYTES = 2**28


class CacheError(ValueError):
    """A cache that is stale, truncated, foreign or corrupt; the message says what differs."""


class Store:
    """The files of a cache.

    Args:
        path: The folder.
        manifest: Its manifest, as `cache_manifest.read_manifest` returns it.
    """

    def __init__(self, path, manifest):
        self.path = pathlib.Path(path)
        self.manifest = manifest
        self.samples, self.views = manifest["samples"], manifest["views"]
        self.record_bytes, self.block = manifest["record_bytes"], manifest["block"]
        self.blocks = -(-self.samples // self.block)

    def view_path(self, view):
        """The file of a view's records."""
        return self.path / f"view-{view:05d}-{self.manifest['id']}.bin"

    def rows(self, block):
        """The samples `(first, end)` of a block."""
        return block * self.block, min((block + 1) * self.block, self.samples)

    # Writing.

    def allocate(self, view):
        """Makes the file of a view at its full size, where it is missing."""
        path, size = self.view_path(view), self.samples * self.record_bytes
        if path.exists() and path.stat().st_size == size:
            return
        with open(path, "ab") as file:
            file.truncate(size)

    def write(self, view, block, records):
        """Writes a block of records and marks it."""
        first, end = self.rows(block)
        data = records.tobytes()
        if len(data) != (end - first) * self.record_bytes:
            raise AssertionError("records of another number or size than the block")
        with open(self.view_path(view), "r+b") as file:
            file.seek(first * self.record_bytes)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._mark(view, block).parent.mkdir(exist_ok=True)
        write_json(self._mark(view, block), {"crc32": zlib.crc32(data)})

    def _mark(self, view, block):
        return self.path / "marks" / f"{view:05d}-{block:05d}.json"

    def is_marked(self, view, block):
        """Whether a block is written."""
        try:
            return _is_checksum(read_json(self._mark(view, block)).get("crc32"))
        except CacheError:
            return False

    @property
    def is_complete(self):
        """Whether all blocks are written, and their checksums in one file."""
        return (self.path / "checksums.json").exists()

    def missing(self):
        """The blocks `(view, block)` that are still to be written."""
        if self.is_complete:
            return []
        try:
            there = set(os.listdir(self.path / "marks"))
        except (FileNotFoundError, NotADirectoryError):
            there = set()
        every = ((view, block) for view in range(self.views) for block in range(self.blocks))
        found = [
            place
            for place in every
            if self._mark(*place).name not in there or not self.is_marked(*place)
        ]
        # Another worker may have gathered and dropped the marks in the meantime.
        return [] if self.is_complete else found

    def finish(self):
        """Gathers the checksums into one file; drops the marks, and what kills left.

        Several workers that end together may all do so.
        """
        if not self.is_complete:
            try:
                found = [
                    [read_json(self._mark(view, block))["crc32"] for block in range(self.blocks)]
                    for view in range(self.views)
                ]
            except CacheError:
                if self.is_complete:  # another worker did it, and drops the marks
                    return
                raise
            write_json(self.path / "checksums.json", {"crc32": found})
        shutil.rmtree(self.path / "marks", ignore_errors=True)
        _files.clear_left(self.path)

    # Reading.

    def check_complete(self):
        """Raises unless every block is there."""
        missing = self.missing()
        if missing:
            raise CacheError(
                f"Expected a whole cache at {str(self.path)!r}. Received: "
                f"{self.views * self.blocks - len(missing)} of {self.views * self.blocks} blocks. "
                "Call TeacherCache.build again, with the same arguments: it goes on."
            )
        if not self.is_complete:
            self.finish()
        for view in range(self.views):
            path, size = self.view_path(view), self.samples * self.record_bytes
            found = path.stat().st_size if path.exists() else None
            if found != size:
                raise CacheError(
                    f"Expected {path.name!r} to have {size} bytes. Received: "
                    f"{'no such file' if found is None else f'{found} bytes'}. The cache is "
                    f"truncated or foreign: {again(self.path)}"
                )

    def verify(self):
        """Compares every block with its checksum.

        Raises:
            CacheError: If a block differs; it names the view and the samples.
        """
        self.check_complete()
        sums = read_json(self.path / "checksums.json").get("crc32")
        if not self._are_checksums(sums):
            raise CacheError(
                f"Expected checksums of {self.views} views of {self.blocks} blocks in "
                f"'checksums.json'. Received: {repr(sums)[:60]}. It is foreign or corrupt: "
                f"{again(self.path)}"
            )
        places = [(view, block) for view in range(self.views) for block in range(self.blocks)]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for (view, block), crc in zip(places, pool.map(lambda p: self._crc(*p), places)):
                if crc != sums[view][block]:
                    first, end = self.rows(block)
                    raise CacheError(
                        f"Expected the samples {first} to {end - 1} of "
                        f"{self.view_path(view).name!r} as they were written. Received: other "
                        f"bytes (CRC-32 {crc:08x} for {sums[view][block]:08x}). The file is "
                        f"corrupt: {again(self.path)}"
                    )

    def _are_checksums(self, sums):
        """Whether `sums` is a list of views of lists of checksums, one a block."""
        lists = isinstance(sums, list) and all(isinstance(of_view, list) for of_view in sums)
        return (
            lists
            and [len(of_view) for of_view in sums] == [self.blocks] * self.views
            and all(_is_checksum(value) for of_view in sums for value in of_view)
        )

    def _crc(self, view, block):
        first, end = self.rows(block)
        left, crc = (end - first) * self.record_bytes, 0
        with open(self.view_path(view), "rb") as file:
            file.seek(first * self.record_bytes)
            while left:
                data = file.read(min(left, READ_BYTES))
                if not data:
                    return -1
                crc, left = zlib.crc32(data, crc), left - len(data)
        return crc

    def mapped(self, view):
        """The records of a view, uint8 `(samples, bytes)`: a tensor that lies in the file."""
        import tensorflow as tf

        with tf.device("CPU:0"):
            return tf.raw_ops.ImmutableConst(
                dtype=tf.uint8,
                shape=[self.samples, self.record_bytes],
                memory_region_name=str(self.view_path(view)),
            )

    def array(self, view, dtype):
        """The records of a view as a NumPy memory map of a structured dtype."""
        return np.memmap(self.view_path(view), dtype=dtype, mode="r", shape=(self.samples,))


def again(folder):
    """What to do about a cache that is damaged: `build` would go on with what is there."""
    return f"remove the folder {str(folder)!r} and build the cache again."


def write_json(path, content):
    """Writes a JSON object with a checksum of itself, whole or not at all."""
    with _files.written_beside(path) as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({**content, "checksum": _checksum(content)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())


def read_json(path):
    """Reads what `write_json` wrote.

    Raises:
        CacheError: If the file is not as it was written.
    """
    path = pathlib.Path(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_JSON_BYTES + 1)
        if len(data) > MOST_JSON_BYTES:
            raise ValueError(f"more than {MOST_JSON_BYTES} bytes")
        content = json.loads(data.decode())
        checksum = content.pop("checksum")
        whole = checksum == _checksum(content)
    except OSError as error:
        raise CacheError(
            f"Expected the file {path.name!r} of a cache. Received: {error.strerror} "
            f"({str(path.parent)!r}). Build the cache with TeacherCache.build."
        ) from error
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise CacheError(
            f"Expected {path.name!r} to be a file of a cache. Received: no JSON of that kind "
            f"({str(error)[:80]}). It is foreign or corrupt: {again(path.parent)}"
        ) from error
    if not whole:
        raise CacheError(
            f"Expected {path.name!r} as it was written. Received: another content. It was edited "
            f"or is corrupt: {again(path.parent)}"
        )
    return content


def _is_checksum(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


def _checksum(content):
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
