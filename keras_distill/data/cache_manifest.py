"""The manifest of a `TeacherCache`: what it must say, and whether two say the same."""

import hashlib
import json
import os
import pathlib
import tempfile

from keras_distill import _checks
from keras_distill._checks import message
from keras_distill.data import cache_store
from keras_distill.data.cache_records import Records
from keras_distill.data.cache_records import StoredOutputs
from keras_distill.data.cache_store import CacheError
from keras_distill.data.cache_store import Store
from keras_distill.data.replay import same_probe

FORMAT = "keras_distill teacher cache"
VERSION = 1
MOST_BLOCKS = 2**20
OF_DATA = ("samples", "data")
ENTRIES = {
    "format",
    "version",
    "samples",
    "views",
    "seed",
    "record_bytes",
    "block",
    "outputs",
    "teacher",
    "data",
    "augmentation",
    "id",
}


def read_manifest(path):
    """The manifest of the cache in a folder.

    Raises:
        CacheError: If there is none, it is corrupt, of another format or version, or says what
            `TeacherCache.build` does not write.
    """
    content = cache_store.read_json(pathlib.Path(path) / "manifest.json")
    found = content.get("format"), content.get("version")
    if found != (FORMAT, VERSION):
        raise CacheError(
            f"Expected the format {FORMAT!r}, version {VERSION}. Received: "
            f"{_short(repr(found[0]))}, version {_short(repr(found[1]))}. To use it with this "
            f"version of keras_distill, {cache_store.again(path)}"
        )
    try:
        _check(content)
    except (ValueError, TypeError) as error:
        raise CacheError(
            f"Expected 'manifest.json' as `TeacherCache.build` writes it. Received: "
            f"{_short(error, 300)} It is foreign or corrupt: {cache_store.again(path)}"
        ) from error
    return content


def begun(path, manifest):
    """The `Store` in a folder, of this manifest: made, or gone on with.

    Args:
        path: The folder.
        manifest: The manifest, without its `id`.

    Raises:
        CacheError: If the folder holds a cache of another manifest, or something else.
        ValueError: If the manifest is of no cache that could be read again.
    """
    path = pathlib.Path(path)
    if (path / "manifest.json").exists():
        found = read_manifest(path)
        # The data first: other images have other views.
        check_same(*({name: one[name] for name in OF_DATA} for one in (manifest, found)), "data")
        _check_probe(found, manifest["augmentation"]["probe"])
        expected = {**manifest, "augmentation": found["augmentation"], "id": found["id"]}
        other = {**manifest["augmentation"], "probe": None}
        check_same(other, {**found["augmentation"], "probe": None}, "augmentation")
        check_same(expected, found, "settings")
        return Store(path, found)
    if path.exists() and not (path.is_dir() and all(map(_is_unwritten, path.iterdir()))):
        raise CacheError(
            f"Expected a folder of a cache, or an empty one. Received: {str(path)!r}, which holds "
            "something else. Name another."
        )
    # The id is in the names of the files: TensorFlow keeps a file mapped by its name.
    manifest = {**manifest, "id": identity(manifest)}
    _check(manifest)
    path.mkdir(parents=True, exist_ok=True)
    if _is_first(path, manifest):
        return Store(path, manifest)
    return begun(path, manifest)


def _is_first(path, manifest):
    """Writes a manifest unless there is one; whether this worker's is the one that counts.

    A second one, whose probe another machine computed, would have files of other names.
    """
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path) as own:
        written = pathlib.Path(own) / "manifest.json"
        cache_store.write_json(written, manifest)
        try:
            os.link(written, path / "manifest.json")
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            os.replace(written, path / "manifest.json")
    return read_manifest(path)["id"] == manifest["id"]


def check_data(manifest, source, replay):
    """Raises where the data or its augmentation is not that of a manifest.

    Args:
        manifest: As `read_manifest` returns it.
        source: The samples, see `cache_source`.
        replay: Their `Replay`.
    """
    expected = {"samples": source.samples, "data": source.fingerprint}
    check_same(expected, {name: manifest[name] for name in OF_DATA}, "data")
    ours, theirs = replay.description(source.first), manifest["augmentation"]
    _check_probe(manifest, ours["probe"])
    check_same({**ours, "probe": None}, {**theirs, "probe": None}, "augmentation")


