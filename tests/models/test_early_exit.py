"""Adaptive early exit: who leaves where, what is computed, the curve, the counter."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.models.early_exit import multiply_adds
from tests.models import nets


def network(activation=None, classes=4, name="net"):
    """Layers "stage1" (8 x 8) and "stage2" (4 x 4) before the head."""
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="stage1")(inputs)
    x = layers.Conv2D(6, 3, 2, padding="same", activation="relu", name="stage2")(x)
    x = layers.Conv2D(8, 3, 2, padding="same", activation="relu", name="stage3")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(classes, activation, name="head")(x), name=name)


def distiller(**options):
    """Two exits and a head whose logits spread, as trained ones do."""
    model = network(**options)
    made = kd.SelfDistiller(model, ["stage1", "stage2"])
    features = [model.get_layer("pool").output]
    for name, bottleneck in zip(made.exits, made.bottlenecks):
        features.append(bottleneck(model.get_layer(name).output))
    values = nets.predict(keras.Model(model.input, features), nets.images(50))
    for head, feature in zip([model.get_layer("head"), *made.classifiers], values):
        logits = feature @ nets.array(head.kernel)
        scale = 2.0 / logits.std(0)
        head.kernel.assign(nets.array(head.kernel) * scale)
        head.bias.assign(-logits.mean(0) * scale)
    return made


def exits_of(made, x):
    return [nets.predict(made.exit(i), x) for i in range(3)]


def softmax(z):
    return nets.softmax(z).astype("float32")


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_each_sample_leaves_at_the_first_exit_that_is_sure(activation):
    made, x = distiller(activation=activation), nets.images(50)
    every = exits_of(made, x)
    sure = np.stack([p if activation else softmax(p) for p in every]).max(-1)
    threshold = float(np.median(sure))
    expected = [next((i for i in (0, 1) if sure[i, n] > threshold), 2) for n in range(len(x))]
    assert set(expected) == {0, 1, 2}
    predictions, exits = made.early_exit(threshold).predict(x, batch_size=8)
    np.testing.assert_array_equal(exits, expected)
    np.testing.assert_allclose(
        predictions, [every[i][n] for n, i in enumerate(expected)], rtol=1e-5, atol=1e-6
    )


def test_at_threshold_one_it_is_the_deepest_and_at_zero_the_shallowest():
    made, x = distiller(activation="softmax"), nets.images(20)
    # Saturated: the confidence is 1 to the last digit.
    made.classifiers[0].kernel.assign(1e4 * made.classifiers[0].kernel)
    early = made.early_exit()
    deepest, exits = early.predict(x, 1.0, batch_size=8)
    np.testing.assert_allclose(
        deepest, made.predict(x, batch_size=8, verbose=0), rtol=1e-6, atol=1e-7
    )
    assert np.all(exits == 2)
    shallow, exits = early.predict(x, 0.0, batch_size=8)
    np.testing.assert_allclose(shallow, exits_of(made, x)[0], rtol=1e-5, atol=1e-6)
    assert np.all(exits == 0)
    assert early.threshold == 0.9


def test_what_leaves_is_not_computed(monkeypatch):
    made, x = distiller(), nets.images(50)
    early = made.early_exit(float(np.median(softmax(exits_of(made, x)[0]).max(-1))))
    rows = [[], [], []]

    def counting(section, counts):
        run = section.predict_on_batch

        def predict_on_batch(inputs):
            counts.append(len(inputs))
            return run(inputs)

        return predict_on_batch

    for section, counts in zip(early.sections, rows):
        monkeypatch.setattr(section, "predict_on_batch", counting(section, counts))
    _, exits = early.predict(x, batch_size=8)
    computed = [sum(counts) for counts in rows]
    assert computed == [50, int(np.sum(exits >= 1)), int(np.sum(exits >= 2))]
    assert computed[1] == 25
    # Those that stay are gathered: all batches but the last are full.
    assert rows[0] == [8] * 6 + [2]
    assert rows[1] == [8] * 3 + [1]


def test_curve_of_accuracy_against_compute():
    made, x, y = distiller(), nets.images(40), nets.class_ids(40)
    early = made.early_exit()
    thresholds = [0.0, 0.4, 0.6, 1.0]
    curve = early.accuracy_compute_curve(x, y, thresholds, batch_size=16)
    for row, threshold in zip(curve, thresholds):
        predictions, exits = early.predict(x, threshold)
        shares = np.bincount(exits, minlength=3) / len(x)
        assert row["threshold"] == threshold
        np.testing.assert_allclose(row["shares"], shares)
        assert row["accuracy"] == pytest.approx(np.mean(predictions.argmax(-1) == y))
        assert row["compute"] == pytest.approx(float(shares @ early.compute))
    computes = [row["compute"] for row in curve]
    assert computes == sorted(computes) and computes[0] < computes[-1]
    one_hot = np.eye(4)[y]
    assert early.accuracy_compute_curve(x, one_hot, [0.6])[0] == curve[2]
    column = early.accuracy_compute_curve(x, y[:, None], [0.6])
    assert column[0] == curve[2]


def test_compute_counts_the_heads_passed():
    made = distiller()
    early = made.early_exit()
    whole = multiply_adds(made.student)
    heads = [
        multiply_adds(bottleneck) + head.kernel.shape[0] * head.kernel.shape[1]
        for bottleneck, head in zip(made.bottlenecks, made.classifiers)
    ]
    stage1 = 64 * 9 * 4
    stage2 = 16 * 9 * 4 * 6
    expected = [stage1 + heads[0], stage1 + stage2 + sum(heads), whole + sum(heads)]
    np.testing.assert_allclose(early.compute, np.array(expected) / whole)


@pytest.mark.parametrize(("activation", "classes"), [("sigmoid", 1), (None, 1), ("sigmoid", 3)])
def test_sigmoid_heads_are_sure_near_zero_and_one(activation, classes):
    made, x = distiller(activation=activation, classes=classes), nets.images(20)
    early = made.early_exit()
    probabilities = exits_of(made, x)[0].astype("float64")
    if activation is None:
        probabilities = nets.sigmoid(probabilities)
    sure = np.maximum(probabilities, 1 - probabilities).min(-1)
    np.testing.assert_allclose(early.confidence(exits_of(made, x)[0]), sure, rtol=1e-5)
    y = np.random.default_rng(0).integers(0, 2, size=(20, classes))
    row = early.accuracy_compute_curve(x, y, [0.0])[0]
    assert row["accuracy"] == pytest.approx(np.mean((probabilities > 0.5) == y))


def test_sections_are_plain_models_that_can_be_saved(tmp_path):
    made, x = distiller(), nets.images(3)
    for i, section in enumerate(made.early_exit().sections[:2]):
        path = tmp_path / f"section{i}.keras"
        section.save(path)
        outputs, loaded = nets.predict(section, x), nets.predict(keras.models.load_model(path), x)
        np.testing.assert_allclose(outputs["prediction"], loaded["prediction"], rtol=1e-6)
        x = outputs["features"]


def test_connections_past_an_exit_cannot_be_cut():
    inputs = keras.Input((8, 8, 1), name="image")
    a = layers.Conv2D(4, 3, padding="same", name="a")(inputs)
    b = layers.Conv2D(4, 3, padding="same", name="b")(a)
    c = layers.Concatenate(name="c")([a, b])  # as in a dense block
    x = layers.GlobalAveragePooling2D(name="pool")(c)
    model = keras.Model(inputs, layers.Dense(4, name="head")(x), name="dense")
    made = kd.SelfDistiller(model, ["a", "b"])  # trains all the same
    assert made.exit(1)(nets.images(2)).shape == (2, 4)
    with pytest.raises(ValueError, match="'b' to be a place at which 'dense' can be cut"):
        made.early_exit()
    assert len(kd.SelfDistiller(model, ["a", "c"]).early_exit().sections) == 3


def test_bad_arguments():
    made, x = distiller(), nets.images(4)
    early = made.early_exit()
    for threshold in (-0.1, "high", float("nan")):
        with pytest.raises(ValueError, match="`threshold` to be"):
            made.early_exit(threshold)
        with pytest.raises(ValueError, match="`threshold` to be"):
            early.predict(x, threshold)
    with pytest.raises(ValueError, match="`batch_size`"):
        early.predict(x, batch_size=0)
    with pytest.raises(ValueError, match="4 samples"):
        early.accuracy_compute_curve(x, nets.class_ids(3), [0.5])
    with pytest.raises(ValueError, match="an empty array"):
        early.predict(x[:0])
    with pytest.raises(TypeError, match="an array of samples"):
        early.predict(iter([x]))


# The counter.


def test_multiply_adds_of_each_kind_of_layer():
    def count(layer, shape):
        inputs = keras.Input(shape)
        return multiply_adds(keras.Model(inputs, layer(inputs)))

    assert count(layers.Dense(5), (3,)) == 15
    assert count(layers.Dense(5), (7, 3)) == 7 * 15
    assert count(layers.Conv2D(5, 3, padding="same"), (8, 8, 2)) == 64 * 9 * 2 * 5
    assert count(layers.Conv2D(6, 3, 2, groups=2), (9, 9, 4)) == 16 * 9 * 2 * 6
    assert count(layers.DepthwiseConv2D(3, 2, padding="same"), (8, 8, 4)) == 16 * 9 * 4
    separable = layers.SeparableConv2D(6, 3, padding="same")
    assert count(separable, (8, 8, 4)) == 64 * (9 * 4 + 4 * 6)
    assert count(layers.Conv1D(5, 3, 2, padding="same"), (8, 2)) == 4 * 3 * 2 * 5
    transposed = layers.Conv2DTranspose(5, 2, 2)
    assert count(transposed, (4, 4, 3)) == 16 * 4 * 3 * 5
    for free in (layers.BatchNormalization(), layers.ReLU(), layers.PReLU()):
        assert count(free, (4, 4, 3)) == 0


def test_multiply_adds_of_nested_and_repeated_layers():
    inner_inputs = keras.Input((6,))
    inner = keras.Model(inner_inputs, layers.Dense(6)(inner_inputs), name="inner")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, inner(inner(inputs)))
    assert multiply_adds(model) == 72


def test_multiply_adds_need_known_sizes():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 3, name="stem")(inputs), name="open")
    with pytest.raises(ValueError, match="fixed input size.*model='open'.*'stem'"):
        multiply_adds(model)
