"""The command line: help, errors in one line, training, evaluation, export, and going on."""

import inspect
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import _terminal
from keras_distill import cli
from keras_distill.recipes import schemes
from keras_distill.recipes import training

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = (
    "demo",
    "train",
    "evaluate",
    "compare",
    "export",
    "quantize",
    "cache",
    "losses",
    "recipes",
)
LISTS = ("losses", "recipes")
QUICK = ("--limit", "40", "--epochs", "1", "--batch-size", "20")
PROGRAM = "import sys; from keras_distill.cli import main; sys.exit(main())"


@pytest.fixture(autouse=True)
def _process_stays_as_it_is(monkeypatch):
    """The command line sets its process up; the tests' process is shared."""
    monkeypatch.setattr(training, "make_deterministic", lambda: None)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        level = tf.get_logger().level
        yield
        tf.get_logger().setLevel(level)
    else:
        yield


@pytest.fixture
def call(capsys):
    """`call("train", ...)` -> (status, stdout, stderr)."""

    def run(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def is_one_clear_line(text):
    return text.count("\n") == 1 and "Traceback" not in text and len(text) < 700


# Help and version.


def test_version(call):
    assert call("--version") == (0, f"keras-distill {kd.__version__}\n", "")


def test_help_lists_every_command(call):
    status, out, _ = call("--help")
    assert status == 0
    for command in COMMANDS:
        assert f"\n  {command} " in out
    assert call()[:2] == (0, out)  # nothing asked: the help


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in LISTS])
def test_help_explains_each_command_with_an_example(call, command):
    status, out, _ = call(command, "--help")
    assert status == 0
    assert f"\n  keras-distill {command}" in out
    # Every option has a word of explanation.
    for line in out.partition("Options:")[2].splitlines():
        if line.strip().startswith("--") and "--help" not in line:
            assert len(line.split()) > 1


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_help_fits_a_terminal_of_80_columns(call, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call(*command, "--help")
    assert [line for line in out.splitlines() if len(line) > 80] == []
    assert "..." not in out.partition("Commands:")[2]


def test_lines_are_wrapped_for_a_terminal_alone(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "60")
    line = "  name   Expected what is told, in a line of more than sixty columns. https://a.b/c-d"
    found = _terminal.wrapped(line, Terminal(), indent=9).splitlines()
    assert len(found) == 2 and max(map(len, found)) <= 60
    assert found[0].startswith("  name   Expected") and found[1].startswith(" " * 9 + "columns")
    assert " ".join(" ".join(found).split()) == " ".join(line.split())
    assert _terminal.wrapped(line, io.StringIO(), indent=9) == line


def test_every_loss_is_listed_with_what_it_is(call):
    status, out, _ = call("losses")
    assert status == 0
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    classes = {name for name in kd.losses.__all__ if inspect.isclass(getattr(kd.losses, name))}
    assert len(listed) == len(set(listed)) and set(listed) == classes - {"DistillationLoss"}
    assert "Knowledge distillation (Hinton et al. 2015). https://arxiv.org/abs/1503.02531" in out


def test_recipes_are_listed_with_their_papers(call):
    status, out, _ = call("recipes")
    lines = out.splitlines()
    assert status == 0
    assert [line.split()[0] for line in lines] == schemes.names()
    assert all("https://" in line for line in lines)


@pytest.mark.slow
def test_module_itself_brings_nothing_heavy():
    """Beyond what the package imports: the commands import what they need."""
    script = (
        "import sys, keras_distill; before = set(sys.modules); import keras_distill.cli; "
        "print(*sorted({n.split('.')[0] for n in set(sys.modules) - before}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    heavy = {"tensorflow_datasets", "keras_cv", "keras_hub", "ai_edge_litert", "sklearn"}
    assert result.returncode == 0, result.stderr[-2000:]
    assert set(result.stdout.split()) & heavy == set()


# Errors.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["demo", "--seed", "one"], "'--seed'"),
        (["demo", "--nothing"], "--nothing"),
        (["demo", "--seeds", "0"], "`seeds`"),
        (["train", "--dataset", "digits"], "--teacher"),
        (["evaluate", "missing.keras", "--dataset", "digits"], "missing.keras"),
        (["evaluate", "missing.tflite", "--dataset", "digits"], "missing.tflite"),
        (["export", "missing.keras"], "missing.keras"),
        (["export", "missing.keras", "--quantize", "int8"], "--dataset"),
        (["export", "missing.keras", "--quantize", "int3"], "int3"),
        (["export", "x.keras", "--format", "saved-model", "--quantize", "int8"], "saved-model"),
    ],
)
def test_bad_calls_are_one_line_and_status_2(call, arguments, said):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert is_one_clear_line(err) and said in err


