"""`TeacherCache` as hypothesis sees it: what is read is what numpy computes of what was written."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

import keras_distill as kd
from keras_distill.data.cache_records import Records
from keras_distill.data.cache_records import StoredOutputs
from keras_distill.data.cache_store import Store
from keras_distill.data.replay import draws_of_view
from keras_distill.models.cached_teacher import CachedNetwork
from keras_distill.models.cached_teacher import CachedTeacher
from keras_distill.models.network import NetworkOutputs

pytestmark = pytest.mark.tensorflow

# Largest relative error of rounding to nearest, and half of the least number above 0.
ROUNDING = {"float16": (2.0**-11, 2.0**-25), "float32": (2.0**-24, 2.0**-150)}


def searched(examples):
    """Hypothesis's settings: the same examples each time."""
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None)


def few_and(more, few=10):
    """A test with a few examples, and a slow one with more."""
    return pytest.mark.parametrize("examples", [few, pytest.param(more, marks=pytest.mark.slow)])


@st.composite
def layouts(draw):
    classes = draw(st.one_of(st.integers(1, 12), st.sampled_from([65536, 70_000])))
    top_k = draw(st.none() | st.integers(1, min(classes, 12))) if classes < 100 else 3
    temperatures = st.lists(st.floats(0.01, 100), min_size=1, max_size=3, unique=True)
    return StoredOutputs(
        classes,
        top_k=top_k,
        temperatures=draw(temperatures if top_k else st.none() | temperatures),
        features=draw(st.dictionaries(st.text(max_size=4), st.integers(1, 5), max_size=2)),
        dtype=draw(st.sampled_from(["float16", "float32"])),
    )


def drawn_values(stored, samples, seed, scale):
    """A dict of fields, float64 and int64: ties, zeros, and numbers up to `scale`."""
    rng = np.random.default_rng(seed)
    values = {}
    for name, kind, shape in stored.fields:
        if kind[1] == "f":
            values[name] = np.clip(rng.standard_normal((samples, *shape)), -1, 1) * scale
            values[name][rng.uniform(size=values[name].shape) < 0.2] = scale
        else:
            values[name] = rng.integers(0, stored.classes, (samples, *shape))
    return values


def drawn_views(samples, seed, mixes):
    """What a record says of the view: numbers that a mark or a manifest knows nothing of."""
    rng = np.random.default_rng(seed)
    values = {"seed": rng.integers(-(2**31), 2**31, samples)}
    if mixes:
        values["partner"] = rng.permutation(samples)
        values["partner_seed"] = values["seed"][values["partner"]]
        values["amount"] = rng.uniform(size=samples)
    return values


def is_near(found, written, dtype):
    """Whether `found` is `written` rounded to a dtype."""
    relative, absolute = ROUNDING[np.dtype(dtype).name]
    distance = np.abs(np.asarray(found, "float64") - written)
    return bool((distance <= relative * np.abs(written) + absolute).all())


@few_and(50, few=20)
def test_records_are_read_as_they_were_written(tmp_path_factory, examples):
    """Of any shape, in blocks of any size, written in any order; by NumPy and by tf.data's ops."""

    @searched(examples)
    @given(
        stored=layouts(),
        samples=st.integers(1, 30),
        block=st.integers(1, 40),
        mixes=st.booleans(),
        seed=st.integers(0, 2**32),
        scale=st.sampled_from([1e-9, 1.0, 300.0, 6e4]),
    )
    def holds(stored, samples, block, mixes, seed, scale):
        records = Records(stored, mixes)
        sizes = {"samples": samples, "views": 2, "block": min(block, samples)}
        manifest = {**sizes, "record_bytes": records.dtype.itemsize, "id": "0"}
        store = Store(tmp_path_factory.mktemp("cache"), manifest)
        written = [
            drawn_values(stored, samples, seed + v, scale) | drawn_views(samples, seed + v, mixes)
            for v in range(2)
        ]
        places = [(view, part) for view in range(2) for part in range(store.blocks)]
        for i in np.random.default_rng(seed).permutation(len(places)):
            view, part = places[i]
            rows = slice(*store.rows(part))
            store.allocate(view)
            values = {name: value[rows] for name, value in written[view].items()}
            assert places[i] in store.missing()
            store.write(view, part, records.packed(values))
        store.verify()
        for view in range(2):
            array = store.array(view, records.dtype)
            tensors = records.unpacked(store.mapped(view))
            for name, kind, shape in records.fields:
                assert array[name].shape == (samples, *shape)
                np.testing.assert_array_equal(tensors[name], array[name])
                if kind[1] == "f":
                    assert is_near(array[name], written[view][name], np.dtype(kind))
                else:
                    np.testing.assert_array_equal(array[name], written[view][name])

    holds()


