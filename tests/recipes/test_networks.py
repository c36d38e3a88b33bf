"""Networks by name and from files."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.backbones import small_cnn
from keras_distill.recipes import networks


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("small-3", "small_cnn_3"),
        ("small-2-3-4", "small_cnn_2_3_4"),
        ("resnet8", "resnet8"),
        ("resnet8x4", "resnet8x4"),
        ("wrn-10-1", "wrn_10_1"),
    ],
)
def test_names(name, layers):
    model = networks.build(name, (16, 16, 3), 7)
    assert model.name == layers
    assert model.output_shape == (None, 7)


def test_same_seed_same_weights():
    one, two = (networks.build("small-2", (8, 8, 1), 3, seed=5) for _ in range(2))
    for a, b in zip(one.get_weights(), two.get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "name", ["small", "resnet9", "vgg16", "wrn-16", "", "small-0", "small-4-8"]
)
def test_unknown_names_are_clear_errors(name):
    with pytest.raises(ValueError, match="Expected") as caught:
        networks.build(name, (8, 8, 1), 3)
    assert len(str(caught.value)) < 300


def test_file_round_trip_leaves_the_optimizer_behind(tmp_path):
    model = small_cnn(classes=3, channels=2)
    model.compile("adam", networks.label_loss(model))
    model.fit(np.zeros((4, 8, 8, 1)), np.zeros(4), verbose=0)
    loaded = networks.save(model, tmp_path / "model.keras")
    assert not loaded.compiled
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    for a, b in zip(model.get_weights(), loaded.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_wrappers_file_gives_its_student_and_an_ensembles_itself(tmp_path):
    members = [small_cnn(classes=3, channels=2, name=name) for name in "ab"]
    teacher = kd.EnsembleTeacher(members)
    student = small_cnn(classes=3, channels=2, name="student")
    teacher.save(tmp_path / "teacher.keras")
    distiller = kd.Distiller(teacher, student, kd.losses.SoftTargets())
    distiller.save(tmp_path / "distiller.keras")
    assert networks.load(tmp_path / "distiller.keras").name == "student"
    assert isinstance(networks.load(tmp_path / "teacher.keras"), kd.EnsembleTeacher)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.keras"):
        networks.load(tmp_path / "x.keras")
    (tmp_path / "y.keras").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="Expected a `.keras` file that this Keras can load"):
        networks.load(tmp_path / "y.keras")


@pytest.mark.parametrize(
    ("shape", "classes", "said"),
    [((9, 9, 1), 3, "--image-size"), ((8, 8, 3), 3, "shape"), ((8, 8, 1), 4, "4 classes")],
)
def test_network_that_does_not_fit_the_data(shape, classes, said):
    with pytest.raises(ValueError, match=said):
        networks.check_fits(small_cnn(classes=3, channels=2), shape, classes, "a.keras")


@pytest.mark.parametrize(
    ("activation", "classes", "kind", "from_logits"),
    [
        (None, 3, keras.losses.SparseCategoricalCrossentropy, True),
        ("softmax", 3, keras.losses.SparseCategoricalCrossentropy, False),
        ("sigmoid", 1, keras.losses.BinaryCrossentropy, False),
        (None, 1, keras.losses.BinaryCrossentropy, True),
    ],
)
def test_label_loss_fits_the_head(activation, classes, kind, from_logits):
    model = small_cnn(classes=classes, channels=2, classifier_activation=activation)
    loss = networks.label_loss(model)
    assert isinstance(loss, kind)
    assert loss.get_config()["from_logits"] is from_logits
