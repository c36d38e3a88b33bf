"""`TeacherCache`: a teacher's outputs on disk, with the views that it saw."""

import numbers
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_distill import _checks
from keras_distill import _files
from keras_distill._checks import message
from keras_distill._types import Augment
from keras_distill._types import Dataset
from keras_distill._types import PathLike
from keras_distill.data import cache_manifest
from keras_distill.data import cache_store
from keras_distill.data.cache_recorder import Recorder
from keras_distill.data.cache_recorder import weights_fingerprint
from keras_distill.data.cache_records import Records
from keras_distill.data.cache_records import StoredOutputs
from keras_distill.data.cache_source import source_of
from keras_distill.data.cache_store import CacheError
from keras_distill.data.cache_store import Store
from keras_distill.data.pipeline import Order
from keras_distill.data.pipeline import check_pipeline
from keras_distill.data.pipeline import made_ahead
from keras_distill.data.pipeline import steps_per_epoch
from keras_distill.data.replay import Draws
from keras_distill.data.replay import Replay
from keras_distill.data.replay import draws_of_view
from keras_distill.data.targets import Targets


class TeacherCache:
    """A teacher's outputs for a data set, run once and read from disk while students train.

    Each sample has a record in each of the cached `views`: the seed by which its view was
    augmented and mixed, and what the teacher said of that view. Training replays exactly the
    views that the teacher saw, epoch e those of view `e % views`.

        cache = kd.data.TeacherCache.build("cache", teacher, images, labels, views=10,
                                           augment=kd.data.crop_and_flip())
        distiller = kd.Distiller(cache, student, kd.losses.SoftTargets(temperature=4.0))
        distiller.compile("adam", loss)
        distiller.fit(cache.dataset(128, epochs=30), epochs=30,
                      steps_per_epoch=cache.steps_per_epoch(128), shuffle=False)

    `TeacherCache(path, images, labels, ...)` opens a cache that is there, for the data and the
    augmentation that it was built with, and raises where anything differs from what its manifest
    says. Memory is mapped, so that a cache may be larger than it.

    Size on disk, in bytes: `samples * views * (4 + r)`, with mixing 16 instead of 4. Of each
    temperature (one where logits are stored) r counts `size * classes` or, with `top_k`,
    `top_k * (2 + 2)`, class ids taking 4 bytes above 65,536 classes; and `size` a unit of pooled
    features; `size` is 2 for float16, 4 for float32.

    | data set | samples | classes | views | stored | bytes |
    |---|---|---|---|---|---|
    | CIFAR-10 | 50,000 | 10 | 30 | logits, float16 | 34.3 MiB |
    | CIFAR-100 | 50,000 | 100 | 240 | logits, float16 | 2.28 GiB |
    | ImageNet-1k | 1,281,167 | 1,000 | 1 | logits, float16 | 2.39 GiB |
    | ImageNet-1k | 1,281,167 | 1,000 | 300 | top 10 | 15.7 GiB |
    | ImageNet-22k | 14,200,000 | 21,841 | 90 | top 100 | 481 GiB |

    The last two are the layout of TinyViT (Wu et al. 2022, https://arxiv.org/abs/2207.10666): a
    seed, class ids and float16 probabilities. Several processes or machines share the work of
    `build(worker=i, workers=n)` on one folder that all see; each view is a file of its own, which
    may be a link to another disk.

    Args:
        path: The folder of the cache.
        images: The images, as in `build`.
        labels: The labels, as in `build`.
        augment, mix, class_count: As in `build`.
        verify: Whether to compare every byte with its checksum first (6 GB/s or the disk's speed).

    Raises:
        CacheError: A ValueError. If the cache is missing, unfinished, truncated or corrupt, or was
            built from other data or another augmentation; it says what differs.
    """

    def __init__(
        self,
        path: PathLike,
        images: np.ndarray | Dataset,
        labels: np.ndarray | None = None,
        *,
        augment: Augment | None = None,
        mix: keras.layers.Layer | None = None,
        class_count: int | None = None,
        verify: bool = True,
    ) -> None:
        self.path = pathlib.Path(path)
        self.manifest = cache_manifest.read_manifest(self.path)
        self.outputs = StoredOutputs(**self.manifest["outputs"])
        self._replay = Replay(augment, mix, class_count or self.outputs.classes)
        self._source = source_of(images, labels, mix)
        self._records = Records(self.outputs, mix is not None)
        cache_manifest.check_data(self.manifest, self._source, self._replay)
        self._store = Store(self.path, self.manifest)
        if verify:
            self._store.verify()
        else:
            self._store.check_complete()

    @classmethod
    def build(
        cls,
        path: PathLike,
        teacher: keras.Model,
        images: np.ndarray | Dataset,
        labels: np.ndarray | None = None,
        *,
        views: int = 1,
        augment: Augment | None = None,
        mix: keras.layers.Layer | None = None,
        class_count: int | None = None,
        seed: int = 0,
        top_k: int | None = None,
        residual: str = "spread",
        temperatures: float | Sequence[float] | None = None,
        features: Sequence[str] = (),
        dtype: str = "float16",
        batch_size: int = 128,
        worker: int = 0,
        workers: int = 1,
        verbose: int | str = 0,
    ) -> "TeacherCache | Any":
        """Runs a teacher over a data set and writes what it says; returns the open cache.

        A cache that is there, of the same arguments, is gone on with, or opened where it is
        whole: a call after a kill makes what is missing.

        Args:
            path: Folder to make.
            teacher: A functional `keras.Model` with one output, or an `EnsembleTeacher`. Run for
                inference.
            images: NumPy array `(samples, ...)`, as in `batches`; or a `tf.data.Dataset` of single
                samples `(x, y)` or `(x, y, sample_weight)` of known cardinality, always in the
                same order, `labels` then being `None`.
            labels: NumPy array with `samples` entries.
            views: How many views of each sample are cached.
            augment: `None`, or a function of (images, seeds), see `keras_distill.data.augment`.
                With `keras_augment(keras.layers.RandAugment(...))` samples are augmented one by
                one, so that a view is the same in every batch.
            mix: `None`, `keras.layers.MixUp` or `keras.layers.CutMix`: each sample is mixed with
                the partner that its record names. Of arrays only.
            class_count: Number of classes of labels that are class ids, for `mix`. Defaults to
                the teacher's.
            seed: Whole number, 0 or more, for all that is drawn.
            top_k: How many classes are stored, the likeliest; `None` for all logits.
            residual: What the other classes get: "spread" (Wu et al.: an equal share of what is
                left of 1) or "renormalise" (nothing; the stored ones are scaled to sum to 1).
            temperatures: A temperature or several, at which probabilities are stored. Needed with
                `top_k` and for an ensemble that averages probabilities.
            features: Paths of layers whose outputs, averaged over all positions, are stored.
            dtype: "float16" or "float32", of logits and features.
            batch_size: Samples in a forward of the teacher.
            worker, workers: Which of so many processes this one is: each makes its share of the
                blocks. The one that ends last returns the open cache, the others `None`.
            verbose: 1 for a progress bar.

        Returns:
            A `TeacherCache`, or `None` where other workers are still to end.

        Raises:
            ValueError: If an argument is out of its range or does not fit the teacher.
            CacheError: If the folder holds another cache, or something else.
            OSError: If the disk is full; what is written stays, and the same call goes on.
        """
        check_pipeline(1, 0, augment, seed)
        if seed < 0 or not 0 <= worker < workers:
            raise ValueError(
                message("`seed` of 0 or more, and `worker` below `workers`", "worker", worker)
                + f" seed={seed}, workers={workers}."
            )
        recorder = Recorder(teacher, top_k, residual, temperatures, features, dtype)
        replay = Replay(augment, mix, class_count or recorder.stored.classes)
        source = source_of(images, labels, mix)
        records = Records(recorder.stored, mix is not None)
        batch_size = _checks.positive_integer("batch_size", batch_size)
        manifest = {
            "format": cache_manifest.FORMAT,
            "version": cache_manifest.VERSION,
            "samples": source.samples,
            "views": _checks.positive_integer("views", views),
            "seed": int(seed),
            "record_bytes": records.dtype.itemsize,
            "block": _block(records.dtype.itemsize, source.samples),
            "outputs": recorder.stored.get_config(),
            "teacher": weights_fingerprint(teacher),
            "data": source.fingerprint,
            "augmentation": replay.description(source.first),
        }
        store = cache_manifest.begun(path, manifest)
        _write(store, recorder, replay, source, records, batch_size, worker, workers, verbose)
        if store.missing():
            return None
        return cls(path, images, labels, augment=augment, mix=mix, class_count=class_count)

    @staticmethod
    def inspect(path: PathLike, verify: bool = False) -> dict[str, Any]:
        """The manifest of a cache, with how much of it is written; needs no data.

        Args:
            path: The folder of the cache.
            verify: Whether to compare every byte with its checksum.

        Returns:
            A dict: the manifest, and `blocks` and `blocks_written`, `bytes`.

        Raises:
            CacheError: As in the constructor.
        """
        store = Store(path, cache_manifest.read_manifest(path))
        if verify:
            store.verify()
        total = store.views * store.blocks
        return {
            **store.manifest,
            "blocks": total,
            "blocks_written": total - len(store.missing()),
            "bytes": store.views * store.samples * store.record_bytes,
        }

    def steps_per_epoch(self, batch_size: int, drop_remainder: bool = False) -> int:
        """How many batches an epoch has."""
        return steps_per_epoch(self._source.samples, batch_size, drop_remainder)

    def check_teacher(self, teacher: keras.Model) -> None:
        """Raises where a teacher has other weights than the one that was cached."""
        found = weights_fingerprint(teacher)
        if found != self.manifest["teacher"]:
            raise CacheError(
                "Expected the teacher that the cache was built from. Received: "
                f"{teacher.name!r}, whose weights have another fingerprint ({found[:12]} for "
                f"{self.manifest['teacher'][:12]}). Build another cache."
            )

    def dataset(
        self,
        batch_size: int,
        *,
        epochs: int = 1,
        start_epoch: int = 0,
        shuffle: bool | int = True,
        seed: int = 0,
        drop_remainder: bool = False,
    ) -> Dataset:
        """The batches of a training: the views that the teacher saw, and what it said of them.

        Args:
            batch_size, epochs, start_epoch, shuffle, seed, drop_remainder: As in `batches`. The
                order of the batches is of this `seed`, the views are those of the cache's. For
                a data set, `shuffle` may be the number of samples held in memory.

        Returns:
            A `tf.data.Dataset` of known cardinality with elements `(x, y)`, or
            `(x, y, sample_weight)` where the data has weights. `y` is a `Targets` with `labels`
            (distributions, where views are mixed), `ids`, and `teacher`: the stored outputs.
        """
        import tensorflow as tf

        check_pipeline(epochs, start_epoch, None, seed)
        order = Order(batch_size, epochs, start_epoch, shuffle, seed, drop_remainder)
        dataset = self._source.batches(order)
        count = self.manifest["views"]
        used = sorted({epoch % count for epoch in range(start_epoch, epochs)}) or [0]
        mapped = {view: self._store.mapped(view) for view in used}

        def records_of(epoch, ids):
            def of_view(view):
                return lambda: tf.gather(mapped[view], ids)

            if len(used) == 1:
                return of_view(used[0])()
            place = tf.searchsorted(tf.constant(used, tf.int64), [epoch % count])[0]
            return tf.switch_case(place, [of_view(view) for view in used])

        def take(epoch, ids, *element):
            values = self._records.unpacked(tf.ensure_shape(records_of(epoch, ids), [None, None]))
            draws = Draws(*(values.pop(name, None) for name in Draws._fields))
            x, y, *weight = self._source.view(self._replay, ids, element, draws)
            targets = Targets(y if isinstance(y, Targets) else {"labels": y})
            targets["ids"] = ids
            targets["teacher"] = {
                name: tf.cast(value, tf.int32) if name.endswith("_classes") else value
                for name, value in values.items()
            }
            return (x, targets, *weight)

        return made_ahead(dataset, take)

    def read(self, view: int, ids: ArrayLike | None = None) -> np.ndarray:
        """The stored records of a view as NumPy arrays, for a look at them.

        Args:
            view: Its number.
            ids: Which samples, whole numbers; `None` for all.

        Returns:
            A structured array with the fields of a record.

        Raises:
            ValueError: If there is no such view or sample.
        """
        views, samples = self.manifest["views"], self.manifest["samples"]
        if not isinstance(view, numbers.Integral) or not 0 <= view < views:
            raise ValueError(message(f"`view` to be from 0 to {views - 1}", "view", view))
        array = self._store.array(int(view), self._records.dtype)
        if ids is None:
            return np.array(array)
        ids = np.asarray(ids)
        if ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= samples):
            raise ValueError(
                message(f"`ids` to be whole numbers from 0 to {samples - 1}", "ids", ids)
            )
        return np.array(array[ids.astype("int64")])