NETWORKS = {"--dataset": "digits", "--teacher": "small-3", "--student": "small-2"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--dataset": "./no/such/folder"}, "no/such/folder"),
        ({"--teacher": "resnet9"}, "depth"),
        ({"--teacher": "big"}, "'big'"),
        ({"--teacher": "big.keras"}, "big.keras"),
        ({"--student": "smal-4"}, "small-4"),
        ({"--loss": "SoftTarget"}, "SoftTargets"),
        ({"--loss": "AlphaDivergence"}, "in Python"),
        ({"--loss": "DistillationLoss"}, "lists"),
        ({"--loss": "hint"}, "Nearest: Hint"),
        ({"--loss": "Hint", "--temperature": "4"}, "no `temperature` for Hint"),
        ({"--loss": "Hint", "--teacher-layer": "stage9"}, "stage2"),
        ({"--loss": "Hint", "--teacher-layer": "stage1,stage2"}, "as many layers"),
        ({"--loss": "AttentionTransfer", "--student-layer": "pool,pool"}, "as many layers"),
        ({"--loss": "RelationalAngle", "--student-layer": "pool,head"}, "as many layers"),
        ({"--loss": "RelationalAngle", "--ensemble": "2"}, "one teacher for RelationalAngle"),
        ({"--teacher-layer": "pool"}, "no --teacher-layer"),
        ({"--temperature": "0"}, "temperature"),
        ({"--weight": "-1"}, "weight"),
        ({"--epochs": "0"}, "epochs"),
        ({"--teacher-epochs": "-3"}, "epochs"),
        ({"--batch-size": "0"}, "batch_size"),
        ({"--learning-rate": "nan"}, "learning_rate"),
        ({"--ensemble": "0"}, "ensemble"),
        ({"--limit": "0"}, "limit"),
        ({"--seed": "-1"}, "seed"),
        ({"--image-size": "0"}, "image_size"),
        ({"--image-size": "2"}, "4 x 4"),
    ],
)
def test_bad_training_is_told_before_anything_is_written(call, tmp_path, changed, said):
    options = {**NETWORKS, **changed, "--out": tmp_path / "run"}
    status, _, err = call("train", *[word for pair in options.items() for word in pair])
    assert status == 2
    assert is_one_clear_line(err) and said in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--recipe", "mutal"], "Nearest: mutual"),
        (["train", "--recipe", "baseline", "--setting", "big"], "setting"),
        (["train", "--recipe", "baseline", "--student", "a.keras"], "network's name"),
        (["train", "--recipe", "baseline", "--student", "smal-4"], "small-4"),
        (["train", "--recipe", "baseline", "--loss", "DIST", "--baseline"], "--baseline, --loss"),
        (["train", "--recipe", "baseline", "--epochs", "0"], "epochs"),
        (["train", "--setting", "small", "--teacher", "small-2", "--student", "s"], "--setting"),
        (["train", "--teacher", "small-2"], "--recipe"),
        (["compare"], "neither"),
        (["compare", "a.keras", "--recipe", "baseline"], "both"),
        (["compare", "a.keras", "--seeds", "3", "--test-limit", "5"], "--seeds, --test-limit"),
        (["compare", "--recipe", "baseline", "--recipe", "mutal"], "Nearest: mutual"),
        (["compare", "--recipe", "baseline", "--recipe", "baseline"], "once"),
        (["compare", "--recipe", "baseline", "--seeds", "0"], "seeds"),
        (["compare", "--recipe", "baseline", "--seed", "-1"], "seeds"),
        (["compare", "--recipe", "baseline", "--budget", "steps"], "budget"),
    ],
)
def test_bad_recipes_are_told_before_anything_is_written(call, tmp_path, arguments, said):
    command = [*arguments, "--dataset", "digits"]
    status, out, err = call(*command, "--out", tmp_path / "run")
    assert (status, out) == (2, "")
    assert is_one_clear_line(err) and said in err
    assert not (tmp_path / "run").exists()


