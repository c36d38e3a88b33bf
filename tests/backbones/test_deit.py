"""DeiT on keras-hub's transformers: the token, the heads, saving, export, and training."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_distill as kd
from keras_distill import backbones
from keras_distill.heads import head_of

keras_hub = pytest.importorskip("keras_hub")

SHAPE = (8, 8, 1)
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def images(count=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def vit(**options):
    return keras_hub.models.ViTBackbone(
        image_shape=SHAPE,
        patch_size=4,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
        **options,
    )


def deit(**options):
    return backbones.hub_deit(
        5, SHAPE, patch_size=4, layers=1, heads=2, channels=8, dropout_rate=0.1, **options
    )


MODELS = {"DeiT": deit, "ViT": lambda **options: backbones.hub_distilled(vit(), 5, **options)}


@pytest.mark.parametrize("name", MODELS)
def test_each_head_reads_its_token_and_the_mean_is_returned(name):
    model = MODELS[name]()
    assert head_of(model) == "linear"
    paths = ["backbone", "class_token", "distillation_token", "head", "distillation_head"]
    found = kd.tap(model, paths)(images())
    tokens, *each, label, distilled = (array(found["features"][path]) for path in paths)
    assert tokens.shape == (6, 2 + 4, 8)
    for place, token in enumerate(each):
        np.testing.assert_array_equal(token, tokens[:, place])
    np.testing.assert_allclose(array(found["prediction"]), (label + distilled) / 2, rtol=1e-6)
    assert np.abs(label - distilled).max() > 1e-3
    ended = MODELS[name](activation="softmax", name="mine")
    assert head_of(ended) == "softmax" and ended.name == "mine"


def test_the_token_stands_behind_the_class_token_of_the_vit_that_is_given():
    given = vit()
    model = backbones.hub_distilled(given, 5)
    embedded = kd.tap(given, "vit_patching_and_embedding")(images())["features"]
    embedded = array(embedded["vit_patching_and_embedding"])
    path = "backbone/distillation_token"
    found = array(kd.tap(model, path)(images())["features"][path])
    layer = model.get_layer("backbone").get_layer("distillation_token")
    np.testing.assert_array_equal(np.delete(found, 1, axis=1), embedded)
    own = array(layer.token + layer.position)[:, 0]
    np.testing.assert_allclose(found[:, 1], np.repeat(own, 6, axis=0), rtol=1e-6)
    assert np.abs(own).max() > 0
    shared = {id(variable) for variable in given.variables}
    assert shared < {id(variable) for variable in model.variables}
    assert len(model.weights) == len(given.weights) + 2 + 4


@pytest.mark.slow
@pytest.mark.tensorflow
def test_in_mixed_precision_it_trains_and_comes_back_from_a_file(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    keras.utils.set_random_seed(0)
    student = MODELS["ViT"]()
    policy = student.get_layer("backbone").get_layer("distillation_token").dtype_policy
    keras.config.set_dtype_policy("float32")
    assert policy.name == "mixed_float16"
    wrapper = kd.TwoHeadDistiller(backbones.small_cnn(SHAPE, 5, 2), student)
    wrapper.compile(keras.optimizers.SGD(0.1), CE)
    assert isinstance(wrapper.optimizer, keras.optimizers.LossScaleOptimizer)
    labels = np.arange(8) % 5
    losses = [wrapper.train_on_batch(images(8), labels) for _ in range(8)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    wrapper.save(tmp_path / "wrapper.keras")
    wrapper.student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "wrapper.keras")
    alone = keras.saving.load_model(tmp_path / "student.keras")
    expected = array(wrapper.student(images()))
    np.testing.assert_array_equal(array(loaded.student(images())), expected)
    np.testing.assert_array_equal(array(alone(images())), expected)
    again = [w.train_on_batch(images(8), labels) for w in (wrapper, loaded)]
    assert again[0] == pytest.approx(again[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("name", MODELS)
def test_its_mean_is_exported_to_tflite(name, tmp_path):
    pytest.importorskip("ai_edge_litert")
    wrapper = kd.TwoHeadDistiller(backbones.small_cnn(SHAPE, 5, 2), MODELS[name]())
    kd.export.tflite(wrapper, tmp_path / "model.tflite")
    report = kd.export.check_parity(wrapper, tmp_path / "model.tflite", images(16))
    assert report.samples == 16 and report.largest_difference < 1e-4


@pytest.mark.slow
@pytest.mark.tensorflow
def test_labels_and_teacher_are_learned_by_tokens_of_their_own():
    """The teacher calls each digit by the next one's name: its head says so, the other does not."""
    digits = kd.data.load("digits")
    (x, y), (x_test, y_test) = (
        (part.images / np.float32(255), part.labels) for part in (digits.train, digits.test)
    )
    keras.utils.set_random_seed(0)
    linear = [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(10)]
    teacher = keras.Sequential(linear)
    teacher.compile(keras.optimizers.Adam(0.02), CE)
    teacher.fit(x, (y + 1) % 10, epochs=10, batch_size=32, verbose=0)
    student = backbones.hub_deit(
        10, SHAPE, patch_size=2, layers=2, heads=2, channels=16, mlp_channels=32
    )
    wrapper = kd.TwoHeadDistiller(teacher, student)
    wrapper.compile(keras.optimizers.Adam(0.005), CE)
    wrapper.fit(x, y, epochs=10, batch_size=32, verbose=0)
    paths = ["head", "distillation_head", "class_token", "distillation_token"]
    found = kd.tap(student, paths)(x_test)["features"]
    label, distilled, *tokens = (array(found[path]) for path in paths)
    assert np.mean(label.argmax(-1) == y_test) > 0.5
    assert np.mean(distilled.argmax(-1) == (y_test + 1) % 10) > 0.5
    unit = [token / np.linalg.norm(token, axis=-1, keepdims=True) for token in tokens]
    assert np.mean((unit[0] * unit[1]).sum(-1)) < 0.9


def test_wrong_backbones():
    with pytest.raises(TypeError, match="DeiTBackbone or ViTBackbone"):
        backbones.hub_distilled(backbones.small_cnn(SHAPE), 5)
    with pytest.raises(ValueError, match="use_class_token=True"):
        backbones.hub_distilled(vit(use_class_token=False), 5)
