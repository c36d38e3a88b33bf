"""Networks that learn no features: frozen maps, and the Taylor expansion in the weights."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_distill as kd
from keras_distill import backbones
from keras_distill.heads import head_of

SHAPE, CLASSES = (4, 4, 1), 3
IMAGES = np.random.default_rng(0).normal(size=(6, *SHAPE)).astype("float32")
LABELS = np.arange(6) % CLASSES
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def array(x):
    return ops.convert_to_numpy(x)


def network(dtype="float32", seed=0):
    """Convolution, frozen layer, moving statistics, pooling, dropout: each a trap of its own."""
    keras.utils.set_random_seed(seed)
    make = keras.layers
    inputs = keras.Input(SHAPE, dtype=dtype.replace("mixed_float16", "float32"), name="image")
    x = make.Conv2D(2, 3, padding="same", dtype=dtype, name="conv")(inputs)
    x = make.BatchNormalization(dtype=dtype, name="norm")(x)
    x = make.Activation("softplus", dtype=dtype)(x)
    x = make.Conv2D(2, 1, trainable=False, dtype=dtype, name="frozen")(x)
    x = make.MaxPooling2D(2, dtype=dtype)(x)
    x = make.Flatten(dtype=dtype)(x)
    x = make.Dropout(0.5, dtype=dtype)(x)
    model = keras.Model(inputs, make.Dense(CLASSES, dtype=dtype, name="head")(x), name="net")
    generator = np.random.default_rng(seed)
    model.get_layer("norm").moving_mean.assign(generator.normal(size=2))
    model.get_layer("norm").moving_variance.assign(generator.uniform(0.5, 2.0, 2))
    return model


def displaced(expansion, seed=1):
    """Gives a linearised network displacements that are not 0; returns them."""
    generator = np.random.default_rng(seed)
    values = [generator.normal(size=w.shape) for w in expansion.trainable_weights]
    for weight, value in zip(expansion.trainable_weights, values):
        weight.assign(value)
    return values


def directional_difference(model, directions, step=1e-4):
    """`(f(w0 + h d) - f(w0 - h d)) / 2h` of a float64 network, which is put back."""
    start = [array(weight) for weight in model.trainable_weights]
    found = []
    for sign in (1.0, -1.0):
        for weight, value, direction in zip(model.trainable_weights, start, directions):
            weight.assign(value + sign * step * direction)
        found.append(array(model(IMAGES.astype("float64"), training=False)))
    for weight, value in zip(model.trainable_weights, start):
        weight.assign(value)
    return (found[0] - found[1]) / (2 * step)


@pytest.fixture
def in_float64():
    if keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless told before it starts")


@pytest.mark.parametrize("subtract_initial", [False, True])
def test_expansion_is_value_and_difference_quotient_in_float64(subtract_initial, in_float64):
    model = network("float64")
    expansion = backbones.linearized(model, subtract_initial)
    images = IMAGES.astype("float64")
    start = 0.0 if subtract_initial else array(model(images, training=False))
    assert np.array_equal(array(expansion(images)), np.broadcast_to(start, (6, CLASSES)))
    change = directional_difference(model, displaced(expansion))
    assert np.abs(change).max() > 1.0
    np.testing.assert_allclose(array(expansion(images)), start + change, rtol=1e-7, atol=1e-7)
    # Training takes no other path: no dropout, no statistics of the batch.
    assert np.array_equal(array(expansion(images, training=True)), array(expansion(images)))


@pytest.mark.tensorflow
def test_gradient_by_the_displacements_is_the_network_s_jacobian():
    """Everywhere: of a function that is linear in them, the gradient does not depend on them."""
    import tensorflow as tf

    model = network()
    expansion = backbones.linearized(model)
    displaced(expansion)
    upstream = np.random.default_rng(2).normal(size=(6, CLASSES)).astype("float32")
    with tf.GradientTape(persistent=True) as tape:
        expected = tf.reduce_sum(upstream * model(IMAGES, training=False))
        found = tf.reduce_sum(upstream * expansion(IMAGES, training=True))
    expected = tape.gradient(expected, [w.value for w in model.trainable_weights])
    found = tape.gradient(found, [w.value for w in expansion.trainable_weights])
    assert len(expected) == len(found) == 6
    for one, other in zip(expected, found):
        assert np.abs(one).max() > 1e-3
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_only_displacements_are_trained_and_the_network_is_left_alone():
    model = network()
    weights = [array(weight) for weight in model.weights]
    expansion = backbones.linearized(model)
    assert [w.shape for w in expansion.trainable_weights] == [
        w.shape for w in model.trainable_weights
    ]
    assert all(weight.path.endswith("displacement") for weight in expansion.trainable_weights)
    assert expansion.name == "net_linearized" and head_of(expansion) == "linear"
    expansion.compile(keras.optimizers.SGD(0.05), CE)
    history = expansion.fit(IMAGES, LABELS, batch_size=6, epochs=3, verbose=0).history["loss"]
    assert all(after < before for before, after in zip(history, history[1:]))
    for weight, before in zip(model.weights, weights):
        assert np.array_equal(array(weight), before)
    assert model.trainable_weights
    frozen = [array(weight) for weight in expansion.non_trainable_weights]
    assert all(any(np.array_equal(f, before) for f in frozen) for before in weights)
    expansion.trainable = False
    assert expansion.trainable_weights == []


@pytest.mark.slow
def test_training_is_gradient_descent_on_a_linear_model():
    """One SGD step moves the outputs by the tangent kernel times the residuals, exactly."""
    model = network()
    expansion = backbones.linearized(model, subtract_initial=True)
    expansion.compile(keras.optimizers.SGD(0.01), keras.losses.MeanSquaredError())
    targets = np.eye(CLASSES, dtype="float32")[LABELS]
    jacobian = []
    for weight in expansion.trainable_weights:
        for place in np.ndindex(*weight.shape):
            unit = np.zeros(weight.shape, "float32")
            unit[place] = 1.0
            weight.assign(unit)
            jacobian.append(array(expansion(IMAGES)).ravel())
        weight.assign(np.zeros(weight.shape, "float32"))
    jacobian = np.array(jacobian, "float64")
    expansion.fit(IMAGES, targets, batch_size=6, epochs=1, verbose=0)
    moved = 0.01 * (2.0 / targets.size) * jacobian.T @ (jacobian @ targets.ravel())
    np.testing.assert_allclose(array(expansion(IMAGES)).ravel(), moved, rtol=1e-4, atol=1e-6)


def test_linearized_saves_and_loads(tmp_path):
    expansion = backbones.linearized(network(), subtract_initial=True)
    displaced(expansion)
    expansion.save(tmp_path / "expansion.keras")
    keras.utils.set_random_seed(9)
    loaded = keras.models.load_model(tmp_path / "expansion.keras")
    assert np.array_equal(array(loaded(IMAGES)), array(expansion(IMAGES)))
    assert len(loaded.trainable_weights) == len(expansion.trainable_weights)
    clone = keras.models.clone_model(expansion)
    clone.set_weights(expansion.get_weights())
    assert np.array_equal(array(clone(IMAGES)), array(expansion(IMAGES)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linearized", "random_features"])
def test_networks_teach_learn_and_average(kind):
    def build(seed):
        if kind == "random_features":
            return backbones.random_features(SHAPE, CLASSES, (2,), 3, seed=seed)
        return backbones.linearized(network(seed=seed), subtract_initial=True)

    members = [build(seed) for seed in (1, 2)]
    for place, member in enumerate(members):
        member.name = f"member{place}"
        if kind == "linearized":
            displaced(member, seed=place)
    teacher = kd.EnsembleTeacher(members, average="logits")
    mean = np.mean([array(member(IMAGES)) for member in members], axis=0)
    np.testing.assert_allclose(array(teacher(IMAGES)), mean, rtol=1e-5, atol=1e-6)
    distiller = kd.Distiller(teacher, build(3), kd.losses.SoftTargets(2.0), student_loss_weight=0)
    distiller.compile(keras.optimizers.SGD(0.02), CE)
    before = [array(weight) for weight in distiller.student.non_trainable_weights]
    history = distiller.fit(IMAGES, LABELS, batch_size=6, epochs=4, verbose=0).history
    assert history["soft_targets"][-1] < history["soft_targets"][0]
    for weight, value in zip(distiller.student.non_trainable_weights, before):
        assert np.array_equal(array(weight), value)


def test_mixed_precision():
    exact, mixed = (
        backbones.linearized(network(dtype), subtract_initial=True)
        for dtype in ("float32", "mixed_float16")
    )
    values = displaced(exact)
    for weight, value in zip(mixed.trainable_weights, values):
        assert weight.dtype == "float32"
        weight.assign(value)
    for kept, weight in zip(exact.non_trainable_weights, mixed.non_trainable_weights):
        weight.assign(kept)
    found = array(mixed(IMAGES))
    assert found.dtype == "float16"
    np.testing.assert_allclose(found, array(exact(IMAGES)), rtol=0.02, atol=0.05)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda m: "net", TypeError, "keras.Model"),
        (lambda m: keras.Model(m.inputs, [m.output, m.output]), ValueError, "one output"),
        (
            lambda m: keras.Model(m.inputs, keras.layers.Softmax()(m.output)),
            ValueError,
            "return logits",
        ),
        (lambda m: setattr(m, "trainable", False) or m, ValueError, "weights to train"),
        (lambda m: keras.Sequential([keras.layers.Dense(2)]), ValueError, "built Sequential"),
    ],
)
def test_what_cannot_be_expanded(change, error, said):
    with pytest.raises(error, match=said):
        backbones.linearized(change(network()))


def test_random_map_is_frozen_seeded_and_of_norm_one(tmp_path):
    model = backbones.random_features((8, 8, 1), CLASSES, (3, 4), 3, seed=5)
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype("float32")
    assert [w.path for w in model.trainable_weights] == ["head/kernel", "head/bias"]
    assert head_of(model) == "linear" and model.name == "random_features_3_4"
    features = array(kd.tap(model, ["features"])(images)["features"]["features"])
    assert features.shape == (5, 2 * 2 * 4)
    np.testing.assert_allclose(features.mean(axis=-1), 0.0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1.0, atol=2e-2)
    logits = array(model(images))
    keras.utils.set_random_seed(99)
    again = backbones.random_features((8, 8, 1), CLASSES, (3, 4), 3, seed=5)
    other = backbones.random_features((8, 8, 1), CLASSES, (3, 4), 3, seed=6)
    assert np.array_equal(array(again(images)), logits)
    assert np.abs(array(other(images)) - logits).max() > 1e-2
    filters = [array(w) for w in model.get_layer("random1").weights]
    model.compile(keras.optimizers.SGD(1.0), CE)
    model.fit(images, LABELS[:5], batch_size=5, epochs=2, verbose=0)
    assert np.array_equal(array(model.get_layer("random1").weights[0]), filters[0])
    assert np.abs(array(model(images)) - logits).max() > 1e-3
    model.save(tmp_path / "map.keras")
    loaded = keras.models.load_model(tmp_path / "map.keras")
    assert np.array_equal(array(loaded(images)), array(model(images)))
    assert [w.path for w in loaded.trainable_weights] == ["head/kernel", "head/bias"]


def test_layers_of_one_random_map_differ():
    model = backbones.random_features((8, 8, 3), CLASSES, (3, 3), 3, seed=0)
    one, two = (array(model.get_layer(f"random{i}").kernel) for i in (1, 2))
    assert not np.array_equal(one, two)
    assert abs(one.std() - np.sqrt(2 / 27)) < 0.1  # He's: 3 x 3 places of 3 channels


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_shape": (3, 8, 1)},
        {"input_shape": (None, 8, 1)},
        {"channels": (0, 2)},
        {"classes": 0},
        {"kernel_size": 0},
    ],
)
def test_wrong_random_features(wrong):
    with pytest.raises(ValueError, match="Expected"):
        backbones.random_features(**{"input_shape": (8, 8, 1), **wrong})
