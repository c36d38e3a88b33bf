"""Fuzzes the files of a `TeacherCache` with atheris, guided by coverage: `CacheError` or nothing.

    pip install atheris
    python scripts/fuzz_cache.py CORPUS -max_total_time=300

CORPUS is a folder that atheris fills with inputs that reach new lines; what follows are libFuzzer's
options. An input that raises anything else is written to the working directory as `crash-...`, and
run again by naming that file instead of CORPUS. The suite searches the same files with hypothesis.
"""

import json
import pathlib
import sys
import tempfile
import zlib

try:
    import atheris
except ImportError:
    sys.exit("Expected atheris, which fuzzes. Received: no such package. pip install atheris")

import keras  # noqa: F401  (before instrumentation, which takes minutes for it)
import numpy as np

with atheris.instrument_imports(include=["keras_distill"]):
    from keras_distill.data import cache_manifest
    from keras_distill.data import cache_store
    from keras_distill.data.cache_records import Records
    from keras_distill.data.cache_records import StoredOutputs

FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-cache-"))
SAMPLES = 5


def sound_manifest():
    """A manifest as `TeacherCache.build` writes it, of five samples in three blocks."""
    stored = StoredOutputs(7, "softmax", 2, "spread", [1.0, 4.0], {"pool": 3})
    content = {
        "format": cache_manifest.FORMAT,
        "version": cache_manifest.VERSION,
        "samples": SAMPLES,
        "views": 2,
        "seed": 0,
        "record_bytes": Records(stored, mixes=True).dtype.itemsize,
        "block": 2,
        "outputs": stored.get_config(),
        "teacher": "0" * 64,
        "data": {"images": "0" * 64, "labels": "1" * 64},
        "augmentation": {"mix": ["MixUp", [0.8]], "shape": [3, 3, 1], "probe": [0.25, -1.5]},
    }
    return {**content, "id": cache_manifest.identity(content)}


def replaced(content, choose, value):
    """`content` with one of its values, chosen step by step from the top, replaced or removed."""
    if not isinstance(content, (dict, list)) or not content or choose() % 4 == 0:
        return value
    keys = sorted(content) if isinstance(content, dict) else range(len(content))
    key = keys[choose() % len(keys)]
    changed = dict(content) if isinstance(content, dict) else list(content)
    if choose() % 8 == 0:
        del changed[key]
    else:
        changed[key] = replaced(content[key], choose, value)
    return changed


def write(name, content):
    """Writes a JSON object with its checksum, as `cache_store.write_json`, but at once."""
    checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    (FOLDER / name).write_text(json.dumps({**content, "checksum": checksum}))


def try_input(data):
    """One input: which file, whether its checksum and id are made right, and its content."""
    source = atheris.FuzzedDataProvider(data)
    name = ("manifest.json", "checksums.json", "raw")[source.ConsumeIntInRange(0, 2)]
    sound = sound_manifest()
    write("manifest.json", sound)
    content = sound if name == "manifest.json" else {"crc32": [[0, 0, 0], [0, 0, 0]]}
    steps = [source.ConsumeIntInRange(0, 255) for _ in range(12)]
    rest = source.ConsumeBytes(source.remaining_bytes())
    if name == "raw":
        (FOLDER / "manifest.json").write_bytes(rest)
    else:
        try:
            value = json.loads(rest.decode())
        except (ValueError, RecursionError):
            value = rest.decode("latin-1")
        content = replaced(content, iter(steps * 9).__next__, value)
        if not isinstance(content, dict):
            return
        if name == "manifest.json" and steps[-1] % 2:
            content["id"] = cache_manifest.identity(content)
        write(name, content)
    try:
        manifest = cache_manifest.read_manifest(FOLDER)
        store = cache_store.Store(FOLDER, manifest)
        store.missing()
        records = Records(StoredOutputs(**manifest["outputs"]), True)
        np.frombuffer(
            rest[: len(rest) // records.dtype.itemsize * records.dtype.itemsize], records.dtype
        )
        store.verify()
    except cache_store.CacheError as error:
        text = str(error)
        if not text.startswith("Expected ") or "\n" in text or len(text) > 700:
            raise AssertionError(f"not one clear line: {text!r}") from error


if __name__ == "__main__":
    atheris.Setup(sys.argv, try_input)
    atheris.Fuzz()
