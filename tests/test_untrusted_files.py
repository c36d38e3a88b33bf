"""Files from elsewhere: nothing in them is run, and nothing is written outside their folder."""

import ast
import json
import os
import pathlib
import zipfile

import keras
import numpy as np
import pytest

from keras_distill import cli
from keras_distill.backbones import small_cnn
from keras_distill.data import load
from keras_distill.export import _network
from keras_distill.recipes import networks
from keras_distill.recipes import training

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "keras_distill").rglob("*.py")) + sorted((ROOT / "scripts").rglob("*.py"))

# What runs code from data, or writes where an archive says.
MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "tarfile", "yaml"}
FUNCTIONS = {"__import__", "compile", "eval", "exec", "os.popen", "os.system"}
METHODS = {
    "enable_unsafe_deserialization",
    "extract",
    "extractall",
    "read_pickle",
    "unpack_archive",
}


def dangers(source):
    """`line: what` of all in a module's source that would run code from data."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").partition(".")[0]]
        for name in MODULES.intersection(names):
            yield f"{node.lineno}: imports {name}"
        if not isinstance(node, ast.Call):
            continue
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        called = ast.unparse(node.func)
        last = called.rpartition(".")[2]
        if called in FUNCTIONS or ("." in called and last in METHODS):
            yield f"{node.lineno}: calls {called}"
        if called in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
            yield f"{node.lineno}: {called} without allow_pickle=False"
        if called == "torch.load" and options.get("weights_only") != "True":
            yield f"{node.lineno}: torch.load without weights_only=True"
        if options.get("safe_mode", "True") != "True" or options.get("shell", "False") != "False":
            yield f"{node.lineno}: {called} with safe_mode or shell"
        if called in ("keras.layers.Lambda", "layers.Lambda"):
            yield f"{node.lineno}: {called}, which safe mode refuses to load again"


def test_no_code_is_run_from_data():
    found = [
        f"{path.relative_to(ROOT).as_posix()}:{danger}"
        for path in SOURCES
        for danger in dangers(path.read_text(encoding="utf-8"))
    ]
    assert found == [] and len(SOURCES) > 100


def test_the_check_sees_what_it_looks_for():
    bad = [
        "import pickle",
        "from yaml import load",
        "import joblib.numpy_pickle",
        "eval('1')",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "keras.saving.load_model(path, safe_mode=False)",
        "subprocess.run(line, shell=True)",
        "archive.extractall(folder)",
        "os.system(line)",
        "keras.config.enable_unsafe_deserialization()",
        "keras.layers.Lambda(abs)",
    ]
    assert [len(list(dangers(line))) for line in bad] == [1] * len(bad)
    good = "model.compile('sgd')\nnp.load(path, allow_pickle=False)\nmodel.eval()\nre.compile('a')"
    assert list(dangers(good)) == []


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A harmless `.keras` file."""
    path = tmp_path_factory.mktemp("plain") / "plain.keras"
    small_cnn((8, 8, 1), 10, 2).save(path)
    return path