def test_unknown_dataset_names_what_there_is(call, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    options = {**NETWORKS, "--dataset": "cifar11", "--data-dir": tmp_path, "--out": tmp_path / "r"}
    status, _, err = call("train", *[word for pair in options.items() for word in pair])
    assert status == 2 and is_one_clear_line(err) and "cifar10" in err


def test_missing_package_names_the_extra(call, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    status, _, err = call("demo", "--out", tmp_path / "run")
    assert status == 2 and is_one_clear_line(err) and "keras-distill[demo]" in err


def test_debug_shows_the_traceback():
    with pytest.raises(FileNotFoundError):
        cli.main(["export", "missing.keras", "--debug"])


def test_errors_that_are_not_the_users_are_not_hidden(monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr(cli, "_compare", broken)
    with pytest.raises(KeyError):
        cli.main(["evaluate", "x.keras", "--dataset", "digits"])


def test_errors_from_elsewhere_say_how_to_see_more(call, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("shapes\ndo not\nmatch " + "x" * 5000)

    monkeypatch.setattr(cli, "_compare", broken)
    status, _, err = call("evaluate", "x.keras", "--dataset", "digits")
    assert status == 2 and is_one_clear_line(err) and "--debug" in err


def test_interrupt_says_how_to_go_on(call, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_compare", interrupted)
    status, _, err = call("evaluate", "x.keras", "--dataset", "digits")
    assert status == 130 and "Traceback" not in err


# The commands, on each other's files.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`train` on digits: an ensemble of two tiny teachers, a tiny student, a baseline."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    keras.utils.set_random_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_deterministic", lambda: None)
        assert cli.main(train_arguments(folder)) == 0
    return folder


def train_arguments(folder):
    networks = ("--teacher", "small-3", "--student", "small-2", "--ensemble", "2", "--baseline")
    return ["train", "--dataset", "digits", *networks, *QUICK, "--out", str(folder)]


@pytest.mark.tensorflow
def test_train_leaves_a_whole_run(run):
    results = json.loads((run / "results.json").read_text())
    assert [model["name"] for model in results["models"]] == [
        "teacher",
        "student alone",
        "student distilled",
    ]
    assert results["dataset"] == {
        "name": "digits",
        "train": 40,
        "test": 1397,
        "image_shape": [8, 8, 1],
    }
    assert sorted(path.name for path in (run / "models").iterdir()) == [
        "student.keras",
        "student_alone.keras",
        "teacher.keras",
    ]
    assert "small-2 distilled from small-3" in (run / "report.html").read_text(encoding="utf-8")
    assert isinstance(keras.models.load_model(run / "models" / "teacher.keras"), kd.EnsembleTeacher)


@pytest.mark.tensorflow
def test_same_train_command_trains_nothing_again(run, call, monkeypatch):
    def fit(*args, **kwargs):
        raise AssertionError("a finished model is trained again")

    monkeypatch.setattr(keras.Model, "fit", fit)
    before = (run / "metrics.jsonl").read_text()
    status, out, _ = call(*train_arguments(run))
    assert status == 0 and "Going on with the run" in out
    assert (run / "metrics.jsonl").read_text() == before


@pytest.mark.tensorflow
def test_other_settings_are_an_error_that_names_the_ways_out(run, call):
    status, _, err = call(*train_arguments(run), "--seed", 3)
    assert status == 2 and is_one_clear_line(err)
    assert "seed=3" in err and "--restart" in err and "folder" in err


@pytest.mark.slow
@pytest.mark.tensorflow
def test_evaluate(run, call):
    models = run / "models"
    status, out, _ = call(
        "evaluate",
        models / "student.keras",
        "--dataset",
        "digits",
        "--limit",
        50,
        "--teacher",
        models / "teacher.keras",
    )
    assert status == 0
    for word in ("digits/test, 50 images", "accuracy %", "loss", "agrees with teacher %"):
        assert word in out


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("quantize", [None, "float16", "dynamic", "int8"])
def test_export_and_compare(run, call, tmp_path, quantize):
    out_file = tmp_path / "student.tflite"
    options = ["--quantize", quantize] if quantize else []
    student = run / "models" / "student.keras"
    data = ("--dataset", "digits", "--limit", 60)
    status, out, err = call("export", student, "--out", out_file, *options, *data)
    assert out_file.stat().st_size > 0
    # A student of one epoch is close to a coin's toss, which int8 may turn.
    assert status == 0 or (quantize == "int8" and status == 1 and "strays" in err)
    if status == 0:
        assert "agrees on" in out
    status, out, _ = call("compare", student, out_file, *data, "--teacher", student)
    assert status == 0 and "student.tflite" in out and "ms an image" in out


@pytest.mark.slow
@pytest.mark.tensorflow
def test_export_saved_model_and_on_to_tflite(run, call, tmp_path):
    student = run / "models" / "student.keras"
    folder = tmp_path / "saved"
    data = ("--dataset", "digits", "--limit", 20)
    status, out, _ = call("export", student, "--format", "saved-model", "--out", folder, *data)
    assert status == 0 and (folder / "saved_model.pb").is_file() and "agrees on 100" in out
    status, out, _ = call("export", folder, "--out", tmp_path / "a.tflite", "--batch-size", 0)
    assert status == 0 and "Not checked" in out


@pytest.mark.slow
@pytest.mark.tensorflow
def test_export_int8_inputs_and_outputs(run, call, tmp_path):
    out_file = tmp_path / "a.tflite"
    call(
        "export",
        run / "models" / "student.keras",
        "--out",
        out_file,
        "--quantize",
        "int8",
        "--int8-io",
        "--dataset",
        "digits",
        "--limit",
        20,
    )
    details = tflite_input(out_file)
    assert details["dtype"] == np.int8


def tflite_input(path):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_path=str(path)).get_input_details()[0]


@pytest.mark.slow
@pytest.mark.tensorflow
def test_parity_failure_is_status_1(run, call, tmp_path, monkeypatch):
    from keras_distill import export

    def strays(*args, **kwargs):
        raise export.ParityError("The file strays.", None)

    monkeypatch.setattr(export, "check_parity", strays)
    status, _, err = call(
        "export",
        run / "models" / "student.keras",
        "--out",
        tmp_path / "a.tflite",
        "--dataset",
        "digits",
        "--limit",
        5,
    )
    assert status == 1 and is_one_clear_line(err) and "strays" in err


@pytest.mark.tensorflow
def test_data_of_another_shape_is_told(run, call, tmp_path):
    make_images(tmp_path / "photos")
    status, _, err = call(
        "evaluate", run / "models" / "student.keras", "--dataset", tmp_path / "photos"
    )
    assert status == 2 and is_one_clear_line(err) and "shape" in err


def make_images(folder, side=12, each=6):
    generator = np.random.default_rng(0)
    for name, level in (("bright", 180), ("dark", 20)):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = level + generator.integers(0, 60, (side, side, 3))
            keras.utils.save_img(folder / name / f"{i}.png", pixels, scale=False)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_train_on_a_folder_from_files(call, tmp_path):
    """A folder of images; a teacher with a softmax and a student from files; another loss."""
    make_images(tmp_path / "photos")
    for name, activation in (("teacher", "softmax"), ("student", None)):
        kd.backbones.small_cnn(
            (12, 12, 3), 2, channels=2, classifier_activation=activation, name=name
        ).save(tmp_path / f"{name}.keras")
    out = tmp_path / "run"
    status, _, err = call(
        "train",
        "--dataset",
        tmp_path / "photos",
        "--teacher",
        tmp_path / "teacher.keras",
        "--student",
        tmp_path / "student.keras",
        "--loss",
        "DecoupledKD",
        "--augment",
        "--epochs",
        1,
        "--batch-size",
        4,
        "--out",
        out,
    )
    assert status == 0, err
    results = json.loads((out / "results.json").read_text())
    assert results["class_names"] == ["bright", "dark"]
    assert not (out / "models" / "teacher.keras").exists()  # it is where it was
    status, shown, _ = call(
        "evaluate", out / "models" / "student.keras", "--dataset", tmp_path / "photos"
    )
    assert status == 0 and "photos/test" in shown


@pytest.mark.slow
@pytest.mark.tensorflow
def test_train_with_a_loss_of_layers(call, tmp_path):
    command = ["train", *[word for pair in NETWORKS.items() for word in pair], *QUICK]
    command += ["--loss", "RelationalDistance", "--out", tmp_path]
    status, out, err = call(*command)
    assert status == 0, err
    assert "Loss: RelationalDistance of pool (teacher) and pool (student), weight 25" in out
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert (settings["weight"], settings["teacher_layer"]) == (25.0, "pool")
    logs = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logs[-1]["relational_distance"] > 0
    # What is taken by default and what is said are one setting.
    status, out, _ = call(*command, "--weight", "25", "--student-layer", "pool")
    assert status == 0 and "Going on with the run" in out
    status, _, err = call(*command, "--student-layer", "head")
    assert status == 2 and is_one_clear_line(err) and "student_layer='head'" in err


@pytest.mark.slow
@pytest.mark.tensorflow
def test_train_on_prepared_data(call, tmp_path, data_dir):
    status, out, err = call(
        "train",
        "--dataset",
        "mnist",
        "--data-dir",
        data_dir,
        "--teacher",
        "small-3",
        "--student",
        "small-2",
        *QUICK,
        "--out",
        tmp_path / "run",
    )
    assert status == 0, err
    assert "student distilled" in out


# Recipes.


@pytest.mark.slow
@pytest.mark.tensorflow
def test_train_by_a_recipe_and_compare_its_file(call, tmp_path):
    out = tmp_path / "run"
    command = ("train", "--dataset", "digits", "--recipe", "label_smoothing", *QUICK)
    command += ("--student", "small-2", "--out", out)
    status, shown, err = call(*command)
    assert status == 0, err
    assert "label_smoothing" in shown and "1 epochs, 2 steps, 40 images" in shown
    settings = json.loads((out / "settings.json").read_text())
    assert settings["recipe"] == "label_smoothing" and settings["setting"] == "small"
    status, shown, _ = call(*command)
    assert status == 0 and "Going on with the run" in shown
    status, _, err = call(*command[:-2], "--recipe", "baseline", "--out", out)
    assert status == 2 and is_one_clear_line(err) and "recipe='baseline'" in err
    student = out / "models" / "student.keras"
    status, shown, _ = call("compare", student, "--dataset", "digits", "--limit", 20)
    assert status == 0 and "student.keras" in shown


def compare_arguments(out, *more):
    recipes = ("--recipe", "baseline", "--recipe", "cs_kd")
    small = ("--student", "small-2", "--limit", "100", "--test-limit", "50")
    return ["compare", "--dataset", "digits", *recipes, *small, "--out", str(out), *more]


@pytest.mark.slow
@pytest.mark.tensorflow
def test_compare_recipes(call, tmp_path):
    arguments = compare_arguments(tmp_path / "run", "--seeds", "2", "--epochs", "1", "--seed", "3")
    status, shown, err = call(*arguments)
    assert status == 0, err
    for word in ("cs_kd, seed 4", "over 2 seeds", "gain, last", "Budgets differ", "2.00 times"):
        assert word in shown
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["seeds"] == [3, 4]
    status, _, err = call(*arguments, "--augment")
    assert status == 2 and is_one_clear_line(err) and "augment=True" in err


# Killed, and started again by the same command.


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def finish(arguments):
    process = start(arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.mark.slow
@pytest.mark.tensorflow
def test_killed_comparison_goes_on_to_the_same_results(tmp_path):
    """SIGKILL in the middle of the second training; the first is not done again."""
    more = ("--seeds", 1, "--epochs", 150)
    finish(compare_arguments(tmp_path / "undisturbed", *more))
    killed = tmp_path / "killed"
    process = start(compare_arguments(killed, *more))
    deadline = time.monotonic() + 240
    while not list((killed / "backups" / "cs_kd_seed0").glob("epoch-0000[2-9].weights.h5")):
        assert process.poll() is None and time.monotonic() < deadline, "it ended too early"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    process.stdout.close()
    assert [path.name for path in (killed / "runs").iterdir()] == ["baseline_seed0.json"]
    assert "Going on with the run" in finish(compare_arguments(killed, *more))
    one, two = (
        [
            [record["accuracy"], record["best_accuracy"], record["best_epoch"], record["steps"]]
            for entry in json.loads((tmp_path / name / "results.json").read_text())["comparison"]
            for record in entry["records"]
        ]
        for name in ("undisturbed", "killed")
    )
    assert one == two


@pytest.mark.slow
@pytest.mark.tensorflow
def test_demo_as_a_program(tmp_path):
    """One seed, two epochs: its table, its files, its report."""
    out = tmp_path / "demo"
    process = start(["demo", "--seeds", 1, "--epochs", 2, "--out", out])
    output, _ = process.communicate(timeout=300)
    assert process.returncode in (0, 1), output[-3000:]  # 1: an untrained student's int8 file
    assert "student distilled" in output and "accuracy %" in output
    assert "Traceback" not in output
    assert (out / "report.html").stat().st_size > 10_000
    assert tflite_input(out / "models" / "student_int8.tflite")["dtype"] == np.float32


# A teacher's cache.


def test_cache_is_built_described_and_verified(call, tmp_path):
    keras.utils.set_random_seed(0)
    kd.backbones.small_cnn(channels=2).save(tmp_path / "teacher.keras")
    command = ("cache", tmp_path / "cache", "--dataset", "digits", "--limit", 40)
    build = (*command, "--teacher", tmp_path / "teacher.keras", "--views", 2, "--augment")
    options = ("--no-flip", "--top-k", 3, "--temperature", 4, "--mix", "mixup")
    for _ in range(2):  # The second call finds it whole.
        status, out, err = call(*build, *options)
        assert (status, err) == (0, "")
        assert "40, in 2 views" in out and "likeliest 3 of 10 classes at T = 4" in out
        assert "2,240 (28 a sample and view)" in out and "2 of 2 blocks" in out
    status, out, _ = call("cache", tmp_path / "cache", "--verify")
    assert status == 0 and "every byte as it was written" in out
    file = next((tmp_path / "cache").glob("view-00001*"))
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    status, _, err = call("cache", tmp_path / "cache", "--verify")
    assert status == 2 and is_one_clear_line(err) and "corrupt" in err
    status, _, err = call(*build)
    assert status == 2 and is_one_clear_line(err) and "build another" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nowhere",), "manifest.json"),
        (("x", "--dataset", "digits"), "Expected --teacher and --dataset"),
        (("x", "--teacher", "t.keras", "--dataset", "digits", "--worker", "2"), "0/2"),
        (("x", "--teacher", "none.keras", "--dataset", "digits"), "none.keras"),
    ],
)
def test_cache_says_what_is_wrong(call, arguments, text):
    status, _, err = call("cache", *arguments)
    assert status == 2 and is_one_clear_line(err) and text in err
