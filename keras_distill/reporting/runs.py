"""The folder of a run: its settings, its metrics, its results, and the models beside them."""

import json
import math
import numbers
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_distill._checks import is_finite
from keras_distill._checks import message
from keras_distill._files import held
from keras_distill._files import written_beside
from keras_distill._types import PathLike

MOST_DEPTH = 50


class RunFolder:
    """One folder that holds what a run was told, what it measured and what it made.

    `settings.json`: what the run was started with.
    `metrics.jsonl`: one JSON object a line and epoch: what tells the training apart
    (`model`, `seed`), `epoch`, and the logs. A number that is not finite is null.
    `results.json` and `pictures.npz`: what `report` shows; see there.
    `figures/`, `report.html`: written by `report`.

    Whole files are written beside their place and renamed; lines are appended. A line cut
    off by a kill is passed over, and dropped when its epoch is done again.

    Args:
        path: The folder.
        create: Whether to make it where it is missing; else that is an error.

    Raises:
        FileNotFoundError: If there is no such folder and `create` is False.
        NotADirectoryError: If `path` is a file.
    """

    def __init__(self, path: PathLike, create: bool = True) -> None:
        self.path, self._hold = pathlib.Path(path), None
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(
                message("`path` to be a run's folder", "path", str(path)) + " It is a file."
            )
        if create:
            self.path.mkdir(parents=True, exist_ok=True)
        elif not self.path.is_dir():
            raise FileNotFoundError(
                message("`path` to be a run's folder", "path", str(path))
                + " There is no such folder; `keras-distill demo` and `train` write one."
            )

    def __fspath__(self):
        return str(self.path)

    def __repr__(self):
        return f"RunFolder({str(self.path)!r})"

    def hold(self) -> None:
        """Keeps other processes from holding the folder: two trainings in it spoil each other.

        Until this object is gone or the process ends; one process may hold a folder several
        times. Does nothing on a system or a file system without locks.

        Raises:
            ValueError: If another process holds it.
        """
        try:
            self._hold = held(self.path)
        except BlockingIOError as error:
            raise ValueError(
                message(
                    "`path` to be a folder that no other process works in", "path", str(self.path)
                )
                + " Wait until that one has ended, or choose another folder."
            ) from error

    def start(self, settings: Mapping[str, Any]) -> bool:
        """Writes `settings.json`, or checks that the run goes on with the same ones.

        Args:
            settings: A dict of what JSON can hold.

        Returns:
            True where the folder holds a run to go on with, False where it is new.

        Raises:
            ValueError: If the folder was started with other settings; it names them.
        """
        settings = _plain(settings)
        if not (self.path / "settings.json").exists():
            self._write_json("settings.json", settings)
            return False
        known = self.read_settings()
        differing = [
            f"{name}={settings.get(name)!r} (there: {known.get(name)!r})"
            for name in sorted({*settings, *known})
            if settings.get(name) != known.get(name)
        ]
        if differing:
            raise ValueError(
                f"Expected the settings that {str(self.path)!r} was started with. Received: "
                f"{', '.join(differing)}. Choose another folder, or start with those to resume."
            )
        return True

    def read_settings(self) -> dict[str, Any]:
        """The run's settings; an empty dict where none were written.

        Raises:
            ValueError: If the file is damaged; as in all that reads.
        """
        return self._read_json("settings.json", default={})

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`.

        Args:
            record: A dict with `epoch`, what tells the training apart, and numbers.

        Raises:
            ValueError: If `epoch` is no whole number, or an entry is a dict.
        """
        record = _plain(record)
        wrong = _no_metrics(record)
        if wrong:
            raise ValueError(
                f"Expected a record with `epoch` and numbers. Received: one that {wrong}."
            )
        line = json.dumps(record, allow_nan=False) + "\n"
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(line)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of `metrics.jsonl` as dicts, in their order.

        Raises:
            ValueError: If a whole line is none that `append_metrics` writes.
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        records = []
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # cut off by a kill, perhaps in a character
                continue
            wrong = _no_metrics(record)
            if wrong:
                raise ValueError(_damaged(path, f"line {number} {wrong}"))
            records.append(record)
        return records

    def forget_metrics(self, first_epoch: int, **identity: Any) -> None:
        """Drops the lines of a training from `first_epoch` on: they are about to be redone.

        Args:
            first_epoch: The epoch with which the training goes on.
            **identity: What tells its lines apart: `model="distilled", seed=0`.
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        identity = _plain(identity)
        kept = [
            record
            for record in self.read_metrics()
            if record["epoch"] < first_epoch
            or any(record.get(name) != value for name, value in identity.items())
        ]
        with written_beside(path) as temporary:
            text = "".join(json.dumps(record) + "\n" for record in kept)
            pathlib.Path(temporary).write_text(text, encoding="utf-8")

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes `results.json`; its form is that of `report`."""
        self._write_json("results.json", _plain(results))

    def read_results(self) -> dict[str, Any]:
        """The run's results.

        Raises:
            FileNotFoundError: If there are none yet.
        """
        return self._read_json("results.json")

    def write_pictures(self, **arrays: np.ndarray) -> None:
        """Writes the arrays that `report` draws as `pictures.npz`."""
        with written_beside(self.path / "pictures.npz") as temporary:
            np.savez_compressed(temporary, **arrays)

    def read_pictures(self) -> dict[str, np.ndarray]:
        """The arrays of `pictures.npz` by name; an empty dict where there is none."""
        path = self.path / "pictures.npz"
        if not path.exists():
            return {}
        try:
            # Opened here: NumPy leaves a file that it cannot read open.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except Exception as error:  # zipfile, each of its decompressors and NumPy have their own
            raise ValueError(_damaged(path, error)) from error

    def _write_json(self, name, value):
        with written_beside(self.path / name) as temporary:
            text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
            pathlib.Path(temporary).write_text(text, encoding="utf-8")

    def _read_json(self, name, default=None):
        path = self.path / name
        if not path.exists():
            if default is not None:
                return default
            raise FileNotFoundError(
                f"Expected {name!r} in {str(self.path)!r}. Received: no such file. It is written "
                "when the run is done: start the same command again to finish it."
            )
        return read_object(path)


def read_object(path):
    """The JSON object in a file.

    Raises:
        ValueError: If the file is damaged, or a number in it is one that no float holds.
    """
    try:
        value = json.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(_damaged(path, error)) from error
    if not isinstance(value, dict):
        raise ValueError(_damaged(path, f"a {type(value).__name__}, not an object"))
    if not _is_plain(value):
        raise ValueError(_damaged(path, "a number that is not finite, or endless nesting"))
    return value


def _damaged(path, error):
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"Expected {str(path)!r} to be readable. Received: {reason}. Remove it and run again."


def _is_plain(value, depth=0):
    """Whether all numbers in a JSON value are finite, and it is not nested beyond sense."""
    if isinstance(value, (dict, list)):
        inside = value.values() if isinstance(value, dict) else value
        return depth < MOST_DEPTH and all(_is_plain(entry, depth + 1) for entry in inside)
    return not isinstance(value, numbers.Real) or isinstance(value, bool) or is_finite(value)


def _no_metrics(record):
    """What is wrong with a line of metrics; empty where nothing is."""
    if not isinstance(record, dict):
        return "is no JSON object"
    epoch = record.get("epoch")
    if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
        return f"has epoch={epoch!r}"
    for name, value in record.items():
        told_apart = name in ("model", "seed") and isinstance(value, list)
        if isinstance(value, dict) or told_apart or not _is_plain(value):
            return f"has {name}={value!r}"
    return ""


def _plain(value):
    """`value` as JSON holds it: NumPy and Keras numbers as numbers, NaN and infinity as None."""
    if isinstance(value, dict):
        return {_text(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, (str, pathlib.PurePath)):
        return _text(value)
    if isinstance(value, np.ndarray) and value.ndim > 0:
        return _plain(value.tolist())
    if isinstance(value, (np.bool_, np.integer)):
        return value.item()
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"Expected numbers, strings, lists and dicts. Received: value={value!r} of type "
            f"{type(value).__name__}."
        ) from None
    return number if math.isfinite(number) else None


def _text(value):
    """A text as UTF-8 holds it: bytes of a file's name that are none are written out."""
    return str(value).encode("utf-8", "backslashreplace").decode()
