"""What features lack: the answers for shapes, and the term that a wrapper names."""

import keras
import pytest

import keras_distill as kd
from keras_distill.losses import misfit
from keras_distill.losses.base import DistillationLoss
from tests.contract import network

MAP = (None, 8, 8, 3)
OTHER_MAP = (None, 4, 6, 5)
OPEN_MAP = (None, None, None, 3)
VECTOR = (None, 6)
TOKENS = (None, 16, 6)

SAME = "features of the same shape"
NUMBER = "as many features from both"
MAPS = "maps of shape (batch, height, width, channels) from both"
KNOWN = "maps of known height and width from both"
VECTORS = "vectors of shape (batch, size) from both"
FEATURE = "one feature of shape (batch, ..., size) from both"
ONE_VECTOR = "one vector of shape (batch, size) from both, such as a pooled layer's"
CHANNELS = "features with as many channels from both"

ANSWERS = [
    (misfit.of_one_shape, MAP, MAP, None),
    (misfit.of_one_shape, (8, 8, 8, 3), (None, 8, 8, 3), None),
    (misfit.of_one_shape, (8, 6), (4, 6), None),  # of the batch nothing is said
    (misfit.of_one_shape, MAP, OPEN_MAP, None),
    (misfit.of_one_shape, MAP, (None, None, None, 4), SAME),
    (misfit.of_one_shape, MAP, OTHER_MAP, SAME),
    (misfit.of_one_shape, TOKENS, VECTOR, SAME),
    (misfit.of_one_shape, [MAP, VECTOR], [MAP, VECTOR], None),
    (misfit.of_one_shape, [MAP, VECTOR], [MAP, (None, 7)], SAME),
    (misfit.of_one_shape, [MAP, VECTOR], [MAP], NUMBER),
    (misfit.of_maps, MAP, OTHER_MAP, None),
    (misfit.of_maps, [MAP, OPEN_MAP], [MAP, OTHER_MAP], None),
    (misfit.of_maps, MAP, VECTOR, MAPS),
    (misfit.of_maps, TOKENS, MAP, MAPS),
    (misfit.of_maps, [MAP, VECTOR], [MAP, MAP], MAPS),
    (misfit.of_matched_maps, MAP, OTHER_MAP, None),
    (misfit.of_matched_maps, [MAP, OPEN_MAP], [OTHER_MAP, OPEN_MAP], None),
    (misfit.of_matched_maps, MAP, OPEN_MAP, KNOWN),
    (misfit.of_matched_maps, (None, 8, None, 3), (None, 4, 8, 3), KNOWN),
    (misfit.of_matched_maps, [MAP, MAP], [MAP, OPEN_MAP], KNOWN),
    (misfit.of_matched_maps, [MAP, MAP], [MAP], NUMBER),
    (misfit.of_matched_maps, MAP, VECTOR, MAPS),
    (misfit.of_vectors, VECTOR, (None, 9), None),
    (misfit.of_vectors, [VECTOR, VECTOR], [VECTOR, (8, 9)], None),
    (misfit.of_vectors, VECTOR, TOKENS, VECTORS),
    (misfit.of_vectors, [VECTOR, MAP], [VECTOR, VECTOR], VECTORS),
    (misfit.of_one_number, MAP, VECTOR, None),
    (misfit.of_one_number, [MAP, VECTOR], [VECTOR, MAP], None),
    (misfit.of_one_number, [MAP], MAP, None),
    (misfit.of_one_number, [MAP, VECTOR], VECTOR, NUMBER),
    (misfit.of_one_feature, MAP, VECTOR, None),
    (misfit.of_one_feature, [MAP], TOKENS, None),
    (misfit.of_one_feature, VECTOR, (None,), FEATURE),
    (misfit.of_one_feature, [MAP, MAP], [MAP, MAP], FEATURE),
    (misfit.of_one_vector, VECTOR, (8, 9), None),
    (misfit.of_one_vector, VECTOR, TOKENS, ONE_VECTOR),
    (misfit.of_one_vector, [VECTOR, VECTOR], [VECTOR, VECTOR], ONE_VECTOR),
    (misfit.of_equal_channels, MAP, (None, 4, 4, 3), None),
    (misfit.of_equal_channels, MAP, (None, 7, 3), None),
    (misfit.of_equal_channels, MAP, (None, 4, 4, None), None),
    (misfit.of_equal_channels, MAP, OTHER_MAP, CHANNELS),
    (misfit.of_equal_channels, [MAP, VECTOR], [OPEN_MAP, VECTOR], None),
    (misfit.of_equal_channels, [MAP, VECTOR], [MAP, (None, 7)], CHANNELS),
]


