"""Files are whole or absent."""

import pytest

from keras_distill._files import written_beside


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
    import os

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
