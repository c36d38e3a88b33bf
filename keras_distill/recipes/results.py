"""From trained networks to the results, pictures and report of a run."""

import pathlib
import shutil
import sys

import keras

from keras_distill import reporting
from keras_distill.recipes import evaluation

PICTURES = 2000
MOST_BYTES = 64_000_000  # of images


def entry(name, network, path, scores, latency_ms=None, role=None):
    """One of `models` in `results.json`.

    Args:
        name: The model's name in tables.
        network: One of the trained networks.
        path: Its `.keras` file.
        scores: What `evaluation.scores` gave, one a seed.
        latency_ms: Milliseconds of one image, or None.
        role: "teacher", "alone", "distilled" or None, as in `kd.reporting.report`.
    """
    agreements = [score["agreement"] for score in scores]
    return {
        "name": name,
        "role": role,
        "file": str(path),
        "accuracy": [score["accuracy"] for score in scores],
        "agreement": None if None in agreements else agreements,
        "calibration_error": [score["calibration_error"] for score in scores],
        "parameters": evaluation.parameters(network),
        "bytes": evaluation.size(path),
        "latency_ms": latency_ms,
    }


def dataset_entry(split):
    """`dataset` in `results.json`, of a `kd.data.Split`."""
    return {
        "name": split.test.name.rsplit("/", 1)[0],
        "train": len(split.train),
        "test": len(split.test),
        "image_shape": list(split.test.image_shape),
    }


def write_pictures(run, teacher, student, test, temperature):
    """Writes what the report draws: test images, and what teacher and student say of them.

    Args:
        run: The `RunFolder`.
        teacher: The teacher, or None.
        student: The student, or None.
        test: The test `ImageData`; its first 2,000 images are drawn from, of large ones fewer.
        temperature: Of the soft targets, or None for probabilities alone.
    """
    count = min(PICTURES, max(1, MOST_BYTES // test.images[0].nbytes))
    images, labels = test.images[:count], test.labels[:count]
    arrays = {"images": images, "labels": labels}
    for name, network in (("teacher", teacher), ("student", student)):
        if network is not None:
            said = evaluation.probabilities(network, images)
            arrays[f"{name}_probabilities"] = said.astype("float32")
    if teacher is not None and temperature is not None:
        soft = evaluation.probabilities(teacher, images, temperature)
        arrays |= {"soft_targets": soft.astype("float32"), "temperature": temperature}
    run.write_pictures(**arrays)


def finish(run, results, networks=None):
    """Writes `results.json` and, where matplotlib is installed, `report.html`.

    Args:
        run: The `RunFolder`.
        results: As `kd.reporting.report` describes; files are made relative to the run's folder.
        networks: A dict of model name -> network of those at hand.

    Returns:
        `(path of the report or None, why it is missing or "")`.
    """
    folder = run.path.resolve()
    for model in results["models"]:
        if not model.get("file"):
            continue
        path = pathlib.Path(model["file"]).resolve()
        inside = path.is_relative_to(folder)
        model["file"] = (path.relative_to(folder) if inside else path).as_posix()
    run.write_results(results)
    try:
        return reporting.report(run, networks=networks), ""
    except ImportError as error:
        return None, str(error)


def show(results, say=print):
    """Says the tables of a run's results, and whether there is a gain."""
    tables = [reporting.models_table(results), reporting.exports_table(results)]
    for table in filter(None, tables):
        say(draw(table))
        say("")
    sentence = reporting.gain_sentence(results)
    if sentence:
        say(sentence)


def draw(table):
    """A table as text, as wide as the terminal that it is meant for."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return table.text(width)


class Progress(keras.callbacks.Callback):
    """Moves one bar of a `rich.progress.Progress` on by an epoch at a time.

    Args:
        progress: The `rich.progress.Progress`.
        task: The bar's id.
    """

    def __init__(self, progress, task):
        super().__init__()
        self.progress = progress
        self.task = task

    def on_epoch_end(self, epoch, logs=None):
        accuracy = (logs or {}).get("accuracy")
        note = "" if accuracy is None else f"training accuracy {100 * accuracy:.1f} %"
        self.progress.update(self.task, completed=epoch + 1, note=note)
