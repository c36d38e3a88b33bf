"""`report`: one page, `report.html`, of what a run's folder holds."""

import base64
import html
import json
import pathlib

from keras_distill._checks import message
from keras_distill._files import written_beside
from keras_distill.reporting import plots
from keras_distill.reporting import tables
from keras_distill.reporting.runs import RunFolder

CAPTIONS = {
    "accuracies": "Test accuracy of each model.",
    "training_curves": "Training curves: the loss, each of its terms, and the metrics.",
    "dark_knowledge": "Dark knowledge: what the teacher says of each class beside its name.",
    "disagreements": "Where student and teacher disagree.",
    "reliability": "Calibration on the test images: a calibrated model lies on the diagonal.",
    "accuracy_by_size": "Accuracy against bytes on disk.",
}

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #ffffff;
  --line: #d0d7de; --card: #f6f8fa; --accent: #0059b3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af;
  --page: #0d1117; --line: #30363d; --card: #161b22; --accent: #6cb6ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; border-bottom: 1px solid var(--line); }
.soft, figcaption, caption { color: var(--soft); font-size: 0.9rem; }
.result { background: var(--card); border-left: 4px solid var(--accent); padding: 0.75rem 1rem;
  font-size: 1.1rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; }
caption { text-align: left; padding-bottom: 0.25rem; }
th, td { padding: 0.35rem 0.75rem 0.35rem 0; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th { white-space: normal; min-width: 4.5rem; vertical-align: bottom; overflow-wrap: normal; }
th:first-child { text-align: left; }
figure { margin: 1rem 0; }
img { display: block; width: 100%; max-width: 44rem; height: auto; background: #ffffff;
  border-radius: 6px; border: 1px solid var(--line); }
pre { background: var(--card); padding: 0.75rem; overflow-x: auto; font-size: 0.8rem; }
"""


def report(run_folder):
    """Writes `report.html`, one file that needs nothing else, and `figures/*.png`.

    `results.json` holds, with every share from 0 to 1 (0.924 for 92.4 %):

        title: What the run was. Optional, as is `command`, what started it.
        dataset: {"name", "train": images, "test": images, "image_shape": [h, w, c]}. Optional.
        class_names: A list of names by label. Needed for the pictures.
        models: A list, teacher first, of
            {"name", "accuracy": [a share for each seed],
             "agreement": [share of the teacher's answers for each seed] or null,
             "calibration_error": [for each seed] or null, "parameters": int or null,
             "bytes": on disk or null, "latency_ms": a batch-1 call or null}
        gain: {"baseline": name, "model": name}, two of the models with the same seeds in
            the same order. Optional.
        exports: A list of {"file", "quantization": null or "float16", ..., "bytes",
            "latency_ms", "accuracy", "agreement", "largest_difference"}, each number or
            null. Optional.

    `pictures.npz` (optional) holds of some test images `images` (samples, height, width,
    channels), `labels`, `teacher_probabilities` and `student_probabilities` (samples,
    classes), and if wanted `soft_targets`, the teacher's at `temperature` (a number).
    `metrics.jsonl` gives the training curves, `settings.json` the settings.

    Args:
        run_folder: A `RunFolder` or the path of one.

    Returns:
        The `pathlib.Path` of `report.html`.

    Raises:
        FileNotFoundError: If the folder or its results are missing.
        ImportError: If matplotlib is missing; it names the extra.
        ValueError: If the results are not as above.
    """
    run = run_folder if isinstance(run_folder, RunFolder) else RunFolder(run_folder, create=False)
    results = check_results(run.read_results())
    figures = {}
    for name, figure in draw(results, run.read_metrics(), run.read_pictures()).items():
        path = run.path / "figures" / f"{name}.png"
        with written_beside(path) as temporary:
            plots.save(figure, temporary)
        figures[name] = path.read_bytes()
    page = render(results, figures, run.read_settings())
    path = run.path / "report.html"
    with written_beside(path) as temporary:
        pathlib.Path(temporary).write_text(page, encoding="utf-8")
    return path


def check_results(results):
    """Returns `results`; raises `ValueError` unless they are as `report` describes."""
    models = results.get("models")
    if not isinstance(models, list) or not models:
        raise ValueError(message("`results.json` to list one model or more", "models", models))
    for model in models:
        shares = model.get("accuracy") if isinstance(model, dict) and "name" in model else None
        if not isinstance(shares, list) or not shares or not all(_is_share(v) for v in shares):
            raise ValueError(
                message("each model to have `name` and a list of shares `accuracy`", "model", model)
            )
    names = [model["name"] for model in models]
    gain = results.get("gain") or {}
    for role in ("baseline", "model") if gain else ():
        if gain.get(role) not in names:
            raise ValueError(message(f"`gain` to name one of {names}", role, gain.get(role)))
    if gain:
        accuracy = {model["name"]: model["accuracy"] for model in models}
        tables.paired_gain(accuracy[gain["baseline"]], accuracy[gain["model"]])
    for export in results.get("exports") or []:
        if not isinstance(export, dict) or "file" not in export:
            raise ValueError(message("each of `exports` to name its `file`", "export", export))
    return results


def draw(results, records, pictures):
    """The figures for which there is data, by name, in the order of the page.

    Args:
        results: As `report` describes.
        records: The lines of `metrics.jsonl`.
        pictures: The arrays of `pictures.npz` by name.

    Returns:
        A dict of name -> matplotlib figure.
    """
    figures = {
        "accuracies": plots.accuracies(results["models"]),
        "training_curves": plots.training_curves(records),
    }
    if pictures:
        needed = ("images", "labels", "teacher_probabilities", "student_probabilities")
        missing = [name for name in needed if name not in pictures]
        if missing:
            raise ValueError(message(f"`pictures.npz` to hold {needed}", "missing", missing))
        images, labels, teacher, student = (pictures[name] for name in needed)
        names = results.get("class_names") or [str(i) for i in range(teacher.shape[-1])]
        if len(names) != teacher.shape[-1]:
            raise ValueError(
                message(f"`class_names` to be {teacher.shape[-1]} names", "class_names", names)
            )
        figures["dark_knowledge"] = plots.dark_knowledge(
            images,
            labels,
            pictures.get("soft_targets", teacher),
            names,
            pictures.get("temperature"),
        )
        figures["disagreements"] = plots.disagreements(images, labels, teacher, student, names)
        if (labels >= 0).any():
            figures["reliability"] = plots.reliability_diagram(
                labels, {"teacher": teacher, "student": student}
            )
    figures["accuracy_by_size"] = plots.accuracy_by_size(
        results["models"], results.get("exports") or []
    )
    return {name: figure for name, figure in figures.items() if figure is not None}


def render(results, figures, settings):
    """The page as a string.

    Args:
        results: As `report` describes.
        figures: A dict of name -> bytes of a PNG.
        settings: A dict, shown as it is.
    """
    title = html.escape(str(results.get("title") or "Distillation report"))
    parts = [f"<h1>{title}</h1>"]
    dataset = results.get("dataset") or {}
    if dataset:
        shape = "x".join(str(side) for side in dataset.get("image_shape") or [])
        facts = [
            str(dataset.get("name", "")),
            f"{dataset['train']:,} training images" if dataset.get("train") else "",
            f"{dataset['test']:,} test images" if dataset.get("test") else "",
            shape,
            f"{len(results['class_names'])} classes" if results.get("class_names") else "",
        ]
        parts.append(f'<p class="soft">{html.escape(", ".join(filter(None, facts)))}</p>')
    sentence = tables.gain_sentence(results)
    if sentence:
        parts.append(f'<p class="result">{html.escape(sentence)}</p>')
    parts.append(tables.models_table(results).html())
    parts.append(_figure("accuracies", figures))
    exports = tables.exports_table(results)
    if exports is not None:
        parts.append("<h2>On the phone</h2>" + exports.html())
    parts.append(_figure("accuracy_by_size", figures))
    for heading, names in (
        ("What the teacher knows", ("dark_knowledge", "disagreements", "reliability")),
        ("How it was trained", ("training_curves",)),
    ):
        section = "".join(_figure(name, figures) for name in names)
        if section:
            parts.append(f"<h2>{heading}</h2>{section}")
    if settings or results.get("command"):
        parts.append("<h2>Settings</h2>")
        if results.get("command"):
            parts.append(f"<pre>{html.escape(str(results['command']))}</pre>")
        if settings:
            text = json.dumps(settings, indent=2, ensure_ascii=False)
            parts.append(f"<pre>{html.escape(text)}</pre>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )


def _figure(name, figures):
    if name not in figures:
        return ""
    data = base64.b64encode(figures[name]).decode("ascii")
    caption = html.escape(CAPTIONS[name])
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _is_share(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
