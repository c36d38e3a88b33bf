"""Commands that are stopped by Ctrl-C or by a full disk, and then given again.

    python -m tests.programs.commands FOLDER

Prints JSON: the status and the lines on stderr of each stopped command by its name; whether the
command, given again, ends as one that was never stopped, is checked here.
"""

import json
import os
import pathlib
import signal
import sys

from keras_distill import cli
from tests.programs import caching
from tests.programs import children
from tests.programs import exporting
from tests.programs import training


def command(errors, *arguments):
    """Runs a command; what it says on stderr goes to a file, all of it."""
    for stream, path in ((sys.stdout, os.devnull), (sys.stderr, errors)):
        with open(path, "w") as file:
            os.dup2(file.fileno(), stream.fileno())
    return cli.main([str(argument) for argument in arguments])


class Commands:
    """Starts commands and keeps how they end."""

    def __init__(self, folder):
        self.folder = folder
        self.found = {}

    def errors(self, name):
        return self.folder / f"{name}.txt"

    def whole(self, name, *arguments):
        """One that must not fail."""
        status = children.run(command, self.errors(name), *arguments)
        assert status == 0, (name, status, self.errors(name).read_text())

    def interrupted(self, name, pattern, *arguments):
        """One that gets Ctrl-C as soon as files of a pattern are there."""
        status, _ = children.stop(
            command,
            self.errors(name),
            *arguments,
            when=lambda seconds: any(self.folder.glob(pattern)),
            by=signal.SIGINT,
        )
        self.note(name, status)

    def without_room(self, name, limit, *arguments):
        """One whose files may have so many bytes."""
        self.note(name, children.run(command, self.errors(name), *arguments, limit=limit))

    def note(self, name, status):
        self.found[name] = (status, self.errors(name).read_text().splitlines())


def train(commands):
    """Ctrl-C while the teacher is trained, the student, and the report is drawn; a full disk."""
    folder = commands.folder
    undisturbed, stopped, full = (
        (*training.ARGUMENTS, "--out", folder / name) for name in ("undisturbed", "stopped", "full")
    )
    commands.whole("train", *undisturbed)
    expected = training.outcome(folder / "undisturbed")
    for name, pattern in (
        ("interrupted teacher", "stopped/backups/teacher/epoch-00001*"),
        ("interrupted student", "stopped/backups/student/epoch-00002*"),
        ("interrupted report", "stopped/figures/*.png"),
    ):
        commands.interrupted(name, pattern, *stopped)
    commands.whole("train again", *stopped)
    training.compare(folder / "stopped", expected)
    sizes = {
        name: (folder / "undisturbed" / name).stat().st_size
        for name in ("pictures.npz", "report.html")
    }
    commands.without_room("backup without room", 10_000, *full)
    assert not list((folder / "full").rglob("*.h5"))
    for name, size in sizes.items():
        commands.without_room(f"{name} without room", size - 100, *full)
        assert not (folder / "full" / name).exists()
    commands.whole("train with room", *full)
    training.compare(folder / "full", expected)


def cache(commands):
    """Ctrl-C and a full disk while a cache is built."""
    folder = commands.folder
    data = ("--dataset", "digits", "--limit", 400, "--views", 20, "--augment")
    teacher = ("--teacher", folder / "undisturbed" / "models" / "teacher.keras")
    whole, stopped = (
        ("cache", folder / name, *data, *teacher) for name in ("cache", "stopped_cache")
    )
    commands.whole("cache", *whole)
    commands.interrupted("interrupted cache", "stopped_cache/marks/00001*", *stopped)
    assert not (folder / "stopped_cache" / "checksums.json").exists()
    commands.without_room("cache without room", 5000, "cache", folder / "full_cache", *stopped[2:])
    commands.whole("cache again", *stopped)
    assert caching.content(folder / "cache") == caching.content(folder / "stopped_cache")


def export(commands):
    """Ctrl-C and a full disk while a file is written over an older one."""
    folder = commands.folder
    network, out = folder / "undisturbed" / "models" / "student.keras", folder / "exports"
    out.mkdir()
    new = ("export", network, "--out", out / "new.tflite")
    again = ("export", network, "--out", out / "again.tflite")
    commands.whole("export", *new)
    (out / "again.tflite").write_bytes(b"older")
    commands.interrupted("interrupted export", "exports/.writing-*", *again)
    commands.without_room("export without room", 1000, *again)
    assert (out / "again.tflite").read_bytes() == b"older"
    assert exporting.names(out) == ["again.tflite", "new.tflite"]
    commands.whole("export again", *again)
    assert (out / "again.tflite").read_bytes() == (out / "new.tflite").read_bytes()


def main(folder):
    commands = Commands(pathlib.Path(folder))
    for part in (train, cache, export):
        part(commands)
    print(json.dumps(commands.found))


if __name__ == "__main__":
    main(sys.argv[1])