@few_and(300, few=40)
def test_what_float16_does_not_hold_is_refused(examples):
    @searched(examples)
    @given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(["float16", "float32"]))
    def holds(value, dtype):
        records = Records(StoredOutputs(2, dtype=dtype))
        values = {"seed": np.zeros(1), "prediction_0": np.array([[value, 0.0]])}
        with np.errstate(over="ignore"):
            fits = np.isfinite(np.float64(value).astype(dtype))
        if fits:
            assert is_near(records.packed(values)["prediction_0"][0, 0], value, dtype)
        else:
            with pytest.raises(ValueError, match="Expected the teacher's outputs to be finite"):
                records.packed(values)

    holds()


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def dense_oracle(probabilities, classes, count, residual):
    """A distribution over all classes in float64, class by class."""
    rows = np.zeros((len(probabilities), count))
    for row, p, ids in zip(rows, np.asarray(probabilities, "float64"), classes):
        left = 1.0 - p.sum()
        if residual == "spread" and len(p) < count:
            row[:] = max(left, 0.0) / (count - len(p))
        row[ids] = p
        row /= row.sum()
    return rows


@few_and(120, few=30)
def test_top_k_is_spread_to_a_distribution_over_all_classes(examples):
    """From logits of any size, with ties and k = classes: as numpy, class by class."""

    @searched(examples)
    @given(
        classes=st.integers(2, 20),
        k=st.integers(1, 20),
        temperature=st.sampled_from([0.5, 1.0, 4.0, 100.0]),
        residual=st.sampled_from(["spread", "renormalise"]),
        scale=st.sampled_from([0.0, 1.0, 10.0, 1e4, 1e30]),
        seed=st.integers(0, 2**32),
    )
    def holds(classes, k, temperature, residual, scale, seed):
        k = min(k, classes)
        rng = np.random.default_rng(seed)
        logits = np.round(rng.standard_normal((4, classes)), 1).astype("float32") * scale
        exact = softmax(logits.astype("float64") / temperature)
        order = np.argsort(-exact, axis=-1, kind="stable")[:, :k]
        kept = np.take_along_axis(exact, order, -1).astype("float16")
        stored = StoredOutputs(classes, "linear", k, residual, temperature)
        network = CachedNetwork(CachedTeacher(stored), "teacher")
        values = {"prediction_0": kept, "prediction_0_classes": order.astype("int32")}
        outputs = NetworkOutputs(None, [values], [])
        found = keras.ops.softmax(network.logits(outputs, 0, None, temperature) / temperature)
        found = keras.ops.convert_to_numpy(found)
        expected = dense_oracle(kept, order, classes, residual)
        assert found.shape == (4, classes) and (found >= 0).all()
        np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-7)
        if k == classes:
            np.testing.assert_allclose(found, exact, rtol=2e-3, atol=1e-6 * classes)

    holds()


def said_by_itself(classes):
    """A teacher whose logits are its inputs."""
    inputs = keras.Input((classes,))
    outputs = keras.layers.Dense(classes, use_bias=False, kernel_initializer="identity")(inputs)
    return keras.Model(inputs, outputs)


