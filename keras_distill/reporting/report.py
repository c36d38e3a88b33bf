"""`report`: one page, `report.html`, of what a run's folder holds."""

import json
import pathlib
from collections.abc import Mapping

import keras

from keras_distill._files import written_beside
from keras_distill._types import PathLike
from keras_distill.reporting import page
from keras_distill.reporting import style
from keras_distill.reporting.checks import check_results
from keras_distill.reporting.pictures import PICTURES
from keras_distill.reporting.runs import RunFolder
from keras_distill.reporting.runs import _plain
from keras_distill.reporting.source import Missing
from keras_distill.reporting.source import Source


def report(
    run_folder: RunFolder | PathLike,
    layer: str | None = None,
    networks: Mapping[str, keras.Model] | None = None,
) -> pathlib.Path:
    """Writes `report.html`, one file that needs nothing else, and the pictures in `figures`.

    Of each picture `figures/NAME.png`, `NAME-dark.png`, drawn for dark pages, and `NAME.json`,
    the numbers that it was drawn from; images are named there by their place in `pictures.npz`
    (else among the test images of the data set). What the run's files do not allow is left out,
    and the page says so in one line each.

    `results.json` holds, with every share from 0 to 1 (0.924 for 92.4 %):

        title: What the run was. Optional, as is `command`, what started it.
        dataset: {"name", "train": images, "test": images, "image_shape": [h, w, c]}. Optional.
        class_names: A list of names by label. Needed for the pictures.
        models: A list, teacher first, of
            {"name", "accuracy": [a share for each seed],
             "agreement": [share of the teacher's answers for each seed] or null,
             "calibration_error": [for each seed] or null, "parameters": int or null,
             "bytes": on disk or null, "latency_ms": a batch-1 call or null,
             "role": "teacher", "alone", "distilled" or null, which chooses its colour,
             "file": its `.keras` file (of the first seed), relative to the run's folder, or null}
        gain: {"baseline": name, "model": name}, two of the models with the same seeds in
            the same order. Optional; without any role the two are "alone" and "distilled".
        exports: A list of {"file", "quantization": null or "float16", ..., "bytes",
            "latency_ms", "accuracy", "agreement", "largest_difference"}, each number or
            null. Optional.
        remarks: A list of sentences. Optional.

    `pictures.npz` (optional) holds of some test images `images` (samples, height, width,
    channels) and `labels`, and if wanted `teacher_probabilities` and `student_probabilities`
    (samples, classes) and `soft_targets`, the teacher's at `temperature` (a number). Without it
    the test images are loaded again from the data set that `settings.json` names; nothing is
    downloaded. `metrics.jsonl` gives the training curves. A wrapper with exits, saved as
    `X_exits.keras` beside a model's `X.keras`, gives the early-exit curve.

    Args:
        run_folder: A `RunFolder` or the path of one.
        layer: Path of the layer, as in `kd.tap`, whose channels are shown, in each network that
            has it. Defaults to the last feature map of each.
        networks: A dict of model name -> network, of those at hand. Defaults to none: they are
            loaded from their files.

    Returns:
        The `pathlib.Path` of `report.html`.

    Raises:
        FileNotFoundError: If the folder or its results are missing.
        ImportError: If matplotlib is missing; it names the extra.
        ValueError: If the results are not as above, or no network has the layer.
    """
    run = run_folder if isinstance(run_folder, RunFolder) else RunFolder(run_folder, create=False)
    source = Source(run, check_results(run.read_results()), layer, networks)
    drawn, missing = [], []
    for picture in PICTURES:
        try:
            shown = picture.gather(source)
        except Missing as reason:
            missing.append((picture, str(reason)))
            for file in _files(run, picture).values():
                file.unlink(missing_ok=True)
            continue
        images = (source.images,) if picture.with_images else ()
        light, dark = style.png(picture.draw(shown, *images))
        text = json.dumps(_plain(shown), allow_nan=False) + "\n"
        files = _files(run, picture)
        _write(files["light"], light)
        _write(files["dark"], dark)
        _write(files["data"], text.encode())
        drawn.append((picture, picture.words(shown), light, dark))
    path = run.path / "report.html"
    text = page.render(source.results, drawn, missing, run.read_settings())
    _write(path, text.encode("utf-8", "replace"))
    return path


def _files(run, picture):
    folder = run.path / "figures"
    names = {"light": ".png", "dark": "-dark.png", "data": ".json"}
    return {kind: folder / f"{picture.name}{ending}" for kind, ending in names.items()}


def _write(path, content):
    with written_beside(path) as temporary:
        pathlib.Path(temporary).write_bytes(content)