def changed(source, path, added=(), config=None):
    """A copy of a `.keras` file with entries added, or another `config.json`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            is_config = config is not None and name == "config.json"
            new.writestr(name, json.dumps(config) if is_config else old.read(name))
        for name in added:
            new.writestr(name, "written by the archive")
    return path


def is_one_clear_line(text):
    return text.count("\n") == 1 and text.startswith("keras-distill: Expected a `.keras` file")


@pytest.fixture
def with_code(tmp_path):
    """A `.keras` file whose Lambda layer makes a folder, and the folder."""
    trace = str(tmp_path / "ran")
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Lambda(
        lambda x, path=trace: (__import__("os").makedirs(path, exist_ok=True), x)[1],
        output_shape=(8, 8, 1),
    )(inputs)
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(x)))
    model.save(tmp_path / "code.keras")
    model(keras.ops.zeros((1, 8, 8, 1)))
    assert os.path.isdir(trace)  # the layer does what it is meant to
    os.rmdir(trace)
    return tmp_path / "code.keras", trace


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "FILE", "--dataset", "digits"],
        ["compare", "FILE", "--dataset", "digits"],
        ["export", "FILE"],
        ["train", "--dataset", "digits", "--teacher", "FILE", "--student", "small-2"],
        ["train", "--dataset", "digits", "--student", "FILE", "--teacher", "small-2"],
        ["train", "--dataset", "digits", "--recipe", "distillation", "--teacher", "FILE"],
        ["cache", "OUT", "--teacher", "FILE", "--dataset", "digits"],
    ],
    ids=lambda arguments: " ".join(arguments[:1] + arguments[3:4]),
)
def test_a_layer_with_code_is_refused_by_each_command(
    with_code, arguments, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(training, "make_deterministic", lambda: None)
    monkeypatch.chdir(tmp_path)
    file, trace = with_code
    places = {"FILE": str(file), "OUT": str(tmp_path / "out")}
    assert cli.main([places.get(argument, argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert is_one_clear_line(said.err) and "Lambda" in said.err
    assert not os.path.exists(trace)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code.keras"]


@pytest.mark.filterwarnings("ignore:Skipping invalid path during archive extraction")
@pytest.mark.parametrize("load", [networks.load, _network.inference_model])
@pytest.mark.parametrize(
    "entry",
    ["../../escaped", "assets/../../escaped", "/OUTSIDE/escaped", "assets/../../../escaped"],
)
def test_archives_that_lead_out_of_their_folder_write_nothing_there(
    plain, tmp_path, monkeypatch, entry, load
):
    """Keras unpacks an archive with assets into a temporary folder, here deep in `tmp_path`."""
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    entry = entry.replace("/OUTSIDE", str(tmp_path))
    path = changed(plain, tmp_path / "slip.keras", [entry, "assets/note.txt"])
    with zipfile.ZipFile(path) as archive:
        assert entry in archive.namelist()
    assert load(path).name == "small_cnn_2"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


@pytest.mark.parametrize(
    "config",
    [
        {"module": "os", "class_name": "system", "config": {"command": "true"}},
        {"module": "builtins", "class_name": "function", "config": "eval"},
        {"module": "subprocess", "class_name": "Popen", "config": {"args": "true"}},
        {"class_name": "__lambda__", "config": {"value": "gAR9lC4="}},
        {"module": "keras_distill._files", "class_name": "written_beside", "config": {"path": "x"}},
        {
            "module": "keras_distill.data.teacher_cache",
            "class_name": "TeacherCache",
            "config": {"path": "x", "images": []},
        },
        [],
        None,
        {"module": "keras.src.models.functional", "class_name": "Functional", "config": []},
    ],
    ids=str,
)
def test_configurations_that_name_other_code_are_refused(plain, tmp_path, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = changed(plain, tmp_path / "other.keras", config=[config] if config is None else config)
    with pytest.raises(
        ValueError, match=r"Expected a `\.keras` file that this Keras can load"
    ) as e:
        networks.load(path)
    assert "\n" not in str(e.value) and len(str(e.value)) < 600
    assert [p.name for p in tmp_path.iterdir()] == ["other.keras"]


def test_a_damaged_archive_is_one_line_or_the_same_network(plain, tmp_path):
    whole, path, refused = plain.read_bytes(), tmp_path / "damaged.keras", 0
    for i in range(24):
        data = bytearray(whole)
        place = (i * 7919) % len(data)
        if i % 3 == 0:
            del data[place:]
        else:
            data[place] ^= 0xFF
        path.write_bytes(data)
        try:
            network = networks.load(path)
        except ValueError as error:
            assert "\n" not in str(error) and "Expected a `.keras` file" in str(error)
            refused += 1
        else:
            assert network.output_shape == (None, 10)
    assert refused >= 8


# Folders of images.


def picture(path):
    """Writes a small image, all of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keras.utils.save_img(path, np.full((4, 4, 3), 9, "uint8"), scale=False)


def test_links_in_a_folder_of_images_are_not_followed_round(tmp_path):
    """A link to a folder inside a class's is not entered: it may be a loop, or lead elsewhere."""
    for name in ("a/1.png", "a/deep/2.png", "b/3.png", "b/4.png"):
        picture(tmp_path / "images" / name)
    picture(tmp_path / "elsewhere" / "5.png")
    (tmp_path / "images" / "a" / "loop").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "a" / "out").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "images" / "b" / "waits.png")
    loaded = load(str(tmp_path / "images"))
    assert len(loaded.train) + len(loaded.test) == 4


def test_classes_whose_names_are_no_unicode_are_written_out(tmp_path):
    """Such a name would stop the report, or the terminal, after hours of training."""
    for name in (b"caf\xe9", b"caf\xe8", "th\u00e9".encode()):
        folder = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"pl\xffates", name))
        for i in range(2):
            picture(pathlib.Path(folder) / f"{i}.png")
    train = load(pathlib.Path(folder).parent).train
    assert train.class_names == ("caf\\xe8", "caf\\xe9", "th\u00e9")
    assert train.name == "pl\\xffates/train"


def test_a_file_of_another_kind_in_the_place_of_an_image_is_named(tmp_path):
    for name in ("a/1.png", "b/2.png", "b/3.png"):
        picture(tmp_path / name)
    (tmp_path / "b" / "3.png").write_bytes(pickle_of_nothing := b"\x80\x04N.")
    with pytest.raises(ValueError, match=r"can be read\. Received: .*3\.png"):
        load(str(tmp_path))
    assert (tmp_path / "b" / "3.png").read_bytes() == pickle_of_nothing
