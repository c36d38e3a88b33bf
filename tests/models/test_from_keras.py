"""Distiller.from_keras: what the author of a keras.distillation.Distiller meant."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests.models import nets

Logits = keras.distillation.LogitsDistillation
Features = keras.distillation.FeatureDistillation
TEMPERATURE = 3.0
SHARE = 0.7  # of the distillation losses


def models():
    return nets.sharpen(nets.mlp(width=12, name="teacher")), nets.mlp(width=12, name="student")


def from_keras(losses, weights=None, teacher=None, student=None, share=SHARE):
    if teacher is None:
        teacher, student = models()
    theirs = keras.distillation.Distiller(
        teacher, student, losses, weights, student_loss_weight=1 - share, name="mine"
    )
    ours = kd.Distiller.from_keras(theirs)
    ours.compile(nets.sgd(), nets.cross_entropy(), jit_compile=False)
    return ours


def hidden(model, x):
    return nets.predict(keras.Model(model.input, model.get_layer("hidden").output), x)


def cross_entropy_of_soft(t, s, temperature):
    p = nets.softmax(t / temperature)
    return -np.sum(p * nets.log_softmax(s / temperature), -1).mean()


def divergence(t, s):
    return nets.kd(t, s, TEMPERATURE).mean()


@pytest.mark.parametrize(
    "loss",
    [
        "kl_divergence",
        "KLDivergence",
        keras.losses.KLDivergence(),
        keras.losses.kl_divergence,
    ],
)
def test_any_form_of_kl_divergence_is_distillation(loss):
    ours = from_keras(Logits(TEMPERATURE, loss))
    x, y = nets.vectors(8), nets.class_ids(8)
    t, s = nets.predict(ours.teacher, x), nets.predict(ours.student, x)
    logs = ours.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["soft_targets"], divergence(t, s), rtol=1e-4)
    total = (1 - SHARE) * nets.ce(y, s).mean() + SHARE * divergence(t, s)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-4)


def test_the_default_is_distillation():
    ours = from_keras(Logits())
    assert isinstance(ours.terms[0].loss, kd.losses.SoftTargets)
    assert ours.terms[0].loss.temperature == Logits().temperature


@pytest.mark.parametrize(
    "loss", ["categorical_crossentropy", keras.losses.CategoricalCrossentropy()]
)
def test_soft_cross_entropy_has_the_gradient_of_the_divergence(loss):
    ours = from_keras(Logits(TEMPERATURE, loss))
    x, y = nets.vectors(8), nets.class_ids(8)
    t, s = nets.predict(ours.teacher, x), nets.predict(ours.student, x)
    logs = ours.train_on_batch(x, y, return_dict=True)
    entropy = cross_entropy_of_soft(t, t, TEMPERATURE)
    total = (1 - SHARE) * nets.ce(y, s).mean()
    total += SHARE * (cross_entropy_of_soft(t, s, TEMPERATURE) - entropy)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-4)


@pytest.mark.parametrize("loss", ["mse", "mean_squared_error", keras.losses.MeanSquaredError()])
def test_squared_error_of_logits_is_over_the_temperature_squared(loss):
    ours = from_keras(Logits(TEMPERATURE, loss))
    x, y = nets.vectors(8), nets.class_ids(8)
    t, s = nets.predict(ours.teacher, x), nets.predict(ours.student, x)
    logs = ours.train_on_batch(x, y, return_dict=True)
    total = (1 - SHARE) * nets.ce(y, s).mean()
    total += SHARE * np.mean(((t - s) / TEMPERATURE) ** 2)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-4)


@pytest.mark.parametrize("loss", ["mae", keras.losses.MeanAbsoluteError()])
def test_another_loss_of_logits_sees_them_over_the_temperature(loss, tmp_path):
    ours = from_keras(Logits(TEMPERATURE, loss))
    x, y = nets.vectors(8), nets.class_ids(8)
    t, s = nets.predict(ours.teacher, x), nets.predict(ours.student, x)
    logs = ours.train_on_batch(x, y, return_dict=True)
    expected = np.mean(np.abs(t - s)) / TEMPERATURE
    np.testing.assert_allclose(logs["mean_absolute_error"], expected, rtol=1e-4)
    ours.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    again = loaded.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(
        again["mean_absolute_error"],
        ours.train_on_batch(x, y, return_dict=True)["mean_absolute_error"],
        rtol=1e-2,
    )


@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanSquaredError()])
def test_squared_error_of_features_is_a_hint(loss):
    ours = from_keras(Features(loss, "hidden", "hidden"))
    x, y = nets.vectors(8), nets.class_ids(8)
    expected = np.mean((hidden(ours.teacher, x) - hidden(ours.student, x)) ** 2)
    logs = ours.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["hint"], expected, rtol=1e-4)


def test_another_loss_of_features():
    ours = from_keras(Features("cosine_similarity", "hidden", "hidden"))
    x, y = nets.vectors(8), nets.class_ids(8)
    t, s = hidden(ours.teacher, x), hidden(ours.student, x)
    cosine = np.sum(t * s, -1) / np.linalg.norm(t, axis=-1) / np.linalg.norm(s, axis=-1)
    logs = ours.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["cosine_similarity"], -cosine.mean(), rtol=1e-4)


def test_features_without_layer_names_are_the_predictions():
    ours = from_keras(Features("mse"))
    x, y = nets.vectors(8), nets.class_ids(8)
    t, s = nets.predict(ours.teacher, x), nets.predict(ours.student, x)
    logs = ours.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["mean_squared_error"], np.mean((t - s) ** 2), rtol=1e-4)


def test_weights_of_several_losses():
    ours = from_keras([Logits(TEMPERATURE), Features("mse", "hidden", "hidden")], [2.0, 0.5])
    x, y = nets.vectors(8), nets.class_ids(8)
    t, s = nets.predict(ours.teacher, x), nets.predict(ours.student, x)
    logs = ours.train_on_batch(x, y, return_dict=True)
    total = (1 - SHARE) * logs["label_loss"]
    total += SHARE * (2.0 * divergence(t, s) + 0.5 * logs["hint"])
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-4)


def test_softmax_heads_are_distilled_before_the_softmax():
    teacher, student = nets.mlp("softmax", width=12), nets.mlp("softmax", name="student")
    theirs = keras.distillation.Distiller(teacher, student, Logits(TEMPERATURE))
    ours = kd.Distiller.from_keras(theirs)
    ours.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    x, y = nets.vectors(8), nets.class_ids(8)
    t, s = np.log(nets.predict(teacher, x)), np.log(nets.predict(student, x))
    logs = ours.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["soft_targets"], divergence(t, s), rtol=1e-4)


def test_several_outputs_of_one_loss():
    teacher, student = nets.two_heads("dict", "teacher"), nets.two_heads("dict", "student")
    kl = "kl_divergence"
    theirs = keras.distillation.Distiller(
        teacher, student, Logits(TEMPERATURE, {"zebra": kl, "apple": kl})
    )
    ours = kd.Distiller.from_keras(theirs)
    ours.compile("sgd", None, jit_compile=False)
    x = nets.vectors(8)
    t, s = nets.predict(teacher, x), nets.predict(student, x)
    logs = ours.train_on_batch(x, return_dict=True)
    expected = sum(divergence(t[name], s[name]) for name in t)
    np.testing.assert_allclose(logs["soft_targets"], expected, rtol=1e-4)


def test_it_shares_the_models_and_keeps_the_name():
    teacher, student = models()
    ours = from_keras(Logits(), teacher=teacher, student=student)
    assert ours.teacher is teacher and ours.student is student
    assert ours.name == "mine"
    assert ours.student_loss_weight == pytest.approx(1 - SHARE)


def test_what_has_no_counterpart_is_an_error():
    class Own(keras.distillation.DistillationLoss):
        def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
            return keras.ops.mean(teacher_outputs - student_outputs)

    with pytest.raises(ValueError, match="Own.*Term"):
        from_keras(Own())
    teacher, student = nets.two_heads("dict", "teacher"), nets.two_heads("dict", "student")
    mixed = Logits(TEMPERATURE, {"zebra": "kl_divergence", "apple": "mse"})
    with pytest.raises(ValueError, match="one loss.*kl_divergence"):
        from_keras(mixed, teacher=teacher, student=student)


def test_a_tempered_loss_sees_logits_of_softmax_heads():
    teacher, student = nets.mlp("softmax", width=12), nets.mlp("softmax", name="student")
    theirs = keras.distillation.Distiller(teacher, student, Logits(TEMPERATURE, "mae"))
    ours = kd.Distiller.from_keras(theirs)
    ours.compile("sgd", None, jit_compile=False)
    x = nets.vectors(8)
    t, s = (
        hidden(model, x) @ nets.array(model.get_layer("head").kernel)
        for model in (teacher, student)
    )
    logs = ours.train_on_batch(x, return_dict=True)
    expected = np.mean(np.abs(t - s)) / TEMPERATURE
    np.testing.assert_allclose(logs["mean_absolute_error"], expected, rtol=1e-4)
