"""DLB: the loss, the cache and its stream."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests.contract import network
from tests.contract import samples
from tests.models import nets
from tests.oracles import dlb as oracle

RATE = 0.5


def linear(seed=3):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((nets.FEATURES,))
    return keras.Model(inputs, keras.layers.Dense(nets.CLASSES, name="head")(inputs))


def compiled(student=None, rate=RATE, **options):
    model = kd.DLBModel(student or linear(), **options)
    model.compile(nets.sgd(rate), nets.cross_entropy(), metrics=["accuracy"])
    return model


class Steps(keras.callbacks.Callback):
    """The loss, the term and the cache of each step."""

    def __init__(self):
        super().__init__()
        self.sums = {"label_loss": [0.0], "last_batch_loss": [0.0]}
        self.values = {"label_loss": [], "last_batch_loss": []}
        self.caches = []

    def on_epoch_begin(self, epoch, logs=None):
        self.count = 0
        self.sums = dict.fromkeys(self.sums, 0.0)

    def on_train_batch_end(self, batch, logs=None):
        self.count += 1
        for name, values in self.values.items():
            total = float(logs[name]) * self.count  # Logs are means over the epoch so far.
            values.append(total - self.sums[name])
            self.sums[name] = total
        if keras.backend.backend() == "tensorflow":
            self.caches.append(nets.array(self.model._cache.logits[0]))


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("carry", [True, False])
def test_six_steps_over_two_epochs_are_the_oracle(carry, fused):
    x, y = nets.vectors(13), nets.class_ids(13)
    data = kd.data.overlap_batches((x, y), 4, carry=carry, seed=5, epochs=2, ids=True)
    orders = [np.concatenate(list(ids)) for ids in np.split(ids_of(data), 2)]
    model = compiled(fused_forward=fused, weight=2.0)
    kernel, bias = (nets.array(v) for v in model.student.weights)
    steps = Steps()
    model.fit(data, epochs=2, steps_per_epoch=3, shuffle=False, verbose=0, callbacks=[steps])
    batches = oracle.compositions(orders, 4, carry)
    expected = oracle.train(x, y, kernel, bias, batches, RATE, weight=2.0)
    nets_weights = [nets.array(v) for v in model.student.weights]
    np.testing.assert_allclose(nets_weights[0], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(nets_weights[1], expected[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(steps.values["label_loss"], expected[2], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(steps.values["last_batch_loss"], expected[3], rtol=1e-3, atol=1e-5)
    assert max(expected[3]) > 0.01
    for cached, logits in zip(steps.caches, expected[4]):
        np.testing.assert_allclose(cached, logits, rtol=1e-4, atol=1e-5)


def ids_of(data):
    return np.array([y[1]["ids"] for _, y, _ in data.as_numpy_iterator()])


@pytest.mark.slow
def test_fit_on_arrays_is_fit_on_their_overlap():
    x, y = nets.vectors(13), nets.class_ids(13)
    ours = compiled()
    ours.fit(x, y, batch_size=8, epochs=2, seed=5, verbose=0)
    data = kd.data.overlap_batches((x, y), 4, seed=5, epochs=2)
    other = compiled()
    other.fit(data, epochs=2, steps_per_epoch=3, shuffle=False, verbose=0)
    nets.assert_same_weights(ours.student, other.student, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("carry", [True, False])
def test_a_resumed_fit_equals_an_undisturbed_one_without_carry(carry):
    x, y = nets.vectors(13), nets.class_ids(13)
    arguments = {"batch_size": 8, "seed": 5, "carry": carry, "verbose": 0}
    whole, parts = compiled(), compiled()
    whole.fit(x, y, epochs=3, **arguments)
    parts.fit(x, y, epochs=2, **arguments)
    parts.fit(x, y, epochs=3, initial_epoch=2, **arguments)
    differs = nets.difference(whole.student, parts.student)
    assert differs > 1e-4 if carry else differs < 1e-6


def test_without_learning_and_augmentation_the_term_is_0():
    x, y = nets.vectors(16), nets.class_ids(16)
    history = compiled(rate=0.0).fit(x, y, batch_size=8, epochs=2, verbose=0).history
    np.testing.assert_allclose(history["last_batch_loss"], 0.0, atol=1e-6)


def test_the_first_half_of_a_fit_is_left_out_whatever_its_weights():
    x, y = nets.vectors(8), nets.class_ids(8)
    model = compiled(weight=100.0)
    element = (x[:4], x[4:]), (y[:4], y[4:]), (np.ones(4, "float32"), np.ones(4, "float32"))
    expected = nets.ce(y[4:], nets.predict(model.student, x[4:])).mean()
    logs = model.train_on_batch(*element, return_dict=True)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    assert model.train_on_batch(*element, return_dict=True)["last_batch_loss"] > 0


def test_a_weight_of_0_counts_and_a_half_of_them_does_not():
    x, y = nets.vectors(8), nets.class_ids(8)
    for weights in ([0.0, 1.0, 2.0, 1.0], [0.0] * 4):
        model = compiled(rate=0.0)
        w = np.array(weights, "float32"), np.ones(4, "float32")
        plain = (np.ones(4, "float32"),) * 2
        model.train_on_batch((x[:4], x[:4] + 1), (y[:4], y[:4]), plain)
        halves = x[:4], x[4:]
        logs = model.train_on_batch(halves, (y[:4], y[4:]), w, return_dict=True)
        logits = [nets.predict(model.student, half) for half in (x[:4] + 1, *halves)]
        losses = [nets.ce(y[:4], logits[1]) * w[0], nets.ce(y[4:], logits[2])]
        kl = nets.kd(logits[0], logits[1], 3.0) * w[0]
        expected = np.concatenate(losses).mean() if any(weights) else losses[1].mean()
        np.testing.assert_allclose(logs["label_loss"], expected, rtol=1e-5)
        np.testing.assert_allclose(logs["last_batch_loss"], kl.mean(), rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_validation_and_evaluate_leave_the_cache_alone():
    x, y = nets.vectors(16), nets.class_ids(16)
    arguments = {"batch_size": 8, "epochs": 3, "seed": 1, "verbose": 0}
    plain, validated = compiled(), compiled()
    plain.fit(x, y, **arguments)
    validated.fit(x, y, validation_data=(x + 1, y), **arguments)
    before = [nets.array(v) for v in validated.variables]
    validated.evaluate(x, y, verbose=0)
    validated.predict(x, verbose=0)
    for mine, theirs, old in zip(plain.variables, validated.variables, before, strict=True):
        np.testing.assert_array_equal(nets.array(theirs), old)
        np.testing.assert_allclose(nets.array(mine), old, rtol=1e-6)


def test_no_file_holds_the_cache(tmp_path):
    x, y = nets.vectors(16), nets.class_ids(16)
    model = compiled()
    model.save_weights(tmp_path / "before.weights.h5")
    model.fit(x, y, batch_size=8, verbose=0)
    model.save_weights(tmp_path / "after.weights.h5")
    fresh = compiled()
    fresh.load_weights(tmp_path / "after.weights.h5")
    nets.assert_same_weights(model, fresh)
    sizes = [(tmp_path / f"{name}.weights.h5").stat().st_size for name in ("before", "after")]
    assert sizes[0] == sizes[1]


@pytest.mark.slow
@pytest.mark.tensorflow
def test_two_replicas_with_batch_norm_free_net_and_carry(two_replicas):
    import tensorflow as tf

    x, y = samples(40)

    def train(strategy):
        with strategy.scope():
            keras.utils.set_random_seed(1)
            model = compiled(network("student", batch_norm=False), rate=0.1)
        model.fit(x, y, batch_size=8, epochs=2, seed=3, verbose=0)
        return model.student

    one, both = train(tf.distribute.get_strategy()), train(two_replicas)
    nets.assert_same_weights(one, both, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_mixing_class_weights_and_validation_split_on_arrays():
    x, y = samples(32)
    model = kd.DLBModel(network("student"))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    arguments = {"validation_split": 0.25, "mix": keras.layers.MixUp(0.4, seed=1), "seed": 0}
    one_hot = np.eye(4, dtype="float32")[y]
    history = model.fit(x, one_hot, batch_size=8, verbose=0, **arguments).history
    assert np.isfinite(history["val_loss"]).all() and np.isfinite(history["loss"]).all()
    weighted = compiled(network("student")).fit(
        x, y, batch_size=8, verbose=0, class_weight={0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0}
    )
    np.testing.assert_allclose(weighted.history["loss"], 0.0, atol=1e-7)


def test_bad_input_is_one_clear_line():
    x, y = nets.vectors(16), nets.class_ids(16)
    with pytest.raises(ValueError, match="`batch_size` to be even"):
        compiled().fit(x, y, batch_size=7, verbose=0)
    plain = kd.data.batches(x, y, 4)
    with pytest.raises(ValueError, match="overlap_batches"):
        compiled().fit(plain, shuffle=False, verbose=0)
    data = kd.data.overlap_batches((x, y), 4, seed=0)
    with pytest.raises(ValueError, match="class_weight"):
        compiled().fit(data, shuffle=False, verbose=0, class_weight={0: 1.0})
    turned = data.map(lambda x, y, w: (x[::-1], (y[1], y[1]), (w[1], w[1])))
    with pytest.raises(ValueError, match="repeated half of an element"):
        compiled().fit(turned, shuffle=False, verbose=0)
    short = data.map(lambda x, y, w: ((x[0][:2], x[1]), (y[0][:2], y[1]), (w[0][:2], w[1])))
    with pytest.raises(ValueError, match="halves of one known size"):
        compiled().fit(short, shuffle=False, verbose=0)
    with pytest.raises(ValueError, match="steps_per_epoch"):
        compiled().fit((part for part in [x]), verbose=0)


def softened(logits, temperature=1.0):
    shifted = logits / temperature - (logits / temperature).max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence(target, own, temperature):
    p, q = softened(target, temperature), softened(own, temperature)
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1).mean()


def shifted_by_seed(x, seeds):
    return x + kd.data.random_uniform(seeds, x.shape[-1])


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("as_samples", [True, False])
def test_ddgsd_beside_dlb_compares_two_views_of_the_new_half(as_samples, fused):
    import tensorflow as tf

    arrays = nets.vectors(12), nets.class_ids(12)
    source = tf.data.Dataset.from_tensor_slices(arrays) if as_samples else arrays
    data = kd.data.overlap_batches(source, 4, shifted_by_seed, seed=5, other_view=True)
    model = compiled(rate=0.0, fused_forward=fused, distortion_weight=0.5)
    kernel, bias = (nets.array(v).astype("float64") for v in model.student.weights)
    history = model.fit(data, shuffle=False, verbose=0).history
    cached, found = None, []
    for (last, (new, other)), (y_last, y_new), (w_last, _) in data.as_numpy_iterator():
        assert np.abs(new - other).min() > 0
        z_last, z_new, z_other = (x.astype("float64") @ kernel + bias for x in (last, new, other))
        parts = [(z_new, y_new), (z_other, y_new)]
        parts += [(z_last, y_last)] if w_last.any() else []
        rows = [-softened(z)[range(4), y] for z, y in parts]
        repeated = divergence(cached, z_last, 3.0) if w_last.any() else 0.0
        views = divergence(z_other, z_new, 3.0) + divergence(z_new, z_other, 3.0)
        label = np.concatenate(rows).mean()
        found.append([label + repeated + 0.5 * views, label, repeated, views])
        cached = z_new
    names = ["loss", "label_loss", "last_batch_loss", "distortion_loss"]
    expected = np.mean(found, axis=0)
    np.testing.assert_allclose([history[n][0] for n in names], expected, rtol=1e-4)
    assert expected[2] > 0.01 and expected[3] > 0.01


@pytest.mark.slow
def test_two_views_are_asked_for_by_model_and_data():
    arrays = nets.vectors(12), nets.class_ids(12)
    one = kd.data.overlap_batches(arrays, 4, shifted_by_seed, seed=5)
    two = kd.data.overlap_batches(arrays, 4, shifted_by_seed, seed=5, other_view=True)
    with pytest.raises(ValueError, match="one view of the new half"):
        compiled().fit(two, shuffle=False, verbose=0)
    with pytest.raises(ValueError, match="two views of the new half"):
        compiled(distortion_weight=1.0).fit(one, shuffle=False, verbose=0)
    with pytest.raises(ValueError, match="`augment` with other_view=True"):
        kd.data.overlap_batches(arrays, 4, other_view=True)
    loaded = kd.DLBModel.from_config(compiled(distortion_weight=0.5).get_config())
    assert loaded.distortion_weight == 0.5
    history = compiled(distortion_weight=1.0).fit(
        *arrays, batch_size=8, augment=shifted_by_seed, seed=1, verbose=0
    )
    assert history.history["distortion_loss"][0] > 0
