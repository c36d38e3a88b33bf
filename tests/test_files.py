"""Files are whole or absent."""

import errno
import os
import subprocess
import sys

import pytest

from keras_distill import _files
from keras_distill._files import written_beside

HOLDER = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def another_process():
    """`another_process(folder)`: a process that holds the lock of a folder until it is killed."""
    pytest.importorskip("fcntl")
    holders = []

    def hold(folder):
        command = [sys.executable, "-c", HOLDER, str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        holders.append(subprocess.Popen(command, text=True, **pipes))
        assert holders[-1].stdout.readline() == "held\n"
        return holders[-1]

    yield hold
    for holder in holders:
        holder.kill()
        holder.communicate()


def leftovers(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".writing-")]


@pytest.mark.slow
def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with written_beside(path) as temporary:
        assert temporary.endswith("file.txt")
        with open(temporary, "w") as file:
            file.write("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert leftovers(path.parent) == []


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), written_beside(path) as temporary:
        with open(temporary, "w") as file:
            file.write("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "saved"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(FileNotFoundError), written_beside(path):
        pass  # nothing was written
    assert (path / "old").exists()
    with written_beside(path) as temporary:
        os.mkdir(temporary)
        open(os.path.join(temporary, "new"), "w").close()
    assert [entry.name for entry in path.iterdir()] == ["new"]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("operation", ["rename", "replace"])
@pytest.mark.parametrize("before", [True, False])
def test_an_interrupt_between_the_renames_of_a_folder_loses_none(
    tmp_path, monkeypatch, operation, before
):
    path = tmp_path / "saved"
    path.mkdir()
    (path / "old").touch()
    original, left = getattr(os, operation), [operation]

    def interrupted(*arguments):
        if not left:
            return original(*arguments)
        left.clear()
        if not before:
            original(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, operation, interrupted)
    with pytest.raises(KeyboardInterrupt), written_beside(path) as temporary:
        os.mkdir(temporary)
        open(os.path.join(temporary, "new"), "w").close()
    done = operation == "replace" and not before
    assert [entry.name for entry in path.iterdir()] == ["new" if done else "old"]
    assert leftovers(tmp_path) == []


def test_what_is_renamed_is_on_the_disk(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        raise OSError(errno.EINVAL, "a file system that has none of it")

    monkeypatch.setattr(os, "fsync", fsync)
    with written_beside(tmp_path / "saved") as temporary:
        os.makedirs(os.path.join(temporary, "inner"))
        open(os.path.join(temporary, "inner", "file"), "w").close()
    places = [tmp_path / "saved" / "inner" / "file", tmp_path / "saved" / "inner"]
    places += [tmp_path / "saved", tmp_path]
    assert synced == [place.stat().st_ino for place in places]


def test_a_full_disk_that_is_noticed_at_the_end_is_told(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "file.txt"
    with pytest.raises(OSError) as error, written_beside(path) as temporary:
        open(temporary, "w").close()
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_of_a_link_the_target_is_replaced(tmp_path, kind, there):
    target, link = tmp_path / "store" / "run7", tmp_path / "latest.keras"
    target.parent.mkdir()
    if there:
        target.mkdir() if kind == "folder" else target.touch()
    link.symlink_to(target)
    with written_beside(link) as temporary:
        assert temporary.endswith(".keras")
        if kind == "folder":
            os.mkdir(temporary)
        place = os.path.join(temporary, "new") if kind == "folder" else temporary
        with open(place, "w") as file:
            file.write("new")
    assert link.is_symlink() and target.is_dir() == (kind == "folder")
    assert (target / "new" if kind == "folder" else target).read_text() == "new"
    assert leftovers(tmp_path) == leftovers(target.parent) == []


def test_a_folder_is_held_by_one_process_and_until_that_ends(tmp_path, another_process):
    other = another_process(tmp_path)
    with pytest.raises(BlockingIOError):
        _files.held(tmp_path)
    other.kill()
    other.wait()
    first, second = _files.held(tmp_path), _files.held(tmp_path)
    assert first is second is not None


def test_a_folder_is_held_until_nothing_refers_to_it(tmp_path, another_process):
    hold = _files.held(tmp_path)
    del hold
    assert another_process(tmp_path).poll() is None  # it has the lock, and lives


def test_what_kills_left_is_cleared_but_not_what_others_write(tmp_path, another_process):
    for name in ("killed", "at-work", "saved"):
        (tmp_path / f".writing-{name}").mkdir()
    (tmp_path / ".writing-saved" / "saved.replaced").mkdir()
    another_process(tmp_path / ".writing-at-work")
    with written_beside(tmp_path / "mine") as temporary:
        _files.clear_left(tmp_path)
        open(temporary, "w").close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".writing-at-work", ".writing-saved", "mine"]
