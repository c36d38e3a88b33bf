"""FlowOfSolution (FSP): values, gradients, pooling within a network, properties, training."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

import keras_distill as kd
from keras_distill import losses
from tests.contract import network
from tests.contract import samples
from tests.losses import numerics
from tests.oracles import finite_differences
from tests.oracles import flow_of_solution as oracles

EXAMPLES = 8 if numerics.BACKEND == "tensorflow" else 3
LABELS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# Heights and widths of a teacher's and a student's maps.
SIZES = {
    "alike": ([(4, 4), (4, 4)], [(4, 4), (4, 4)]),
    "8 to 4": ([(8, 8), (4, 4)], [(8, 8), (4, 4)]),
    "8 to 5": ([(8, 8), (5, 5)], [(8, 8), (5, 5)]),
    "second is larger": ([(5, 5), (8, 8)], [(3, 3), (6, 6)]),
    "non-square": ([(8, 6), (4, 3)], [(7, 5), (3, 4)]),
    "larger in one axis each": ([(8, 3), (4, 6)], [(5, 2), (2, 3)]),
    "networks differ": ([(8, 8), (4, 4)], [(6, 6), (3, 2)]),
    "three maps": ([(6, 6), (6, 6), (3, 3)], [(8, 6), (5, 6), (2, 2)]),
}
CHANNELS = (2, 3, 4)


def data(sizes, batch=2, dtype="float64", seed=3):
    """The maps of both networks; channels agree."""
    rng = np.random.default_rng(seed)
    return [
        [
            rng.standard_normal((batch, *size, channels)).astype(dtype)
            for size, channels in zip(own, CHANNELS)
        ]
        for own in (SIZES[sizes] if isinstance(sizes, str) else sizes)
    ]


@pytest.mark.parametrize("mode", ["paper", "mean"])
@pytest.mark.parametrize("pool", ["max", "average"])
@pytest.mark.parametrize("sizes", SIZES)
def test_it_is_the_equations(sizes, pool, mode):
    teacher, student = data(sizes)
    expected = oracles.flow_of_solution(teacher, student, pool, mode)
    values = numerics.values(losses.flow_of_solution, teacher, student, pool, mode)
    assert values.shape == (2,)
    # The matrix of the average's cells is made in float32.
    rtol = max(numerics.RTOL, 1e-6) if pool == "average" else numerics.RTOL
    np.testing.assert_allclose(values, expected, rtol=rtol)
    single = [[x.astype("float32") for x in own] for own in (teacher, student)]
    values = numerics.values(losses.flow_of_solution, *single, pool, mode)
    np.testing.assert_allclose(values, expected, rtol=1e-4)


@pytest.mark.parametrize("pool", ["max", "average"])
@pytest.mark.parametrize("sizes", SIZES)
def test_gradient_is_that_of_the_equations(sizes, pool):
    """By each of the student's maps; none by the teacher's."""
    teacher, student = data(sizes, batch=1)
    for i, own in enumerate(student):
        gradient = numerics.gradient(
            lambda x, i=i: losses.flow_of_solution(teacher, replaced(student, i, x), pool), own
        )
        expected = finite_differences.gradient(
            lambda x, i=i: oracles.flow_of_solution(teacher, replaced(student, i, x), pool).sum(),
            own,
        )
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
    gradient = numerics.gradient(
        lambda x: losses.flow_of_solution(replaced(teacher, 0, x), student, pool), teacher[0]
    )
    np.testing.assert_array_equal(gradient, 0.0)


def replaced(maps, i, x):
    return [*maps[:i], x, *maps[i + 1 :]]


def test_by_hand():
    """1 x 2 maps of one channel: G = (1 * 3 + 2 * 4) / 2 = 5.5, and 0 for the student."""
    teacher = [np.array([1.0, 2.0]).reshape(1, 1, 2, 1), np.array([3.0, 4.0]).reshape(1, 1, 2, 1)]
    student = [np.zeros((1, 1, 2, 1)), np.ones((1, 1, 2, 1))]
    assert numerics.values(losses.flow_of_solution, teacher, student)[0] == 5.5**2
    # Pooled by its maximum, 2, and by its mean, 1.5, to one place beside 3.
    teacher[1] = np.full((1, 1, 1, 1), 3.0)
    student[1] = np.zeros((1, 1, 1, 1))
    assert numerics.values(losses.flow_of_solution, teacher, student)[0] == 36.0
    average = numerics.values(losses.flow_of_solution, teacher, student, "average")
    assert average[0] == 4.5**2


def test_the_mean_is_the_papers_over_the_channels_of_a_pair():
    teacher, student = data("8 to 5")
    paper = numerics.values(losses.flow_of_solution, teacher, student)
    mean = numerics.values(losses.flow_of_solution, teacher, student, mode="mean")
    np.testing.assert_allclose(mean * CHANNELS[0] * CHANNELS[1], paper, rtol=1e-6)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    sizes=st.sampled_from(sorted(SIZES)),
    pool=st.sampled_from(["max", "average"]),
    scale=st.floats(0.01, 100),
)
def test_zero_at_equal_features_and_what_changes_nothing(seed, sizes, pool, scale):
    teacher, student = data(sizes, seed=seed)

    def value(student):
        return numerics.values(losses.flow_of_solution, teacher, student, pool)

    np.testing.assert_array_equal(value(teacher), 0.0)
    plain = value(student)
    assert np.all(plain > 0)
    if len(student) == 2:
        # A factor that one map takes and the other gives.
        moved = value([student[0] * scale, student[1] / scale])
        np.testing.assert_allclose(moved, plain, rtol=1e-5)
    order = [1, 0]
    backwards = numerics.values(
        losses.flow_of_solution, *([x[order] for x in own] for own in (teacher, student)), pool
    )
    np.testing.assert_allclose(backwards, plain[order], rtol=1e-5)


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_places_may_move_together(seed):
    teacher, student = data("alike", seed=seed)
    order = np.random.default_rng(seed).permutation(16)
    moved = [x.reshape(2, 16, -1)[:, order].reshape(x.shape) for x in student]
    plain = numerics.values(losses.flow_of_solution, teacher, student)
    np.testing.assert_allclose(
        numerics.values(losses.flow_of_solution, teacher, moved), plain, rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["max", "average"])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("kind", ["random", "constant", "duplicates", "one sample"])
def test_finite_everywhere(kind, scale, pool):
    teacher, student = data("8 to 5", 1 if kind == "one sample" else 3, "float32")
    if kind == "constant":
        student = [np.ones_like(x) for x in student]
    elif kind == "duplicates":
        for x in (*teacher, *student):
            x[1] = x[0]
    student = [np.float32(scale) * x for x in student]
    values = numerics.values(losses.flow_of_solution, teacher, student, pool)
    gradients = [
        numerics.gradient(
            lambda x, i=i: losses.flow_of_solution(teacher, replaced(student, i, x), pool), map_
        )
        for i, map_ in enumerate(student)
    ]
    numerics.assert_finite(values, *gradients)
    expected = oracles.flow_of_solution(teacher, student, pool)
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    if kind == "duplicates":
        assert values[0] == values[1]
        np.testing.assert_array_equal(gradients[0][0], gradients[0][1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    """Squares of products of 300 are beyond float16."""
    teacher, student = data("8 to 4", dtype="float32")
    teacher, student = (
        [keras.ops.cast(300.0 * x, dtype) for x in own] for own in (teacher, student)
    )
    values = losses.flow_of_solution(teacher, student)
    assert keras.backend.standardize_dtype(values.dtype) == "float32"
    lifted = [
        [numerics.to_numpy(keras.ops.cast(x, "float32")) for x in o] for o in (teacher, student)
    ]
    expected = oracles.flow_of_solution(*lifted)
    assert expected.max() > 65504
    np.testing.assert_allclose(numerics.to_numpy(values), expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["max", "average"])
@pytest.mark.parametrize("sizes", ["8 to 4", "8 to 5"])
def test_compiled_by_xla(sizes, pool):
    teacher, student = (
        [keras.ops.convert_to_tensor(x) for x in own] for own in data(sizes, dtype="float32")
    )

    def both(teacher, student):
        def of_first(x):
            return losses.flow_of_solution(teacher, replaced(student, 0, x), pool)

        return of_first(student[0]), numerics.slope(of_first, student[0])

    for result, plain in zip(numerics.compiled(both)(teacher, student), both(teacher, student)):
        plain = numerics.to_numpy(plain)
        scale = np.abs(plain).max()
        np.testing.assert_allclose(numerics.to_numpy(result), plain, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.tensorflow
def test_unknown_batch_height_and_width():
    """As fully convolutional networks are traced, where both maps have the unknown size."""
    import tensorflow as tf

    teacher, student = data("alike", dtype="float32")
    specs = [tf.TensorSpec((None, None, None, channels)) for channels in CHANNELS[:2]]
    function = tf.function(losses.flow_of_solution, input_signature=[specs, specs])
    expected = oracles.flow_of_solution(teacher, student)
    np.testing.assert_allclose(function(teacher, student), expected, rtol=1e-5)


def test_class_reduces_weighs_and_restores():
    teacher, student = data("three maps", 4, "float32")
    values = oracles.flow_of_solution(teacher, student, "average", "mean")
    loss = losses.FlowOfSolution(pool="average", mode="mean")
    assert float(loss(teacher, student)) == pytest.approx(values.mean(), rel=1e-5)
    weight = np.array([0.0, 1.0, 2.0, 0.5], "float32")
    weighted = loss(teacher, student, sample_weight=weight)
    assert float(weighted) == pytest.approx((weight * values).mean(), rel=1e-5)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(restored) is losses.FlowOfSolution and restored.get_config() == loss.get_config()
    assert float(restored(teacher, student)) == float(loss(teacher, student))
    assert (losses.FlowOfSolution().pool, losses.FlowOfSolution().mode) == ("max", "paper")


@pytest.mark.parametrize("kwargs", [{"pool": "mean"}, {"mode": "sum"}], ids=str)
def test_bad_arguments_are_named(kwargs):
    (name, value), *_ = kwargs.items()
    with pytest.raises(ValueError, match=rf"Expected `{name}`.*Received: {name}={value!r}"):
        losses.FlowOfSolution(**kwargs)


BAD_FEATURES = [
    ([(2, 4, 4, 3)], [(2, 4, 4, 3)], "two or more maps"),
    ([(2, 4, 4, 3)] * 3, [(2, 4, 4, 3)] * 2, "as many features"),
    ([(2, 4, 4, 3), (2, 3)], [(2, 4, 4, 3)] * 2, r"maps of shape \(batch, height"),
    ([(2, 4, 4, 3)] * 2, [(2, 4, 4, 3), (2, 4, 4, 2)], "as many channels"),
    ([(2, 4, 4, 3)] * 2, [(3, 4, 4, 3)] * 2, "the same batch"),
]


@pytest.mark.parametrize("teacher, student, expected", BAD_FEATURES, ids=str)
def test_features_that_do_not_fit_are_named(teacher, student, expected):
    with pytest.raises(ValueError, match=f"Expected .*{expected}.*Received: ") as error:
        losses.flow_of_solution(*([np.ones(shape) for shape in o] for o in (teacher, student)))
    assert f"teacher_features.shape={teacher}, student_features.shape={student}." in str(
        error.value
    )
    if expected != "the same batch":
        assert losses.FlowOfSolution().misfit(teacher, student) in str(error.value)


def test_one_tensor_is_no_list_of_maps():
    with pytest.raises(ValueError, match=r"two or more maps.*features\.shape=\(2, 4, 4, 3\)"):
        losses.flow_of_solution(np.ones((2, 4, 4, 3)), np.ones((2, 4, 4, 3)))


def test_sizes_unknown_and_different_are_told_before_training():
    misfit = losses.FlowOfSolution().misfit
    known, unknown = (None, 8, 8, 3), (None, None, None, 3)
    assert misfit([known, unknown], [known, known]) == "maps of known height and width"
    assert misfit([unknown, unknown], [known, known]) is None


TAPS = ["stem", "stage1", "stage2"]


def nets(width=3):
    return [
        kd.backbones.small_cnn((12, 8, 1), 4, channels, name=name)
        for channels, name in ((3, "teacher"), (width, "student"))
    ]


def test_a_wrapper_names_the_term_before_training():
    with pytest.raises(ValueError, match="as many channels.* term 'flow_of_solution'.*teacher"):
        kd.Distiller(*nets(2), kd.Term(losses.FlowOfSolution(), TAPS, TAPS))
    with pytest.raises(ValueError, match="two or more maps.* term 'flow_of_solution'"):
        kd.Distiller(*nets(), kd.Term(losses.FlowOfSolution(), "stem", "stem"))


@pytest.mark.slow
@pytest.mark.parametrize("width, connectors", [(3, False), (2, True)])
def test_a_term_trains_the_student_and_is_saved(width, connectors, tmp_path):
    """With equal channels and no helper; with the connectors of others' code."""
    keras.utils.set_random_seed(5)
    teacher, student = nets(width)
    fits = None
    if connectors:
        fits = [kd.regressors.ConvBatchNorm(c, name=f"fit{i}") for i, c in enumerate([3, 3, 6])]
    term = kd.Term(losses.FlowOfSolution(), TAPS, TAPS, weight=0.1, connector=fits)
    model = kd.Distiller(teacher, student, term, student_loss_weight=1e-6)
    model.compile(keras.optimizers.SGD(0.05), LABELS)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 12, 8, 1)).astype("float32"), rng.integers(0, 4, 8)
    before = {v.path: numerics.to_numpy(v) for v in model.trainable_variables}
    frozen = [numerics.to_numpy(v) for v in teacher.variables]
    mine, theirs = (
        list(kd.tap(net, TAPS)(x, training=training)["features"].values())
        for net, training in ((student, True), (teacher, False))
    )
    if connectors:
        mine = [fit(map_, training=True) for fit, map_ in zip(fits, mine)]
    expected = oracles.flow_of_solution(
        *([numerics.to_numpy(m) for m in o] for o in (theirs, mine))
    )
    logs = model.fit(x, y, batch_size=8, epochs=1, verbose=0).history
    assert logs["flow_of_solution"][0] == pytest.approx(expected.mean(), rel=1e-4)
    moved = {
        v.path: np.abs(numerics.to_numpy(v) - before[v.path]).max()
        for v in model.trainable_variables
    }
    assert all(moved[path] > 1e-5 for path in moved if "conv/" in path)
    assert sum("conv/" in path for path in moved) == (6 if connectors else 3)
    for old, variable in zip(frozen, teacher.variables):
        np.testing.assert_array_equal(numerics.to_numpy(variable), old)
    model.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    for a, b in zip(loaded.trainable_variables, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(numerics.to_numpy(a), numerics.to_numpy(b))
    student.save(tmp_path / "s.keras")
    assert len(keras.saving.load_model(tmp_path / "s.keras").weights) == len(nets(width)[1].weights)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_two_replicas_take_the_step_of_one(two_replicas):
    import tensorflow as tf

    def weights_after(strategy):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            term = kd.Term(losses.FlowOfSolution(), *[["stem", "features"]] * 2, weight=0.1)
            teacher, student = (network(n, 3, batch_norm=False) for n in ("teacher", "student"))
            model = kd.Distiller(teacher, student, term)
            model.compile(keras.optimizers.SGD(0.01), LABELS)
        before = [v.numpy() for v in model.student.trainable_variables]
        model.fit(*samples(8), batch_size=8, epochs=1, shuffle=False, verbose=0)
        return before, [v.numpy() for v in model.student.trainable_variables]

    before, alone = weights_after(tf.distribute.get_strategy())
    _, together = weights_after(two_replicas)
    assert np.abs(alone[0] - before[0]).max() > 1e-3
    for one, both in zip(alone, together):
        np.testing.assert_allclose(both, one, rtol=1e-4, atol=1e-6)