@few_and(12, few=3)
def test_a_cache_holds_what_numpy_says_of_the_teacher(tmp_path_factory, examples):
    @searched(examples)
    @given(
        classes=st.integers(2, 9),
        k=st.none() | st.integers(1, 9),
        samples=st.integers(1, 40),
        batch_size=st.integers(1, 50),
        scale=st.sampled_from([1.0, 30.0, 3e4]),
        seed=st.integers(0, 2**32),
    )
    def holds(classes, k, samples, batch_size, scale, seed):
        k = k and min(k, classes)
        rng = np.random.default_rng(seed)
        logits = np.round(rng.uniform(-1, 1, (samples, classes)), 1).astype("float32") * scale
        cache = kd.data.TeacherCache.build(
            tmp_path_factory.mktemp("cache"),
            said_by_itself(classes),
            logits,
            np.zeros(samples),
            top_k=k,
            temperatures=k and 4.0,
            batch_size=batch_size,
        )
        records = cache.read(0)
        if k is None:
            assert is_near(records["prediction_0"], logits, "float16")
            return
        exact = softmax(logits.astype("float64") / 4.0)
        found = records["prediction_0"].astype("float64")
        ids = records["prediction_0_classes"].astype("int64")
        assert [len(set(row)) for row in ids] == [k] * samples
        expected = np.take_along_axis(exact, ids, -1)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-7)
        np.testing.assert_allclose(np.sort(exact)[:, ::-1][:, :k], expected, rtol=1e-4, atol=1e-7)

    holds()


SAMPLES, VIEWS = 23, 3


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A cache of three mixed and augmented views; its logits are the pixels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (SAMPLES, 4, 4, 1)).astype("uint8")
    inputs = keras.Input((4, 4, 1))
    outputs = keras.layers.Dense(16, use_bias=False, kernel_initializer="identity")(
        keras.layers.Flatten()(inputs)
    )
    return kd.data.TeacherCache.build(
        tmp_path_factory.mktemp("mixed") / "cache",
        keras.Model(inputs, outputs),
        images,
        rng.integers(0, 16, SAMPLES),
        views=VIEWS,
        seed=5,
        augment=kd.data.crop_and_flip(1),
        mix=keras.layers.MixUp(0.8),
        dtype="float32",
    )


@few_and(10, few=4)
def test_views_are_of_seed_epoch_and_sample_alone(mixed, examples):
    """Whatever the batches and their order: the stored draws, and the pixels the teacher saw."""
    expected = [draws_of_view(SAMPLES, view, 5, keras.layers.MixUp(0.8)) for view in range(VIEWS)]
    records = [mixed.read(view) for view in range(VIEWS)]
    for view in range(VIEWS):
        for name, value in expected[view]._asdict().items():
            np.testing.assert_array_equal(records[view][name], value)

    @searched(examples)
    @given(
        batch_size=st.integers(1, SAMPLES + 3),
        start=st.integers(0, 10),
        epochs=st.integers(1, 2),
        shuffle=st.booleans(),
        seed=st.integers(0, 2**40),
        drop_remainder=st.booleans(),
    )
    def holds(batch_size, start, epochs, shuffle, seed, drop_remainder):
        batch_size = min(batch_size, SAMPLES) if drop_remainder else batch_size
        dataset = mixed.dataset(
            batch_size,
            epochs=start + epochs,
            start_epoch=start,
            shuffle=shuffle,
            seed=seed,
            drop_remainder=drop_remainder,
        )
        steps = mixed.steps_per_epoch(batch_size, drop_remainder)
        assert len(dataset) == epochs * steps
        for step, (x, y) in enumerate(dataset.as_numpy_iterator()):
            own = records[(start + step // steps) % VIEWS][y["ids"]]
            logits = y["teacher"]["prediction_0"]
            np.testing.assert_array_equal(logits, own["prediction_0"])
            np.testing.assert_allclose(x.reshape(len(x), -1), logits, atol=1e-6)

    holds()


@few_and(100, few=20)
def test_views_and_ids_that_a_cache_does_not_have_are_named(mixed, examples):
    @searched(examples)
    @given(st.integers(-5, 2**70), st.lists(st.integers(-3, SAMPLES + 3), max_size=4))
    def holds(view, ids):
        if not 0 <= view < VIEWS:
            with pytest.raises(ValueError, match=f"`view` to be from 0 to {VIEWS - 1}"):
                mixed.read(view)
        if all(0 <= i < SAMPLES for i in ids):
            np.testing.assert_array_equal(mixed.read(0, ids), mixed.read(0)[ids or slice(0)])
        else:
            with pytest.raises(ValueError, match=f"whole numbers from 0 to {SAMPLES - 1}"):
                mixed.read(0, ids)

    holds()
    for ids in ("ab", [0.5], [None], [2**70]):
        with pytest.raises(ValueError, match="`ids` to be whole numbers"):
            mixed.read(0, ids)
