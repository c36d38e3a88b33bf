"""ONE: a step against numpy, the gate, the whole as one model, what is evaluated and saved."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.models.native_ensemble import GatedMean
from keras_distill.models.native_ensemble import gated_mean
from tests.models import nets
from tests.oracles import finite_differences
from tests.oracles import native_ensemble as oracle

TERMS = {"soft_targets", "branch_1_loss", "branch_2_loss", "branch_3_loss", "ensemble_loss"}


def compiled(wrapper, rate=0.1, loss=None, **kwargs):
    wrapper.compile(nets.sgd(rate), loss or nets.cross_entropy(), jit_compile=False, **kwargs)
    return wrapper


def step(wrapper, x, y, **kwargs):
    return wrapper.train_on_batch(x, y, return_dict=True, **kwargs)


def simple_gate(branches=3):
    return keras.Sequential([layers.Dense(branches, activation="softmax", name="gate_scores")])


def random_case(seed=0, branches=3, count=5, classes=4):
    generator = np.random.default_rng(seed)
    logits = 3.0 * generator.normal(size=(branches, count, classes))
    gate = nets.softmax(generator.normal(size=(count, branches)))
    return logits, gate, generator.integers(0, classes, count)


# Against the equations.


def test_gradients_of_the_oracle():
    logits, gate, labels = random_case()
    target = oracle.ensemble(logits, gate)
    by_logits, by_gate = oracle.gradients(logits, gate, labels, 3.0, 0.7)
    expected = finite_differences.gradient(
        lambda z: oracle.loss(z, gate, labels, 3.0, 0.7, target), logits
    )
    np.testing.assert_allclose(by_logits, expected, rtol=1e-6, atol=1e-9)
    expected = finite_differences.gradient(
        lambda g: oracle.loss(logits, g, labels, 3.0, 0.7, target), gate
    )
    np.testing.assert_allclose(by_gate, expected, rtol=1e-6, atol=1e-9)


def test_gated_mean_of_logits_tokens_and_probabilities():
    logits, gate, _ = random_case()
    mean = oracle.ensemble(logits, gate)
    tensors = [z.astype("float32") for z in logits]
    weights = gate.astype("float32")
    np.testing.assert_allclose(nets.array(gated_mean(weights, tensors)), mean, rtol=1e-5)
    tokens = [np.stack([z, 2 * z], axis=1) for z in tensors]
    expected = np.stack([mean, 2 * mean], axis=1)
    np.testing.assert_allclose(nets.array(gated_mean(weights, tokens)), expected, rtol=1e-5)
    halves = [z.astype("float16") for z in tensors]
    assert keras.backend.standardize_dtype(gated_mean(weights, halves).dtype) == "float32"
    soft = GatedMean("softmax")([weights, *[nets.softmax(z) for z in logits]])
    np.testing.assert_allclose(nets.array(soft), nets.softmax(mean), rtol=1e-4, atol=1e-6)
    sigmoid = GatedMean("sigmoid")([weights, *[nets.sigmoid(z) for z in logits]])
    np.testing.assert_allclose(nets.array(sigmoid), nets.sigmoid(mean), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_step_is_that_of_the_equations(activation):
    """Logs, and by the heads' and the gate's kernels the gradients by logits and gate."""
    # Keras clips the probabilities of its cross-entropy: none may come near 0.
    model, rate = nets.mlp(activation), 0.1
    if activation is None:
        model, rate = nets.sharpen(model), 1.0
    ramp = kd.schedules.SigmoidRamp(1.5, steps=4)
    wrapper = kd.NativeEnsemble(model, "hidden", weight=ramp, gate=simple_gate())
    loss = nets.cross_entropy() if activation is None else None
    compiled(wrapper, rate, loss or keras.losses.SparseCategoricalCrossentropy())
    for t in range(3):
        x, labels = nets.vectors(5, seed=t), nets.class_ids(5, t)
        hidden = nets.predict(keras.Model(model.input, model.get_layer("hidden").output), x)
        networks = [model, *wrapper.other_branches]
        heads = [network.get_layer("head") for network in networks]
        gate = wrapper.gate.layers[-1]
        before = [[nets.array(v) for v in layer.weights] for layer in [*heads, gate]]
        logits = np.stack([hidden @ kernel + bias for kernel, bias in before[:-1]])
        weights = nets.softmax(hidden @ before[-1][0] + before[-1][1])
        weight = 1.5 * oracle.ramp(t, 4)
        logs = step(wrapper, x, labels)
        mean = oracle.ensemble(logits, weights)
        for i in range(3):
            np.testing.assert_allclose(
                logs[f"branch_{i + 1}_loss"], oracle.cross_entropy(logits[i], labels), rtol=1e-4
            )
        np.testing.assert_allclose(
            logs["ensemble_loss"], oracle.cross_entropy(mean, labels), rtol=1e-4
        )
        np.testing.assert_allclose(
            logs["soft_targets"], oracle.distillation(logits, mean, 3.0), rtol=1e-4
        )
        np.testing.assert_allclose(
            logs["loss"], oracle.loss(logits, weights, labels, 3.0, weight), rtol=1e-4
        )
        by_logits, by_gate = oracle.gradients(logits, weights, labels, 3.0, weight)
        # Through the gate's softmax.
        by_scores = weights * (by_gate - np.sum(weights * by_gate, axis=-1, keepdims=True))
        for layer, old, slope in zip([*heads, gate], before, [*by_logits, by_scores]):
            kernel, bias = (nets.array(v) for v in layer.weights)
            np.testing.assert_allclose(
                kernel, old[0] - rate * hidden.T @ slope, rtol=1e-3, atol=1e-5
            )
            np.testing.assert_allclose(
                bias, old[1] - rate * slope.sum(axis=0), rtol=1e-3, atol=1e-5
            )


def test_the_default_gate():
    """Average pooling, dense, batch normalization, ReLU, softmax, in float32."""
    wrapper = kd.NativeEnsemble(nets.cnn(), "stage1")
    maps = np.random.default_rng(0).normal(size=(6, 8, 8, 4)).astype("float32")
    scores = wrapper.gate.get_layer("scores")
    kernel, bias = (nets.array(v) for v in scores.weights)
    z = maps.mean(axis=(1, 2)) @ kernel + bias
    z = np.maximum((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5), 0.0)
    given = nets.predict(wrapper.gate, maps, training=True)
    np.testing.assert_allclose(given, nets.softmax(z), rtol=1e-3, atol=1e-5)
    half = wrapper.gate(maps.astype("float16"))
    assert keras.backend.standardize_dtype(half.dtype) == "float32"


def test_the_target_is_a_constant():
    """However heavy the distillation, the gate moves by the label loss alone."""
    x, y = nets.vectors(8), nets.class_ids(8)
    moved = []
    for weight in (0.0, 100.0):
        keras.utils.set_random_seed(3)
        wrapper = kd.NativeEnsemble(nets.sharpen(nets.mlp()), "hidden", weight=weight)
        compiled(wrapper, 0.01)
        step(wrapper, x, y)
        moved.append([nets.array(v) for v in [*wrapper.gate.weights, *wrapper.student.weights]])
    for a, b in zip(moved[0][:6], moved[1][:6]):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert np.abs(moved[0][-2] - moved[1][-2]).max() > 1e-3


# The branches.


@pytest.mark.slow
def test_branch_1_is_the_model_and_the_others_are_fresh():
    model = kd.backbones.resnet(8, 5, (16, 16, 3), width=4)
    x = np.random.default_rng(0).normal(size=(6, 16, 16, 3)).astype("float32")
    before = nets.predict(model, x)
    wrapper = kd.NativeEnsemble(model, "stage2", branches=4)
    assert wrapper.inference_model is model
    np.testing.assert_array_equal(nets.predict(model, x), before)
    np.testing.assert_array_equal(nets.predict(wrapper, x), before)
    assert [branch.name for branch in wrapper.other_branches] == [
        "branch_2",
        "branch_3",
        "branch_4",
    ]
    kernels = [
        nets.array(network.get_layer("head").kernel) for network in [model, *wrapper.other_branches]
    ]
    for i in range(4):
        for j in range(i):
            assert np.abs(kernels[i] - kernels[j]).max() > 1e-2
    labels = nets.class_ids(6)
    logs = step(compiled(wrapper, metrics=["accuracy"]), x, labels)
    own = {"loss", "label_loss", "accuracy", "ensemble_accuracy", "branch_4_loss"}
    assert set(logs) == {*own, *TERMS}
    parts = [logs[f"branch_{i}_loss"] for i in (1, 2, 3, 4)] + [logs["ensemble_loss"]]
    np.testing.assert_allclose(logs["label_loss"], sum(parts), rtol=1e-5)
    # The seven weights of "stem" and "stage1" are trained once, by all branches.
    own = sum(len(branch.trainable_variables) for branch in wrapper.other_branches)
    total = len(model.trainable_variables) + own + len(wrapper.gate.trainable_variables)
    assert len(wrapper.trainable_variables) == total


@pytest.mark.slow
def test_a_backbone_of_keras_cv():
    pytest.importorskip("keras_cv")
    model = kd.backbones.cv_resnet(
        4, (32, 32, 3), filters=(8, 16), blocks=(1, 2), strides=(1, 2), block_type="block"
    )
    path = next(iter(kd.backbones.stages(model).values()))
    wrapper = compiled(kd.NativeEnsemble(model, path, branches=2), metrics=["accuracy"])
    x = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
    y = nets.class_ids(8)
    history = wrapper.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0).history
    assert history["branch_2_loss"][-1] < history["branch_2_loss"][0]
    whole = wrapper.gated_ensemble()
    logits = [nets.predict(model, x), nets.predict(keras.Model(whole.input, branch_of(whole)), x)]
    np.testing.assert_allclose(logits[0], nets.predict(wrapper, x), rtol=1e-5, atol=1e-6)
    assert np.abs(logits[0] - logits[1]).max() > 1e-2


def branch_of(whole):
    """The output of "branch_2" inside a gated ensemble."""
    return whole.get_layer("gated_mean").input[2]


# The whole as one model.


@pytest.mark.slow
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_gated_ensemble_is_the_mean_under_the_gate(activation, tmp_path):
    model = nets.sharpen(nets.mlp(activation))
    wrapper = kd.NativeEnsemble(model, "hidden")
    loss = nets.cross_entropy() if activation is None else None
    compiled(wrapper, 0.1, loss or keras.losses.SparseCategoricalCrossentropy())
    x, y = nets.vectors(16), nets.class_ids(16)
    wrapper.fit(x, y, epochs=2, verbose=0)
    whole = wrapper.gated_ensemble()
    assert {id(v) for v in whole.variables} <= {id(v) for v in wrapper.variables}
    hidden = nets.predict(keras.Model(model.input, model.get_layer("hidden").output), x)
    heads = [network.get_layer("head") for network in [model, *wrapper.other_branches]]
    logits = np.stack([hidden @ nets.array(h.kernel) + nets.array(h.bias) for h in heads])
    expected = oracle.ensemble(logits, nets.predict(wrapper.gate, hidden))
    if activation == "softmax":
        expected = nets.softmax(expected)
    np.testing.assert_allclose(nets.predict(whole, x), expected, rtol=1e-4, atol=1e-5)
    whole.save(tmp_path / "whole.keras")
    loaded = keras.saving.load_model(tmp_path / "whole.keras")
    np.testing.assert_allclose(nets.predict(loaded, x), expected, rtol=1e-4, atol=1e-5)


def test_several_outputs_and_sample_weights():
    x, weights = nets.vectors(6), np.linspace(0.5, 2.0, 6).astype("float32")
    model = nets.two_heads("dict")
    wrapper = compiled(kd.NativeEnsemble(model, "hidden", branches=2), rate=0.0)
    labels = {"zebra": nets.class_ids(6), "apple": nets.class_ids(6) % 3}
    hidden = nets.predict(keras.Model(model.input, model.get_layer("hidden").output), x)
    predictions = [nets.predict(model, x), nets.predict(wrapper.other_branches[0], hidden)]
    # The gate's batch statistics are those of training.
    gate = nets.predict(wrapper.gate, hidden, training=True)
    logs = step(wrapper, x, labels, sample_weight=weights)
    soft = label = 0.0
    for name in ("zebra", "apple"):
        logits = np.stack([prediction[name] for prediction in predictions])
        mean = oracle.ensemble(logits, gate)
        soft += sum(np.mean(weights * nets.kd(mean, z, 3.0)) for z in logits)
        label += sum(np.mean(weights * nets.ce(labels[name], z)) for z in [*logits, mean])
    np.testing.assert_allclose(logs["soft_targets"], soft, rtol=1e-3)
    np.testing.assert_allclose(logs["label_loss"], label, rtol=1e-4)
    whole = wrapper.gated_ensemble()
    assert set(whole.output) == {"zebra", "apple"}
    assert {name: value.shape for name, value in nets.predict(whole, x).items()} == {
        "zebra": (6, 4),
        "apple": (6, 3),
    }


def test_masked_tokens_and_unlabelled_samples():
    ids = nets.token_ids()
    mask = ids != 0
    wrapper = compiled(kd.NativeEnsemble(nets.tagger(), "embedding", branches=2), rate=0.0)
    y = np.where(mask, nets.class_ids(ids.shape), 0)
    logs = step(wrapper, ids, y)
    own = nets.ce(y, nets.predict(wrapper.student, ids))[mask].mean()
    np.testing.assert_allclose(logs["branch_1_loss"], own, rtol=1e-5)
    other = wrapper.other_branches[0].get_layer("head")
    embedded = nets.predict(wrapper.student.get_layer("embedding"), ids)
    logits = embedded @ nets.array(other.kernel) + nets.array(other.bias)
    np.testing.assert_allclose(logs["branch_2_loss"], nets.ce(y, logits)[mask].mean(), rtol=1e-5)
    x, y = nets.vectors(6), nets.class_ids(6)
    wrapper = compiled(kd.NativeEnsemble(nets.mlp(), "hidden", branches=2), rate=0.0)
    all_labelled = step(wrapper, x, y)
    y[:2] = -1
    logs = step(wrapper, x, y)
    own = nets.ce(y[2:], nets.predict(wrapper.student, x)[2:]).sum() / 6
    np.testing.assert_allclose(logs["branch_1_loss"], own, rtol=1e-5)
    np.testing.assert_allclose(logs["soft_targets"], all_labelled["soft_targets"], rtol=1e-5)


def test_metrics_are_those_of_branch_1_and_of_the_ensemble():
    x, y = nets.vectors(24), nets.class_ids(24)
    y[:4] = -1
    wrapper = kd.NativeEnsemble(nets.sharpen(nets.mlp("softmax")), "hidden", branches=2)
    compiled(wrapper, 0.0, keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    outputs = wrapper.forward(x, training=True)
    first, _, ensemble = (nets.array(p).argmax(-1)[4:] for p in outputs.terms.predictions)
    history = wrapper.fit(
        x, y, batch_size=24, epochs=2, validation_data=(x, np.maximum(y, 0)), verbose=0
    ).history
    for epoch in range(2):
        np.testing.assert_allclose(history["accuracy"][epoch], np.mean(first == y[4:]), rtol=1e-6)
        right = np.mean(ensemble == y[4:])
        np.testing.assert_allclose(history["ensemble_accuracy"][epoch], right, rtol=1e-6)
    assert {name for name in history if name.startswith("val_")} == {"val_loss", "val_accuracy"}


# Evaluation, files, errors.


@pytest.mark.slow
def test_evaluation_is_that_of_the_model_without_the_branches():
    x, y = nets.images(12), nets.class_ids(12)
    model = nets.cnn(regularized=True)
    wrapper = compiled(kd.NativeEnsemble(model, "stage1"), metrics=["accuracy"])
    history = wrapper.fit(x, y, validation_data=(x, y), verbose=0).history
    alone = nets.copy_of(model)
    alone.compile(loss=nets.cross_entropy(), metrics=["accuracy"])
    expected = alone.evaluate(x, y, verbose=0, return_dict=True)
    assert {name for name in history if name.startswith("val_")} == {"val_loss", "val_accuracy"}
    for name, value in wrapper.evaluate(x, y, verbose=0, return_dict=True).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5)
    compiled(wrapper, evaluate_terms=True)
    assert set(wrapper.evaluate(x, y, verbose=0, return_dict=True)) == {
        "loss",
        "label_loss",
        *TERMS,
    }


def test_a_file_holds_gate_and_branches(tmp_path):
    ramp = kd.schedules.SigmoidRamp(2.0, steps=3)
    wrapper = kd.NativeEnsemble(nets.mlp(), "hidden", 2, 2.0, ramp, gate=simple_gate(2))
    compiled(wrapper)
    step(wrapper, nets.vectors(8), nets.class_ids(8))
    wrapper.save(tmp_path / "one.keras")
    loaded = keras.saving.load_model(tmp_path / "one.keras")
    assert (loaded.branches, loaded.temperature, loaded.branch_at) == (2, 2.0, "hidden")
    assert loaded.weight.get_config() == ramp.get_config()
    whole, other = wrapper.gated_ensemble(), loaded.gated_ensemble()
    np.testing.assert_allclose(
        nets.predict(whole, nets.vectors(4)), nets.predict(other, nets.vectors(4)), rtol=1e-5
    )


def test_half_precision_compares_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    wrapper = compiled(kd.NativeEnsemble(nets.cnn(), "stage1"))
    logs = step(wrapper, nets.images(8), nets.class_ids(8))
    assert all(np.isfinite(value) for value in logs.values())
    assert {v.dtype for v in wrapper.gate.trainable_variables} == {"float32"}
    outputs = wrapper.forward(nets.images(8), training=False)
    assert all(
        keras.backend.standardize_dtype(z.dtype) == "float32" for z in outputs.terms.ensemble
    )


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: kd.NativeEnsemble("net", "hidden"), TypeError, "`model` to be a keras.Model"),
        (lambda: kd.NativeEnsemble(nets.mlp(), 2), TypeError, "`branch_at` to be the path"),
        (lambda: kd.NativeEnsemble(nets.mlp(), "hiden"), ValueError, "`branch_at` to name a layer"),
        (lambda: kd.NativeEnsemble(nets.mlp(), "head"), ValueError, "layers with weights after it"),
        (lambda: kd.NativeEnsemble(nets.mlp(), "hidden", 1), ValueError, "`branches` to be at lea"),
        (lambda: kd.NativeEnsemble(nets.mlp(), "hidden", temperature=0), ValueError, "`temperatur"),
        (lambda: kd.NativeEnsemble(nets.mlp(), "hidden", weight=-1), ValueError, "`weight`"),
        (
            lambda: kd.NativeEnsemble(nets.mlp(), "hidden", gate=simple_gate(2)),
            ValueError,
            r"weights of shape \(batch, 3\).*Received: a gate whose output has the shape \(None, 2",
        ),
        (lambda: kd.NativeEnsemble(nets.mlp(), "hidden", gate="se"), TypeError, "`gate` to be"),
        (lambda: kd.NativeEnsemble(nets.Subclassed(), "hidden"), ValueError, "a graph of layers"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.slow
def test_training_asks_for_a_label_loss():
    wrapper = kd.NativeEnsemble(nets.mlp(), "hidden")
    wrapper.compile("sgd", loss=None)
    with pytest.raises(ValueError, match="Expected a label loss.*Received: loss=None"):
        wrapper.fit(nets.vectors(8), nets.class_ids(8), verbose=0)