@pytest.mark.parametrize(
    "answer, teacher, student, expected",
    [pytest.param(*row, id=f"{row[0].__name__}-{i}") for i, row in enumerate(ANSWERS)],
)
def test_answers(answer, teacher, student, expected):
    assert answer(teacher, student) == expected
    if answer is not misfit.of_one_number:
        assert answer(student, teacher) == expected  # teacher and student are treated alike


def test_every_answer_is_tested():
    public = {
        value
        for name, value in vars(misfit).items()
        if callable(value) and not name.startswith("_")
    }
    assert public == {row[0] for row in ANSWERS}


def test_a_loss_that_says_nothing_takes_any_features():
    assert DistillationLoss().misfit(MAP, [VECTOR, TOKENS]) is None


@pytest.mark.parametrize("loss", [kd.losses.Hint(), "mse", keras.losses.MeanAbsoluteError()])
def test_the_wrapper_names_the_term_and_both_shapes(loss):
    term = kd.Term(loss, "features", "features", name="my_term")
    with pytest.raises(ValueError) as error:
        kd.Distiller(network("teacher", 5), network("student", 3), term)
    message = str(error.value)
    assert message.startswith("Expected features of the same shape for the term 'my_term'.")
    assert "Received: teacher (None, 4, 4, 5), student (None, 4, 4, 3). Name" in message
    assert "connector='auto'" in message


def test_the_wrapper_names_the_shape_after_the_connector():
    connector = keras.layers.Conv2D(4, 1)
    term = kd.Term(kd.losses.Hint(), "features", "features", connector=connector)
    received = r"teacher \(None, 4, 4, 5\), student \(None, 4, 4, 4\) after the connector\."
    with pytest.raises(ValueError, match=f"for the term 'hint'. Received: {received}"):
        kd.Distiller(network("teacher", 5), network("student", 3), term)


class Vectors(DistillationLoss):
    """Takes vectors, one or several."""

    def misfit(self, teacher_shapes, student_shapes):
        return misfit.of_vectors(teacher_shapes, student_shapes)

    def call(self, y_true, y_pred):
        return keras.ops.zeros((keras.ops.shape(y_pred)[0],))


def test_the_wrapper_names_the_shapes_of_several_layers():
    paths = ["pool", "features"]
    received = (
        r"teacher \[\(None, 5\), \(None, 4, 4, 5\)\], student \[\(None, 3\), \(None, 4, 4, 3\)\]"
    )
    with pytest.raises(ValueError, match=f"Expected vectors of shape .* Received: {received}"):
        kd.Distiller(network("teacher", 5), network("student", 3), kd.Term(Vectors(), paths, paths))
    term = kd.Term(Vectors(), ["pool"], ["pool"], name="single")
    model = kd.Distiller(network("teacher", 5), network("student", 3), term)
    assert model.terms[0].name == "single"


def test_a_teacher_set_later_is_checked_too(tmp_path):
    term = kd.Term(kd.losses.Hint(), "features", "features")
    model = kd.Distiller(network("teacher", 3), network("student", 3), term)
    model.save(tmp_path / "model.keras", include_teacher=False)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    received = r"teacher \(None, 4, 4, 5\), student \(None, 4, 4, 3\)"
    with pytest.raises(ValueError, match=f"for the term 'hint'. Received: {received}"):
        loaded.set_teacher(network("other", 5))
    loaded.set_teacher(network("other", 3))
    assert loaded.teacher.name == "other"