def _block(record_bytes, samples):
    """How many records a block has: 16 MiB of them, but 1,024 to 16,384."""
    rows = min(max(cache_store.BLOCK_BYTES // record_bytes, 1024), 16384)
    return int(min(rows, samples))


def _write(store, recorder, replay, source, records, batch_size, worker, workers, verbose):
    """Runs the teacher over this worker's missing blocks and writes them."""
    missing = store.missing()
    mine = [p for p in missing if (p[0] * store.blocks + p[1]) % workers == worker]
    bar = keras.utils.Progbar(len(mine), unit_name="block") if verbose and mine else None
    try:
        for view in sorted({view for view, _ in mine}):
            draws = draws_of_view(source.samples, view, store.manifest["seed"], replay.mix)
            store.allocate(view)
            for blocks in _runs([block for v, block in mine if v == view]):
                first, end = store.rows(blocks[0])[0], store.rows(blocks[-1])[1]
                views = source.range(replay, draws, first, end, batch_size)
                sizes = [np.diff(store.rows(block))[0] for block in blocks]
                for block, values in zip(blocks, _said(recorder, views, sizes)):
                    rows = slice(*store.rows(block))
                    drawn = {n: d[rows] for n, d in draws._asdict().items() if d is not None}
                    store.write(view, block, records.packed({**drawn, **values}))
                    if bar is not None:
                        bar.add(1)
    except OSError as error:
        number = _files.lacks_room(error)
        if number is None:
            raise
        raise OSError(
            number,
            f"Expected room for {store.samples * store.record_bytes * store.views} bytes of a "
            f"cache. Received: {os.strerror(number)}. What is written stays: make room, and call "
            "TeacherCache.build again",
            str(store.path),
        ) from error
    if not store.missing():
        store.finish()


def _runs(blocks):
    """Lists of blocks that follow each other."""
    runs = []
    for block in blocks:
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs


def _said(recorder, dataset, sizes):
    """Yields what the teacher says of a data set of batches, in parts of so many samples."""
    batches, held, sizes = [], 0, iter(sizes)
    wanted = next(sizes)
    for x in dataset.as_numpy_iterator():
        batches.append(recorder.predict_on_batch(x))
        held += len(x)
        while wanted is not None and held >= wanted:
            joined = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
            yield {name: value[:wanted] for name, value in joined.items()}
            batches = [{name: value[wanted:] for name, value in joined.items()}]
            held -= wanted
            wanted = next(sizes, None)
