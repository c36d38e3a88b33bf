"""A Distiller whose teacher is a `TeacherCache`: the same training, and what is refused."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.models.cached_teacher import spread
from tests.losses import numerics

SAMPLES, CLASSES = 48, 5
CROP = kd.data.crop_and_flip(1)


def images():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (SAMPLES, 6, 6, 3)).astype("uint8")
    return x, rng.integers(0, CLASSES, SAMPLES)


def network(name, width=3, activation=None, seed=0, classes=CLASSES):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(width, 3, activation="relu", name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    outputs = keras.layers.Dense(classes, activation=activation, name="logits")(x)
    return keras.Model(inputs, outputs, name=name)


def build(path, teacher, **options):
    return kd.data.TeacherCache.build(path, teacher, *images(), **options)


def compiled(teacher, terms, rate=0.1, **options):
    wrapper = kd.Distiller(teacher, network("student", 2, seed=1), terms, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    wrapper.compile(keras.optimizers.SGD(rate), loss)
    return wrapper


def fit(wrapper, data, epochs=2, batch_size=16):
    steps = SAMPLES // batch_size
    return wrapper.fit(data, epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=0).history


def weights(model):
    return [keras.ops.convert_to_numpy(v) for v in model.variables]


def both(cache, teacher, terms, rate=0.1):
    """Logs and weights of a training from the cache, and of one with the teacher on its views."""
    data = cache.dataset(16, epochs=2, seed=3)
    results = []
    for source in (cache, teacher):
        wrapper = compiled(source, terms(), rate)
        logs = fit(wrapper, data)
        results.append([*(logs[name] for name in sorted(logs)), *weights(wrapper.student)])
    return [np.concatenate([np.ravel(part) for part in parts]) for parts in results]


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_training_from_dense_logits_is_that_with_the_teacher(tmp_path, activation):
    teacher = network("teacher", activation=activation)
    cache = build(tmp_path / "c", teacher, views=2, augment=CROP, dtype="float32")
    count = 1 if activation else 2
    terms = lambda: [kd.losses.SoftTargets(3.0), kd.losses.LogitMSE()][:count]  # noqa: E731
    np.testing.assert_allclose(*both(cache, teacher, terms), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("top_k", [CLASSES, None])
def test_all_probabilities_are_as_good_as_the_logits(tmp_path, top_k):
    """With top_k of all classes nothing is left out; the probabilities are float16."""
    teacher = network("teacher")
    cache = build(tmp_path / "c", teacher, augment=CROP, top_k=top_k, temperatures=[1.0, 3.0])

    def terms():
        return [
            kd.losses.SoftTargets(3.0),
            kd.Term(kd.losses.SoftTargets(4.0), temperature=1.0, weight=0.5),
            kd.losses.DecoupledKD(temperature=3.0),
            kd.losses.DIST(temperature=3.0),
            kd.losses.JensenShannon(temperature=1.0),
            kd.losses.NormalizedKD(temperature=1.0),
            kd.losses.AdaptiveAlphaDivergence(),
            kd.losses.HardTargets(),
        ]

    found, expected = both(cache, teacher, terms, rate=1e-4)
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-3)


@pytest.mark.slow
def test_an_ensemble_at_two_temperatures(tmp_path):
    ensemble = kd.EnsembleTeacher([network("a"), network("b", seed=2)])
    cache = build(tmp_path / "c", ensemble, temperatures=[1.0, 4.0], dtype="float32")
    terms = lambda: [kd.losses.SoftTargets(4.0), kd.losses.SoftTargets(1.0)]  # noqa: E731
    np.testing.assert_allclose(*both(cache, ensemble, terms), rtol=1e-4, atol=1e-5)


def test_pooled_features_serve_terms(tmp_path):
    teacher = network("teacher")
    cache = build(tmp_path / "c", teacher, augment=CROP, features=["conv"], dtype="float32")
    x = cache.dataset(16, epochs=1, seed=3)
    keras.utils.set_random_seed(5)
    cached = compiled(cache, kd.Term(kd.losses.RelationalDistance(), "conv", "pooled"))
    keras.utils.set_random_seed(5)
    live = compiled(teacher, kd.Term(kd.losses.RelationalDistance(), "pooled", "pooled"))
    logs, expected = fit(cached, x, epochs=1), fit(live, x, epochs=1)
    np.testing.assert_allclose(
        logs["relational_distance"], expected["relational_distance"], rtol=1e-4
    )
    hint = kd.Term(kd.losses.Hint(), "conv", "pooled", connector="auto")
    assert np.isfinite(fit(compiled(cache, hint), x, epochs=1)["hint"]).all()
    with pytest.raises(ValueError, match=r"cache to hold the layer 'pooled'.*\['conv'\]"):
        compiled(cache, kd.Term(kd.losses.RelationalDistance(), "pooled", "pooled"))


# The distribution of the likeliest.


@pytest.mark.parametrize("residual", ["spread", "renormalise"])
def test_the_distribution_of_the_likeliest_by_hand(residual):
    probabilities = np.array([[0.5, 0.3], [1.0, 0.0]], "float32")
    classes = np.array([[3, 0], [1, 2]])
    if residual == "spread":
        expected = [[0.3, 0.1, 0.1, 0.5], [0.0, 1.0, 0.0, 0.0]]
    else:
        expected = [[0.375, 0.0, 0.0, 0.625], [0.0, 1.0, 0.0, 0.0]]
    log_p = numerics.to_numpy(spread(probabilities, classes, 4, residual))
    np.testing.assert_allclose(np.exp(log_p), expected, rtol=1e-6)
    assert np.isfinite(log_p).all()
    softened = numerics.to_numpy(keras.ops.softmax(7.0 * log_p / 7.0))
    np.testing.assert_allclose(softened, expected, rtol=1e-5, atol=1e-30)


def test_soft_targets_of_the_likeliest_by_hand(tmp_path):
    teacher, temperature = network("teacher"), 3.0
    cache = build(tmp_path / "c", teacher, top_k=2, temperatures=temperature)
    wrapper = compiled(cache, kd.losses.SoftTargets(temperature))
    x, y = keras.tree.map_structure(np.asarray, next(iter(cache.dataset(SAMPLES))))
    before = numerics.to_numpy(wrapper.student(x))
    logs = wrapper.train_on_batch(x, y, return_dict=True)
    fields = {name: numerics.to_numpy(value) for name, value in y["teacher"].items()}
    p = fields["prediction_0"].astype("float64")
    target = np.repeat((1 - p.sum(1, keepdims=True)) / (CLASSES - 2), CLASSES, axis=1)
    np.put_along_axis(target, fields["prediction_0_classes"], p, axis=1)
    z = before.astype("float64") / temperature
    log_q = z - np.log(np.exp(z).sum(1, keepdims=True))
    expected = temperature**2 * (target * (np.log(target) - log_q)).sum(1).mean()
    np.testing.assert_allclose(float(logs["soft_targets"]), expected, rtol=1e-4)


@pytest.mark.parametrize("residual", ["spread", "renormalise"])
def test_gradients_of_the_likeliest_are_finite(tmp_path, residual):
    teacher = network("teacher")
    teacher.get_layer("logits").kernel.assign(100.0 * teacher.get_layer("logits").kernel)
    cache = build(tmp_path / "c", teacher, top_k=2, temperatures=1.0, residual=residual)
    wrapper = compiled(cache, [kd.losses.SoftTargets(1.0), kd.losses.JensenShannon()])
    logs = fit(wrapper, cache.dataset(16, epochs=2))
    assert np.isfinite(logs["loss"]).all()
    assert all(np.isfinite(w).all() for w in weights(wrapper))


# What is refused.


@pytest.fixture
def sparse(tmp_path):
    return build(tmp_path / "sparse", network("teacher"), top_k=2, temperatures=4.0)


@pytest.mark.parametrize(
    "loss",
    [
        kd.losses.LogitMSE(),
        kd.losses.SoftTargets(4.0, standardize=True),
        kd.losses.MultiLevelKD(),
        kd.losses.NormalizedKD(temperature=4.0),
        "mean_squared_error",
    ],
    ids=["logits", "standardized", "several temperatures", "at 1 and at 4", "of Keras"],
)
def test_losses_that_read_more_are_refused(sparse, loss):
    with pytest.raises(ValueError, match="likeliest classes at temperature 4.*reads more"):
        compiled(sparse, loss)


def test_another_temperature_is_refused(sparse):
    with pytest.raises(ValueError, match="temperature 4 of the cache.*temperature=2"):
        compiled(sparse, kd.losses.SoftTargets(2.0))
    with pytest.raises(ValueError, match="temperature=2"):
        compiled(sparse, kd.Term(kd.losses.SoftTargets(4.0), temperature=2.0))
    schedule = kd.schedules.Linear(4.0, 1.0, 10)
    with pytest.raises(ValueError, match="one fixed temperature"):
        compiled(sparse, kd.Term(kd.losses.SoftTargets(4.0), temperature=schedule))
    wrapper = compiled(sparse, kd.Term(kd.losses.SoftTargets(1.0), temperature=4.0))
    fit(wrapper, sparse.dataset(16, epochs=2))
    wrapper.terms[0].temperature.assign(3.0)
    with pytest.raises(ValueError, match="temperature=3"):
        fit(wrapper, sparse.dataset(16, epochs=2))


def test_dense_logits_serve_any_temperature(tmp_path):
    cache = build(tmp_path / "c", network("teacher"))
    schedule = kd.schedules.Linear(4.0, 1.0, 10)
    wrapper = compiled(cache, kd.Term(kd.losses.SoftTargets(4.0), temperature=schedule))
    assert np.isfinite(fit(wrapper, cache.dataset(16, epochs=2))["loss"]).all()


def test_plain_data_is_refused(sparse):
    wrapper = compiled(sparse, kd.losses.SoftTargets(4.0))
    x, y = images()
    with pytest.raises(ValueError, match=r"teacher is a cache.*cache\.dataset"):
        wrapper.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match=r"y=\['ids', 'labels'\]"):
        wrapper.fit(kd.data.batches(x, y, 16, ids=True), shuffle=False, verbose=0)
    assert np.isfinite(wrapper.evaluate(x / 255, y, verbose=0)).all()


def test_the_data_of_another_cache_is_refused(sparse, tmp_path):
    other = build(tmp_path / "other", network("teacher"), features=["conv"])
    wrapper = compiled(sparse, kd.losses.SoftTargets(4.0))
    with pytest.raises(ValueError, match="stored outputs.*feature_0"):
        fit(wrapper, other.dataset(16, epochs=2))


def test_losses_that_run_the_teacher_are_refused(sparse):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("such losses are TensorFlow's alone")
    with pytest.raises(ValueError, match="runs the teacher itself"):
        compiled(sparse, kd.losses.BoundarySupport())


def test_classes_that_differ_are_refused(sparse):
    student = network("student", classes=4)
    with pytest.raises(ValueError, match="same number of classes.*teacher 5, student 4"):
        kd.Distiller(sparse, student, kd.losses.SoftTargets(4.0))


# Around the training.


@pytest.mark.slow
@pytest.mark.parametrize("include_teacher", [True, False])
def test_saved_and_loaded_it_goes_on(sparse, tmp_path, include_teacher):
    wrapper = compiled(sparse, kd.losses.SoftTargets(4.0))
    data = sparse.dataset(16, epochs=2)
    fit(wrapper, data, epochs=1)
    wrapper.save(tmp_path / "w.keras", include_teacher=include_teacher)
    loaded = keras.saving.load_model(tmp_path / "w.keras")
    if not include_teacher:
        with pytest.raises(ValueError, match="set_teacher"):
            fit(loaded, data)
        loaded.set_teacher(sparse)
    data = sparse.dataset(16, epochs=2, start_epoch=1)
    logs, expected = fit(loaded, data, epochs=1), fit(wrapper, data, epochs=1)
    np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-5)


@pytest.mark.slow
def test_two_replicas_take_the_step_of_one(sparse, two_replicas):
    one = compiled(sparse, kd.losses.SoftTargets(4.0))
    expected = fit(one, sparse.dataset(16, epochs=1), epochs=1)
    with two_replicas.scope():
        both = compiled(sparse, kd.losses.SoftTargets(4.0))
    logs = fit(both, sparse.dataset(16, epochs=1), epochs=1)
    np.testing.assert_allclose(logs["soft_targets"], expected["soft_targets"], rtol=1e-5)
    for a, b in zip(weights(one.student), weights(both.student)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_stages_from_a_cache(sparse):
    stages = [
        kd.Stage("labels", 1, []),
        kd.Stage("kd", 1, kd.losses.SoftTargets(4.0)),
    ]
    wrapper = compiled(sparse, None, stages=stages)
    history = fit(wrapper, sparse.dataset(16, epochs=2))
    assert history["stage"] == [0, 1] and np.isfinite(history["loss"]).all()
