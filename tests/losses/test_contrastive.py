"""CRD: scores, Z and banks by hand and against the oracle, draws, errors."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from keras_distill import losses
from keras_distill.losses import contrastive
from keras_distill.losses._negatives import KEYS
from keras_distill.losses._negatives import Negatives
from tests.losses import numerics
from tests.oracles import contrastive as oracles
from tests.oracles import finite_differences

# `2 ** <m, v>` is the exponential at this temperature.
OF_TWO = 1 / np.log(2.0)
COMPASS = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])


def data(batch=3, samples=7, dimension=4, candidates=5, dtype="float64"):
    rng = np.random.default_rng(3)
    bank = oracles.normalized(rng.normal(size=(samples, dimension))).astype(dtype)
    vectors = oracles.normalized(rng.normal(size=(batch, dimension))).astype(dtype)
    ids = np.array([rng.choice(samples, candidates, replace=False) for _ in range(batch)])
    return bank, vectors, ids.astype("int32")


def against_all(samples=6, sizes=(5, 3), dimension=4, **options):
    """A loss whose negatives are all other samples, and an oracle of the same weights."""
    options = {"temperature": 0.5, "momentum": 0.7, "seed": 1, **options}
    loss = losses.ContrastiveRepresentation(samples, dimension, samples - 1, **options)
    loss.build_for(*((None, size) for size in sizes))
    own = {w.name: numerics.to_numpy(w) for w in loss.weights}
    assert [own[f"{role}_bank"].shape for role in ("teacher", "student")] == [(samples, 4)] * 2
    embeddings = [
        [numerics.to_numpy(w).astype("float64") for w in layer.weights]
        for layer in (loss.teacher_embedding, loss.student_embedding)
    ]
    banks = own["teacher_bank"], own["student_bank"]
    return loss, oracles.Training(*embeddings, *banks, options["temperature"], options["momentum"])


def everyone(ids, samples=6):
    return np.array([[i, *(j for j in range(samples) if j != i)] for i in ids])


# The functions.


def test_scores_constant_and_loss_by_hand():
    """o = 2, 1, 1/2 for both samples: Z = 14/3, P+ = 3/7, c = 1/2."""
    candidates = np.array([[0, 1, 2], [1, 2, 3]], "int32")
    vectors = COMPASS[:2]
    scores = numerics.values(contrastive.contrastive_scores, COMPASS, vectors, candidates, OF_TWO)
    np.testing.assert_allclose(np.exp(scores), [[2, 1, 0.5], [2, 1, 0.5]], rtol=1e-6)
    log_sum = np.log(np.exp(scores).sum())
    log_z = float(numerics.values(contrastive.log_normalizer, log_sum, 6, 4))
    assert np.exp(log_z) == pytest.approx(14 / 3, rel=1e-6)
    values = numerics.values(contrastive.nce_loss, scores, log_z, 4)
    by_hand = -(np.log(6 / 13) + np.log(7 / 10) + np.log(14 / 17))
    np.testing.assert_allclose(values, by_hand, rtol=1e-5)
    moved = numerics.values(contrastive.moved_rows, COMPASS[:2], COMPASS[1:3], 0.5)
    np.testing.assert_allclose(moved, np.sqrt(0.5) * np.array([[1, 1], [-1, 1]]), rtol=1e-6)
    moved = numerics.values(contrastive.moved_rows, COMPASS[:1], COMPASS[1:2], 0.8)
    np.testing.assert_allclose(moved, np.array([[0.8, 0.2]]) / np.sqrt(0.68), rtol=1e-6)


@pytest.mark.parametrize("dense", [True, False], ids=["whole bank", "rows"])
@pytest.mark.parametrize("batch, temperature", [(3, 0.07), (1, 1.0)])
def test_functions_are_the_equations(batch, temperature, dense, monkeypatch):
    monkeypatch.setattr(contrastive, "DENSE", 32 if dense else 0)
    bank, vectors, candidates = data(batch)

    def value(vectors):
        scores = contrastive.contrastive_scores(bank, vectors, candidates, temperature)
        return contrastive.nce_loss(scores, np.log(30.0), 7)

    def expected(vectors):
        o = oracles.exponentials(bank, vectors, candidates, temperature)
        return oracles.nce(o, 30.0, 7)

    np.testing.assert_allclose(numerics.values(value, vectors), expected(vectors), numerics.RTOL)
    slope = finite_differences.gradient(lambda x: expected(x).sum(), vectors)
    tolerance = {"rtol": 1e-5, "atol": 1e-6 * np.abs(slope).max()}
    np.testing.assert_allclose(numerics.gradient(value, vectors), slope, **tolerance)
    single = numerics.values(value, vectors.astype("float32"))
    np.testing.assert_allclose(single, expected(vectors), rtol=1e-4)


def test_banks_are_constants():
    bank, vectors, candidates = data()
    for dense in (0, 32):
        slope = numerics.gradient(
            lambda b: contrastive.contrastive_scores(b, vectors, candidates), bank
        )
        np.testing.assert_array_equal(slope, 0.0, err_msg=str(dense))


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    log_temperature=st.floats(-6.0, 6.0),
    log_z=st.floats(-50.0, 50.0),
)
def test_values_and_gradients_are_finite_at_any_temperature(seed, log_temperature, log_z):
    rng = np.random.default_rng(seed)
    bank = oracles.normalized(rng.normal(size=(5, 3))).astype("float32")
    vectors = bank[:2].copy()
    vectors[1] = 0.0
    candidates = np.array([[0, 1, 2, 2], [4, 3, 1, 0]], "int32")

    def value(x):
        scores = contrastive.contrastive_scores(bank, x, candidates, np.exp(log_temperature))
        return contrastive.nce_loss(scores, log_z, 5)

    values = numerics.values(value, vectors)
    numerics.assert_finite(values, numerics.gradient(value, vectors))
    assert (values >= -1e-5).all()


# The class.


def test_three_batches_equal_the_oracle():
    """Values, Z of the first batch alone, and both banks after each step."""
    loss, oracle = against_all()
    rng = np.random.default_rng(0)
    first = None
    for ids in ([4, 1, 2], [1, 5], [0, 1, 4]):
        teacher = rng.normal(size=(len(ids), 5)).astype("float32")
        student = rng.normal(size=(len(ids), 3)).astype("float32")
        values = loss.call((teacher, np.array(ids)), student)
        expected = oracle.step(teacher, student, ids, everyone(ids))
        np.testing.assert_allclose(numerics.to_numpy(values), expected, rtol=1e-4)
        z = np.exp(numerics.to_numpy(loss.log_normalizers))
        first = z if first is None else first
        np.testing.assert_array_equal(z, first)
        np.testing.assert_allclose(z, oracle.z, rtol=1e-5)
        for bank, own in zip((loss.teacher_bank, loss.student_bank), oracle.banks):
            np.testing.assert_allclose(numerics.to_numpy(bank), own, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(oracle.banks[0][[0, 1, 2, 4, 5]], axis=1), 1.0)


def test_gradients_are_those_of_the_oracle():
    loss, oracle = against_all(dtype="float64" if numerics.BACKEND == "tensorflow" else None)
    rng = np.random.default_rng(1)
    teacher, student = rng.normal(size=(2, 5)), rng.normal(size=(2, 3))
    ids, candidates = np.array([3, 0]), everyone([3, 0])
    oracle.values(teacher, student, candidates)
    oracle.z = oracle.values(teacher, student, candidates)[1]

    def value(x):
        return loss.call((teacher.astype(loss.dtype), ids), x, training=False)

    gradient = numerics.gradient(value, student.astype(loss.dtype))
    expected = finite_differences.gradient(
        lambda x: oracle.values(teacher, x, candidates)[0].sum(), student
    )
    tolerance = 1e-6 if loss.dtype == "float64" else 1e-3
    np.testing.assert_allclose(gradient, expected, rtol=tolerance, atol=tolerance)
    of_teacher = numerics.gradient(
        lambda x: loss.call((x, ids), student.astype(loss.dtype), training=False),
        teacher.astype(loss.dtype),
    )
    np.testing.assert_array_equal(of_teacher, 0.0)


def test_without_training_nothing_moves():
    loss, _ = against_all()
    rng = np.random.default_rng(2)
    teacher, student = (rng.normal(size=(2, size)).astype("float32") for size in (5, 3))
    arguments = (teacher, np.array([0, 3])), student
    before = [numerics.to_numpy(v) for v in loss.variables]
    values = [numerics.to_numpy(loss.call(*arguments, training=False)) for _ in range(2)]
    np.testing.assert_array_equal(values[0], values[1])
    for value, variable in zip(before, loss.variables):
        np.testing.assert_array_equal(value, numerics.to_numpy(variable), variable.path)
    loss.call(*arguments, training=True)
    moved = [(v.name, not np.array_equal(b, v)) for b, v in zip(before, loss.variables)]
    still = {name for name, own in moved if not own}
    assert still == {"kernel", "bias"}


def test_zero_features_duplicates_and_halves_are_finite():
    loss, _ = against_all(temperature=0.07)
    for dtype in ("float32", "float16", "bfloat16"):
        teacher = keras.ops.cast(np.zeros((3, 5), "float32"), dtype)
        student = keras.ops.cast(np.full((3, 3), 1000.0, "float32"), dtype)
        value = loss((teacher, np.array([2, 2, 1])), student)
        assert keras.backend.standardize_dtype(value.dtype) == "float32"
        numerics.assert_finite(value, loss.student_bank, loss.teacher_bank)


def test_an_id_outside_the_banks_is_an_error_or_nan():
    loss, _ = against_all()
    teacher, student = np.ones((2, 5), "float32"), np.ones((2, 3), "float32")
    values = numerics.to_numpy(loss.call((teacher, np.array([0, 6])), student, training=False))
    assert np.isfinite(values[0]) and np.isnan(values[1])
    loss.check_ids(np.array([0, 5]))
    for ids in ([0, 6], [-1, 2]):
        with pytest.raises(ValueError, match=r"ids from 0 to 5 .*samples=6 rows.*ids from"):
            loss.check_ids(np.array(ids))


# Draws.


def drawn(pool, ids, negatives, own_class=False, seed=0):
    keys = np.random.default_rng(seed).integers(0, 2**31 - 1, (len(ids), KEYS)).astype("int32")
    ids = np.asarray(ids, "int32")
    return numerics.to_numpy(pool.draw(ids, keys, negatives, own_class))


@pytest.mark.parametrize("samples, negatives", [(50, 20), (1000, 999), (70000, 300)])
def test_negatives_of_any_class_are_all_others_at_most_once(samples, negatives):
    ids = np.random.default_rng(1).integers(0, samples, 8)
    candidates = drawn(Negatives(samples), ids, negatives)
    assert candidates.shape == (8, 1 + negatives) and candidates.dtype == "int32"
    np.testing.assert_array_equal(candidates[:, 0], ids)
    for row in candidates:
        assert len(set(row)) == 1 + negatives
        assert row.min() >= 0 and row.max() < samples


def test_negatives_are_of_other_classes():
    labels = np.array([2, 0, 2, 1, 1, 1, 0, -1, 2, -1])
    ids = np.arange(10)
    pool = Negatives(10, labels)
    for i, row in zip(ids, drawn(pool, ids, 7)):
        others = [j for j in ids if j != i and (labels[j] != labels[i] or labels[i] < 0)]
        assert set(row[1:]) <= set(others)
        # Class 2 and 1 have a pool of exactly seven: all of it. Unlabelled ones have nine.
        assert len(set(row[1:])) == 7
    many = drawn(pool, ids, 8)
    for i, row in zip(ids, many):
        others = {j for j in ids if j != i and (labels[j] != labels[i] or labels[i] < 0)}
        assert set(row[1:]) <= others
        assert (len(set(row[1:])) == 8) == (len(others) >= 8)


def test_positives_of_the_class():
    labels = np.array([0, 1, 0, 1, 1, -1])
    positives = [
        drawn(Negatives(6, labels), np.arange(6), 2, True, seed)[:, 0] for seed in range(60)
    ]
    for i, column in enumerate(np.transpose(positives)):
        mates = np.flatnonzero(labels == labels[i]) if labels[i] >= 0 else [i]
        assert set(column) == set(mates)


@pytest.mark.parametrize("samples, negatives", [(6, 3), (6, 8), (30, 7)])
def test_draws_are_even(samples, negatives):
    """Each other sample is drawn as often, within five standard deviations; pairs too."""
    rows = 30000
    candidates = drawn(Negatives(samples), np.zeros(rows, "int32"), negatives)[:, 1:]
    pool = samples - 1
    if negatives > pool:
        counts = np.bincount(candidates.ravel(), minlength=samples)[1:]
        share = 1 / pool
        deviation = np.sqrt(candidates.size * share * (1 - share))
        np.testing.assert_allclose(counts, candidates.size * share, atol=5 * deviation)
        return
    drawn_at_all = np.zeros((rows, samples), bool)
    np.put_along_axis(drawn_at_all, candidates, True, axis=1)
    own = drawn_at_all[:, 1:].astype("float64")
    together = own.T @ own
    share = negatives / pool
    shares = np.full((pool, pool), share * (negatives - 1) / (pool - 1))
    np.fill_diagonal(shares, share)
    deviation = np.sqrt(rows * shares * (1 - shares))
    assert np.abs((together - rows * shares) / deviation).max() < 5


def test_draws_differ_between_samples_and_steps():
    loss = losses.ContrastiveRepresentation(40, 3, 10, seed=4)
    ids = np.zeros(2, "int32")
    first, second = (numerics.to_numpy(loss._candidates(ids, True)) for _ in range(2))
    other = losses.ContrastiveRepresentation(40, 3, 10, seed=4)
    np.testing.assert_array_equal(numerics.to_numpy(other._candidates(ids, True)), first)
    rows = [tuple(row) for row in (*first, *second)]
    assert len(set(rows)) == 4


# Arguments.

LABELS = np.array([0, 1, 1, 0])
BAD_ARGUMENTS = [
    ({"samples": 0}, "samples=0"),
    ({"samples": 1}, "samples=1.*labels=None"),
    ({"dimension": 1.5}, "dimension=1.5"),
    ({"negatives": 0}, "negatives=0"),
    ({"temperature": -1.0}, "temperature=-1.0"),
    ({"momentum": 1.0}, "`momentum` below 1. Received: momentum=1.0"),
    ({"mode": "random"}, "'exact', 'relax'"),
    ({"mode": "relax"}, "mode='relax'.*labels=None"),
    ({"labels": LABELS[:3]}, r"\(samples,\)=\(4,\).*labels\.shape=\(3,\)"),
    ({"labels": LABELS / 2}, "labels.*float64"),
    ({"labels": [3, 3, 3, 3]}, "more than one class.*samples=4"),
]


@pytest.mark.parametrize("kwargs, received", BAD_ARGUMENTS, ids=str)
def test_bad_arguments_are_named_at_construction(kwargs, received):
    with pytest.raises(ValueError, match=received) as error:
        losses.ContrastiveRepresentation(**{"samples": 4, **kwargs})
    assert str(error.value).startswith("Expected `")


def test_config_holds_the_labels():
    loss = losses.ContrastiveRepresentation(4, 3, 2, mode="relax", labels=LABELS, seed=2)
    config = loss.get_config()
    assert config["labels"] == [0, 1, 1, 0]
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(restored) is losses.ContrastiveRepresentation and restored.get_config() == config
    assert loss.needs_ids and not loss.needs_labels and not loss.on_logits
    default = losses.ContrastiveRepresentation(9)
    chosen = default.dimension, default.negatives, default.temperature, default.momentum
    assert chosen == (128, 16384, 0.07, 0.5) and default.mode == "exact"


@pytest.mark.parametrize(
    "shapes",
    [((4, 3, 3, 5), (4, 5)), ((4, 5), (4, 6, 5)), ([(4, 5), (4, 5)], [(4, 5), (4, 5)])],
    ids=str,
)
def test_features_other_than_one_vector_are_named(shapes):
    loss = losses.ContrastiveRepresentation(4)
    with pytest.raises(ValueError, match=r"one vector of shape \(batch, size\) from both.*4, "):
        loss.build_for(*shapes)


@pytest.mark.slow
def test_xla_and_another_trace_score_alike():
    loss, oracle = against_all()
    compiled = numerics.compiled(lambda t, ids, s: loss.call((t, ids), s, training=False))
    rng = np.random.default_rng(5)
    ids = np.array([5, 0, 2], "int32")
    teacher, student = (rng.normal(size=(3, size)).astype("float32") for size in (5, 3))
    values = numerics.to_numpy(compiled(teacher, ids, student))
    expected = oracle.values(teacher, student, everyone(ids))[0]
    np.testing.assert_allclose(values, expected, rtol=1e-4)