def check_same(expected, found, what):
    """Raises where an entry of two manifests, or parts of them, differs, and names it."""
    for name in sorted({*expected, *found}):
        ours, theirs = expected.get(name), found.get(name)
        if ours == theirs:
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            check_same(ours, theirs, f"{what}: {name}")
        raise CacheError(
            f"Expected a cache of the same {what}: {name}={_short(repr(ours))}. Received: a cache "
            f"of {name}={_short(repr(theirs))}. It is stale or foreign: build another, in another "
            "folder."
        )


def identity(manifest):
    """A short name of what a manifest says beside its own `id`."""
    content = {name: value for name, value in manifest.items() if name != "id"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _is_unwritten(entry):
    """Whether it is a manifest that a kill left, or that another worker is writing."""
    return entry.name.startswith(".writing-")


def _check_probe(manifest, probe):
    if not same_probe(probe, manifest["augmentation"]["probe"]):
        raise CacheError(
            "Expected the augmentation that the cache was built with. Received: one that gives "
            "other views of the first samples. Give the same `augment`, or build another cache."
        )


def _check(content):
    _check_entries("manifest", content, ENTRIES)
    if content["id"] != identity(content):
        raise ValueError(message("`id` to be that of the other entries", "id", content["id"]))
    samples, views, block = (
        _checks.positive_integer(name, content[name]) for name in ("samples", "views", "block")
    )
    blocks = -(-samples // block) * views
    if blocks > MOST_BLOCKS:
        raise ValueError(message(f"at most {MOST_BLOCKS} blocks in a cache", "blocks", blocks))
    if isinstance(content["seed"], bool) or not isinstance(content["seed"], int):
        raise ValueError(message("`seed` to be a whole number", "seed", content["seed"]))
    _check_texts("data", content["data"])
    _check_texts("teacher", {"teacher": content["teacher"]})
    augmentation = content["augmentation"]
    _check_entries("augmentation", augmentation, {"mix", "shape", "probe"})
    probe, shape = augmentation["probe"], augmentation["shape"]
    if not isinstance(probe, list) or not all(map(_checks.is_finite, probe)):
        raise ValueError(message("`probe` to be a list of finite numbers", "probe", probe))
    if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
        raise ValueError(message("`shape` to be a list of whole numbers", "shape", shape))
    _check_mix(augmentation["mix"])
    outputs = content["outputs"]
    _check_entries("outputs", outputs, set(StoredOutputs(1).get_config()))
    _checks.instance("features", outputs["features"], dict, "an object")
    stored = StoredOutputs(**outputs)
    if stored.get_config() != outputs:
        raise ValueError(message("`outputs` in their own form", "outputs", outputs))
    size = Records(stored, augmentation["mix"] is not None).dtype.itemsize
    if content["record_bytes"] != size:
        raise ValueError(
            message(f"records of {size} bytes", "record_bytes", content["record_bytes"])
        )


def _check_entries(name, value, entries):
    _checks.instance(name, value, dict, "an object")
    if set(value) != entries:
        raise ValueError(message(f"the entries {sorted(entries)}", name, sorted(value)))


def _check_texts(name, value):
    _checks.instance(name, value, dict, "an object")
    if not value or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(message(f"`{name}` to hold texts", name, value))


def _check_mix(mix):
    if mix is None:
        return
    if (
        not isinstance(mix, list)
        or len(mix) != 2
        or not isinstance(mix[0], str)
        or not isinstance(mix[1], list)
        or not all(map(_checks.is_finite, mix[1]))
    ):
        raise ValueError(message("`mix` to be null or a kind and its numbers", "mix", mix))


def _short(value, most=60):
    text = str(value)
    return text if len(text) <= most else text[: most - 3] + "..."
