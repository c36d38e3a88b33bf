"""What `results.json` must be for a report: each entry of its kind, or one clear error."""

from keras_distill._checks import is_finite
from keras_distill._checks import message
from keras_distill.reporting import tables

MOST_CHARACTERS = 200
SHARES = ("agreement", "calibration_error")
NUMBERS = ("parameters", "bytes", "latency_ms", "accuracy", "agreement", "largest_difference")
COUNTS = ("parameters", "bytes")
TEXTS = ("role", "file", "quantization")


def check_results(results):
    """Returns `results`; raises `ValueError` unless they are as `report` describes."""
    models = results.get("models")
    _check(isinstance(models, list) and models, "`results.json` to list one model or more", models)
    for model in models:
        _check(
            isinstance(model, dict)
            and isinstance(model.get("name"), str)
            and _is_list(model.get("accuracy"), _is_share)
            and model["accuracy"],
            "each model to have `name` and a list of shares `accuracy`",
            model,
        )
        for key in SHARES:
            _check(_are_shares(model.get(key)), f"`{key}` to be shares or null", model.get(key))
        _check_entries(model, COUNTS, NUMBERS[:3])
    names = [model["name"] for model in models]
    _check(len(set(names)) == len(names), "each model to have a name of its own", names)
    _check_gain(results.get("gain"), {model["name"]: model["accuracy"] for model in models})
    exports = results.get("exports") or []
    _check(isinstance(exports, list), "`exports` to be a list", exports)
    for export in exports:
        named = isinstance(export, dict) and isinstance(export.get("file"), str)
        _check(named, "each of `exports` to name its `file`", export)
        _check_entries(export, COUNTS, NUMBERS)
    _check_data(results)
    return results


def _check_gain(gain, accuracy):
    _check(not gain or isinstance(gain, dict), "`gain` to name two models", gain)
    for role in ("baseline", "model") if gain else ():
        if not isinstance(gain.get(role), str) or gain[role] not in accuracy:
            expected = f"`gain` to name one of {list(accuracy)}"
            raise ValueError(message(expected, role, gain.get(role)))
    if gain:
        tables.paired_gain(accuracy[gain["baseline"]], accuracy[gain["model"]])


def _check_data(results):
    dataset, names = results.get("dataset"), results.get("class_names")
    _check(not dataset or isinstance(dataset, dict), "`dataset` to be an object", dataset)
    _check_entries(dataset or {}, ("train", "test"))
    sides = (dataset or {}).get("image_shape")
    _check(sides is None or _is_list(sides, _is_count), "`image_shape` to be sizes", sides)
    _check(not names or _is_list(names, _is_name), "`class_names` to be a list of names", names)
    remarks = results.get("remarks")
    _check(not remarks or _is_list(remarks, _is_name), "`remarks` to be sentences", remarks)


def _check_entries(entry, counts, numbers=()):
    """Raises unless entries are of their kind: null, whole numbers, numbers or texts."""
    for key in {*counts, *numbers, *TEXTS} & set(entry):
        value = entry[key]
        if key in counts:
            fits = _is_count(value)
        else:
            fits = isinstance(value, str) if key in TEXTS else _is_positive(value)
        # Of exported files an accuracy or agreement may be one of several seeds, as of models.
        fits = fits or value is None or (key in ("accuracy", *SHARES) and _are_shares(value))
        _check(fits, f"`{key}` to be a {'text' if key in TEXTS else 'number'} or null", value)


def _check(fits, expected, value):
    if not fits:
        text = repr(value)
        if len(text) > MOST_CHARACTERS:
            text = text[: MOST_CHARACTERS - 3] + "..."
        raise ValueError(f"Expected {expected} in the results. Received: {text}.")


def _is_list(value, of):
    return isinstance(value, list) and all(map(of, value))


def _is_count(value):
    return isinstance(value, int) and _is_positive(value)


def _is_positive(value):
    return is_finite(value) and value >= 0


def _is_share(value):
    return is_finite(value) and 0 <= value <= 1


def _are_shares(value):
    return value is None or _is_share(value) or _is_list(value, lambda v: v is None or _is_share(v))


def _is_name(value):
    return isinstance(value, str) or is_finite(value)
