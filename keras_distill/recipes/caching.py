"""`keras-distill cache`: a teacher's outputs for a data set on disk, built, described, verified."""

import pathlib

import keras

from keras_distill import data
from keras_distill.recipes import evaluation
from keras_distill.recipes import networks
from keras_distill.recipes.settings import shifts


def build(
    path,
    teacher,
    dataset,
    data_dir=None,
    image_size=None,
    limit=None,
    views=1,
    augment=False,
    flip=None,
    mix=None,
    top_k=None,
    temperatures=None,
    features=(),
    dtype="float16",
    batch_size=128,
    seed=0,
    worker=0,
    workers=1,
    verbose=1,
):
    """Builds a cache of the training images of a data set, or goes on with it.

    Args:
        path: Its folder.
        teacher: A `.keras` file.
        dataset, data_dir, image_size, limit: As in `kd.data.load`.
        augment: Whether images are shifted at random, by up to an eighth of the side.
        flip: Whether half of them are mirrored then. Defaults to yes.
        mix: None, "mixup" or "cutmix".
        others: As in `kd.data.TeacherCache.build`.

    Returns:
        The `TeacherCache`, or None where other workers are still to end.
    """
    network = networks.load(teacher)
    size = image_size or evaluation.asked_size(network)
    train = data.load(dataset, data_dir, image_size=size, limit=limit).train
    networks.check_fits(network, train.image_shape, train.class_count, teacher)
    if flip is not None and not augment:
        raise ValueError("Expected --flip only with --augment. Received: no --augment.")
    return data.TeacherCache.build(
        path,
        network,
        train.images,
        train.labels,
        views=views,
        augment=shifts(train.image_shape, flip is not False) if augment else None,
        mix=mixing(mix),
        class_count=train.class_count,
        seed=seed,
        top_k=top_k,
        temperatures=temperatures or None,
        features=features,
        dtype=dtype,
        batch_size=batch_size,
        worker=worker,
        workers=workers,
        verbose=verbose,
    )


def mixing(name):
    """The layer of `--mix`: MixUp of alpha 1, CutMix of alpha 1, as in their papers; or None."""
    if name is None:
        return None
    # Of one number Keras draws alpha between 0 and it.
    return {"mixup": keras.layers.MixUp(1.0), "cutmix": keras.layers.CutMix((1.0, 1.0))}[name]


def described(path, verify=False):
    """Lines that say what is in a cache, and how much of it is written.

    Args:
        path: Its folder.
        verify: Whether to compare every byte with its checksum.
    """
    found = data.TeacherCache.inspect(path, verify=verify)
    stored, augmented = found["outputs"], found["augmentation"]
    kept = "all logits" if stored["top_k"] is None else f"the likeliest {stored['top_k']}"
    temperatures = stored["temperatures"]
    at = "" if temperatures is None else f" at T = {', '.join(f'{t:g}' for t in temperatures)}"
    state = f"{found['blocks_written']} of {found['blocks']} blocks"
    if verify:
        state += ", every byte as it was written"
    lines = {
        "cache": pathlib.Path(path),
        "samples": f"{found['samples']}, in {found['views']} views",
        "stored": f"{kept} of {stored['classes']} classes{at}, {stored['dtype']}",
        "features": ", ".join(stored["features"]) or "none",
        "mixed": "no" if augmented["mix"] is None else augmented["mix"][0],
        "bytes": f"{found['bytes']:,} ({found['record_bytes']} a sample and view)",
        "teacher": f"weights {found['teacher'][:12]}",
        "written": state,
    }
    return [f"{name:9} {value}" for name, value in lines.items()]
