"""Image classification data from tensorflow-datasets."""

import os

import numpy as np

from keras_distill._checks import message
from keras_distill._checks import nearest_names
from keras_distill.data.images import ImageData
from keras_distill.data.images import choose
from keras_distill.data.images import empty_images
from keras_distill.data.images import stratified_split


def load_prepared(name, parts, data_dir, image_size, limits, holdout, seed, download):
    """Reads parts of a data set of tensorflow-datasets, in the order of its files.

    Only the images that `limits` keeps are decoded. A data set without a test part gives
    its validation part; without either, a share of the training part is held out.

    Args:
        name: Name, or `"name/config:version"`.
        parts: Any of `"train"`, `"test"`.
        data_dir: Folder, or None for `TFDS_DATA_DIR`, else tensorflow-datasets' own.
        image_size: (height, width), or None for images that all have one size.
        limits: Largest number of (training, test) images; None for all.
        holdout: Share held out where there is no test part.
        seed: Whole number.
        download: Whether to download and prepare what is missing; None: where neither
            `data_dir` nor `TFDS_DATA_DIR` is set.

    Returns:
        A dict of part -> `ImageData`.

    Raises:
        FileNotFoundError: If the data is not prepared and may not be downloaded.
        ImportError: If tensorflow-datasets is missing.
        ValueError: If the name is unknown or does not stand for labelled images.
    """
    builder = _prepared_builder(name, data_dir, download)
    image_key, label_key = _image_and_label(builder, name)
    reader = _Reader(builder, name, image_key, label_key, image_size)
    splits = builder.info.splits
    test_split = next((part for part in ("test", "validation") if part in splits), None)
    if "train" not in splits:
        raise ValueError(message("a data set with a part `train`", "parts", sorted(splits)))

    indices = {"train": np.arange(splits["train"].num_examples)}
    if test_split is None:
        indices["train"], indices["test"] = stratified_split(
            reader.labels("train"), 1.0 - holdout, seed
        )
        test_split = "train"
    else:
        indices["test"] = np.arange(splits[test_split].num_examples)

    loaded = {}
    for part, limit, split in zip(("train", "test"), limits, ("train", test_split)):
        if part in parts:
            kept = indices[part][choose(len(indices[part]), limit, seed)]
            loaded[part] = reader.read(split, kept, part)
    return loaded


def _prepared_builder(name, data_dir, download):
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f'The data set {name!r} needs tensorflow-datasets: pip install "keras-distill[data]"'
        ) from error
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or None
    if download is None:
        download = data_dir is None
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except ValueError as error:  # DatasetNotFoundError and names that cannot be parsed
        near = nearest_names(name.split("/")[0], tfds.list_builders(with_community_datasets=False))
        raise ValueError(
            "Expected `name` to be 'digits', a folder of images or a data set of "
            f"tensorflow-datasets. Received: name={name!r}."
            + (f" Nearest: {', '.join(near)}." if near else "")
        ) from error
    if builder.is_prepared():
        return builder
    where = str(data_dir) if data_dir else "its default folder"
    if not download:
        raise FileNotFoundError(
            f"Expected {builder.info.full_name!r} to be prepared in {where!r}. Received: no such "
            f"data there. Prepare it with `tfds build {name} --data_dir=FOLDER`, point `data_dir` "
            "to it, or pass `download=True`."
        )
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever the network, the disk or the builder raises
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise FileNotFoundError(
            f"Expected {builder.info.full_name!r} to be downloaded into {where!r}. Received: "
            f"{reason[0][:200]} Prepare it elsewhere and pass its `data_dir`."
        ) from error
    return builder


def _image_and_label(builder, name):
    """The keys of the one image and the one class label."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    keys = builder.info.supervised_keys
    if not keys or len(keys) != 2:
        images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
        labels = [
            key for key, value in features.items() if isinstance(value, tfds.features.ClassLabel)
        ]
        keys = images + labels
    if (
        len(keys) != 2
        or not isinstance(features[keys[0]], tfds.features.Image)
        or not isinstance(features[keys[1]], tfds.features.ClassLabel)
        or features[keys[0]].np_dtype != np.uint8
    ):
        raise ValueError(
            message(
                "`name` to be a data set of 8-bit images with one class label each", "name", name
            )
        )
    return keys


class _Reader:
    """Reads samples of one data set by their index in a part."""

    def __init__(self, builder, name, image_key, label_key, image_size):
        self.builder = builder
        self.name = name
        self.image_key = image_key
        self.label_key = label_key
        self.feature = builder.info.features[image_key]
        self.image_size = image_size or tuple(self.feature.shape[:2])
        if None in self.image_size:
            raise ValueError(
                message(
                    f"`image_size`, as the images of {name!r} differ in size",
                    "image_size",
                    image_size,
                )
            )

    def labels(self, split):
        """All labels of a part, shape (samples,), without decoding an image."""
        labels = self._encoded(split).map(lambda encoded, label: label)
        return np.concatenate(list(self._numpy(labels.batch(4096)))).astype("int64")

    def read(self, split, indices, part):
        """The samples at the ascending `indices` of a part as `ImageData`."""
        import tensorflow as tf

        chosen = np.zeros(self.builder.info.splits[split].num_examples, bool)
        chosen[indices] = True

        def decode(encoded, label):
            image = self.feature.decode_example(encoded)
            if tuple(image.shape[:2]) != self.image_size:
                image = tf.image.resize(image, self.image_size, antialias=True)
                image = tf.saturate_cast(tf.round(image), tf.uint8)
            return image, label

        dataset = self._encoded(split)
        if not chosen.all():
            mask = tf.constant(chosen)
            dataset = dataset.enumerate().filter(lambda i, sample: mask[i])
            dataset = dataset.map(lambda i, sample: sample)
        dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        channels = self.feature.shape[-1]
        images = empty_images(len(indices), (*self.image_size, channels), self.name)
        labels = np.empty(len(indices), "int64")
        filled = 0
        for image_batch, label_batch in self._numpy(dataset.batch(256)):
            end = filled + len(label_batch)
            images[filled:end], labels[filled:end] = image_batch, label_batch
            filled = end
        if filled != len(indices):
            raise ValueError(
                message(f"{len(indices)} images in {self.name}/{split}", "images", filled)
                + " Prepare the data set again."
            )
        if labels.min() < 0:
            raise ValueError(message(f"{self.name}/{split} to have labels", "label", labels.min()))
        names = tuple(self.builder.info.features[self.label_key].names)
        return ImageData(images, labels, names, f"{self.name}/{part}")

    def _encoded(self, split):
        """(encoded image, label) in the order of the files."""
        import tensorflow_datasets as tfds

        dataset = self.builder.as_dataset(
            split=split,
            shuffle_files=False,
            decoders={self.image_key: tfds.decode.SkipDecoding()},
        )
        return dataset.map(lambda sample: (sample[self.image_key], sample[self.label_key]))

    def _numpy(self, dataset):
        """Iterates in NumPy; damaged files are an error that names the data set."""
        import tensorflow as tf

        try:
            yield from dataset.as_numpy_iterator()
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(
                f"Expected the files of {self.name!r} in {str(self.builder.data_dir)!r} to be "
                f"readable. Received: {str(error).splitlines()[0][:200]} Prepare it again."
            ) from error
