"""BSS: selection, targets, the attack by hand and against the oracle, the loss, a Distiller."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

import keras_distill as kd
from keras_distill import losses
from keras_distill.losses import boundary_support
from tests.losses import numerics
from tests.oracles import boundary_support as oracles
from tests.oracles import finite_differences

ROOT = np.sqrt(2.0)
# z = x, x', x': the slope from class 0 to 1 or 2 is (-1, 1).
PLANE = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], "float32")


def linear(kernel):
    """A network of images of any shape, without a variable."""
    kernel = np.asarray(kernel, "float32")

    def network(images):
        flat = keras.ops.reshape(images, (-1, kernel.shape[0]))
        return keras.ops.matmul(flat, kernel)

    return network


def attacked(kernel, image, target, **options):
    images = np.asarray([image], "float32")
    moved = boundary_support.attack(linear(kernel), images, np.array([target], "int32"), **options)
    return numerics.to_numpy(moved)[0]


# Selection and targets.


def test_those_are_eligible_that_both_networks_name_rightly():
    teacher = np.array([[2.0, 1.0, 0.0]] * 4)
    student = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2.0, 1.0, 0.0], [3.0, 0.0, 2.0]])
    right, score = boundary_support.eligible(teacher, student, np.array([0, 0, 0, 1]))
    np.testing.assert_array_equal(right, [True, False, True, False])
    t, s = oracles.softmax(teacher[0]), oracles.softmax(student[0])
    expected = (t[1] - s[1]) ** 2 + (t[2] - s[2]) ** 2
    np.testing.assert_allclose(score[0], expected, rtol=1e-5)
    assert float(score[2]) == 0.0
    right, _ = boundary_support.eligible(teacher, teacher, np.array([0, -1, 0, 1]))
    np.testing.assert_array_equal(right, [True, False, True, False])


def test_targets_are_the_inverse_of_the_distribution():
    """Of p = .5, .3, .15, .05 and the label 0, the others have .6, .3 and .1."""
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]] * 8, "float32"))
    draws = np.array([0.0, 0.3, 0.59, 0.61, 0.89, 0.91, 0.9999, 1.0], "float32")
    labels = np.zeros(8, "int32")
    targets = numerics.to_numpy(boundary_support.target_classes(logits, labels, draws))
    np.testing.assert_array_equal(targets, [1, 1, 1, 2, 2, 3, 3, 3])
    targets = boundary_support.target_classes(logits[:, [2, 0, 3, 1]], labels + 1, draws)
    np.testing.assert_array_equal(targets, [3, 3, 3, 0, 0, 2, 2, 2])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 7), scale=st.floats(0.01, 300.0))
def test_targets_are_other_classes_and_those_of_the_oracle(seed, classes, scale):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(6, classes))).astype("float32")
    labels = logits.argmax(axis=-1)
    draws = rng.uniform(0.02, 0.98, 6).astype("float32")
    targets = numerics.to_numpy(boundary_support.target_classes(logits, labels, draws))
    assert (targets != labels).all() and targets.min() >= 0 and targets.max() < classes
    if scale < 5.0:
        expected = [
            oracles.target_class(*row) for row in zip(logits.astype("float64"), labels, draws)
        ]
        assert (targets == expected).mean() > 0.8  # A draw may lie within rounding of a step.


# The attack, by hand.


@pytest.mark.tensorflow
def test_the_attack_shrinks_the_lead_by_its_factor():
    """z = (1, .5, .5): each step takes .3 sqrt(2) of the lead of class 0 over 1."""
    for steps in (1, 2, 5):
        lead = 0.5
        for _ in range(steps):
            lead -= 0.3 * ROOT * (lead + 1e-4)
        x = attacked(PLANE, [1.0, 0.5], 1, steps=steps)
        assert x[0] - x[1] == pytest.approx(lead, rel=1e-4)
        # It moves along (-1, 1).
        assert x[0] + x[1] == pytest.approx(1.5, rel=1e-6)
    one = attacked(PLANE, [1.0, 0.5], 1, steps=1)
    step = 0.3 * 0.5001 / ROOT
    np.testing.assert_allclose(one, [1.0 - step, 0.5 + step], rtol=1e-6)


@pytest.mark.tensorflow
def test_the_step_that_crosses_is_kept_and_the_last():
    """A step size of .8 takes 1.13 of the lead: class 1 is ahead after one step."""
    crossed = attacked(PLANE, [1.0, 0.5], 1, steps=1, step_size=0.8)
    assert crossed[0] < crossed[1]
    np.testing.assert_array_equal(attacked(PLANE, [1.0, 0.5], 1, steps=10, step_size=0.8), crossed)
    # Towards class 1 across class 2, which is larger than it everywhere: a third class.
    kernel = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    third = attacked(kernel, [1.0, 0.4], 1, steps=3)
    z = third @ kernel
    assert z.argmax() == 2 and z[1] < z[0]
    np.testing.assert_array_equal(third, attacked(kernel, [1.0, 0.4], 1, steps=10))


@pytest.mark.tensorflow
def test_the_attack_stays_within_its_bounds():
    moved = attacked(10 * PLANE, [2.0, 1.9], 1, steps=1, bounds=(-2.0, 2.0))
    assert moved[1] == 2.0
    assert attacked(10 * PLANE, [2.0, 1.9], 1, steps=1, bounds=None)[1] > 2.0
    np.testing.assert_array_equal(
        attacked(PLANE, [5.0, 0.0], 1, steps=1, bounds=(0.0, 1.0)), [1, 1]
    )


@pytest.mark.tensorflow
def test_an_image_without_a_slope_stays():
    kernel = np.array([[1.0, 1.0], [0.5, 0.5]])
    np.testing.assert_array_equal(attacked(kernel, [0.3, 0.7], 1), np.float32([0.3, 0.7]))
    constant = boundary_support.attack(
        lambda x: keras.ops.zeros((1, 3)), np.ones((1, 2), "float32"), np.array([1], "int32")
    )
    np.testing.assert_array_equal(constant, 1.0)


@pytest.mark.tensorflow
@pytest.mark.parametrize("score", ["logits", "probs"])
@pytest.mark.parametrize("step_size, bounds", [(0.3, (-2.5, 2.5)), (1.5, None), (0.7, (0.0, 1.0))])
def test_the_attack_is_the_oracles(score, step_size, bounds):
    rng = np.random.default_rng(4)
    kernel = rng.normal(size=(12, 5)).astype("float32")
    images = rng.uniform(size=(9, 2, 3, 2)).astype("float32")
    base = (images.reshape(9, 12) @ kernel).argmax(axis=-1)
    targets = (base + rng.integers(1, 5, 9)) % 5
    options = {"steps": 6, "step_size": step_size, "bounds": bounds, "score": score}
    moved = boundary_support.attack(linear(kernel), images, targets.astype("int32"), **options)
    expected = [
        oracles.attacked(kernel.astype("float64"), image, target, **options)
        for image, target in zip(images.reshape(9, 12), targets)
    ]
    np.testing.assert_allclose(np.reshape(moved, (9, 12)), expected, rtol=1e-3, atol=1e-4)
    assert np.abs(moved - images).max() > 1e-2


# The loss.


def compared(loss, teacher, student, images, labels):
    images = keras.ops.convert_to_tensor(images)
    return loss.compared(linear(teacher), linear(student), (images, images), labels)


def case(batch=12, classes=4, seed=2):
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(6, classes))
    student = (teacher + 0.7 * rng.normal(size=(6, classes))).astype("float32")
    images = rng.normal(size=(batch, 6)).astype("float32")
    labels = (images @ teacher).argmax(axis=-1)
    labels[::5] = (labels[::5] + 1) % classes
    return teacher.astype("float32"), student, images, labels


@pytest.mark.tensorflow
@pytest.mark.parametrize("attack_size", [64, 5, 1])
def test_the_mean_over_the_attacked_images_is_the_oracles(attack_size):
    teacher, student, images, labels = case()
    loss = losses.BoundarySupport(attack_size, step_size=0.9, seed=1)
    twin = keras.random.SeedGenerator(1)
    draws = numerics.to_numpy(keras.random.uniform((12,), seed=twin))
    target, logits = compared(loss, teacher, student, images, labels)
    eligible = (images @ teacher).argmax(-1) == labels
    eligible &= (images @ student).argmax(-1) == labels
    assert 5 < eligible.sum() < 12
    assert int(target[1].numpy().sum()) == min(attack_size, eligible.sum())
    expected = oracles.loss(
        teacher.astype("float64"),
        student.astype("float64"),
        images.astype("float64"),
        labels,
        draws,
        attack_size,
        steps=10,
        step_size=0.9,
        bounds=(-2.5, 2.5),
    )
    assert float(loss(target, logits)) == pytest.approx(expected, rel=1e-4)
    values = numerics.to_numpy(loss.call(target, logits))
    assert values.shape == (12,) and (values[~target[1].numpy()] == 0).all()


@pytest.mark.tensorflow
def test_nothing_to_attack_is_zero():
    teacher, student, images, labels = case()
    wrong = (images @ teacher).argmin(axis=-1)
    loss = losses.BoundarySupport()
    for labels in (wrong, np.full(12, -1)):
        target, logits = compared(loss, teacher, student, images, labels)
        assert float(loss(target, logits)) == 0.0
        gradient = numerics.gradient(lambda x, t=target: loss.call(t, x), numerics.to_numpy(logits))
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.tensorflow
def test_the_gradient_reaches_the_student_alone():
    import tensorflow as tf

    teacher, student, images, labels = case()
    teacher, student = tf.Variable(teacher), tf.Variable(student)
    images = tf.constant(images)
    loss = losses.BoundarySupport()
    with tf.GradientTape() as tape:
        tape.watch(images)
        networks = (lambda x: tf.matmul(x, teacher)), (lambda x: tf.matmul(x, student))
        target, logits = loss.compared(*networks, (images, images), labels)
        value = loss(target, logits)
    of_teacher, of_student, of_images = tape.gradient(value, [teacher, student, images])
    assert of_teacher is None and of_images is None
    assert np.abs(of_student.numpy()).max() > 1e-3


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 10.0))
def test_equal_logits_give_the_entropy_and_no_gradient(seed, temperature):
    logits = np.random.default_rng(seed).normal(size=(3, 5)).astype("float32")
    loss = losses.BoundarySupport(temperature=temperature)
    target = logits, np.array([True, False, True])
    probs = np.array([oracles.softmax(row / temperature) for row in logits])
    entropy = -(probs * np.log(probs)).sum(axis=-1)
    assert float(loss(target, logits)) == pytest.approx(entropy[[0, 2]].mean(), rel=1e-5)
    gradient = numerics.gradient(lambda x: loss.call(target, x), logits)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_soft_cross_entropy_and_its_gradient(dtype):
    rng = np.random.default_rng(6)
    teacher, student = 4 * rng.normal(size=(2, 4, 5))
    if dtype != "float64":
        teacher, student = (keras.ops.cast(x.astype("float32"), dtype) for x in (teacher, student))
    mask = np.array([True, True, False, True])
    loss = losses.BoundarySupport(temperature=2.0)
    own = [numerics.to_numpy(keras.ops.cast(x, "float32")) for x in (teacher, student)]
    own = [teacher, student] if dtype == "float64" else own
    own = [np.asarray(x, "float64") for x in own]
    values = numerics.values(loss.call, (teacher, mask), student)
    expected = oracles.soft_cross_entropy(*own, 2.0) * mask * 4 / 3
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    if dtype == "float64":
        gradient = numerics.gradient(lambda x: loss.call((teacher, mask), x), student)
        slope = finite_differences.gradient(
            lambda x: (oracles.soft_cross_entropy(own[0], x, 2.0) * mask).sum() * 4 / 3, student
        )
        np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-7)


# Arguments, weights of the paper.

BAD_ARGUMENTS = [
    ({"attack_size": 0}, "attack_size=0"),
    ({"steps": 1.5}, "steps=1.5"),
    ({"step_size": 0}, "step_size=0"),
    ({"bounds": (1.0, 0.0)}, r"`bounds` to be \(low, high\).*bounds=\(1.0, 0.0\)"),
    ({"bounds": 2.5}, "bounds=2.5"),
    ({"score": "margin"}, "'logits', 'probs'"),
    ({"temperature": -1}, "temperature=-1"),
]


@pytest.mark.parametrize("kwargs, received", BAD_ARGUMENTS, ids=str)
def test_bad_arguments_are_named_at_construction(kwargs, received):
    with pytest.raises(ValueError, match=received) as error:
        losses.BoundarySupport(**kwargs)
    assert str(error.value).startswith("Expected `")


def test_config_round_trip():
    loss = losses.BoundarySupport(32, 5, bounds=(0, 1), score="probs", seed=3, name="near")
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(restored) is losses.BoundarySupport and restored.get_config() == loss.get_config()
    assert loss.on_inputs and not loss.on_logits and not loss.needs_ids and not loss.needs_labels
    assert losses.BoundarySupport(bounds=None).get_config()["bounds"] is None


def test_the_documented_schedules_are_the_papers():
    """r = 3 (1 - e / E) + 1 and r_a = 2 max(1 - 4e / 3E, 0), at the start of each epoch."""
    epochs, steps = 80, 196
    attack = kd.schedules.Linear(2.0, 0.0, 3 * epochs * steps // 4)
    soft = kd.schedules.Linear(4 / 9, 1 / 9, epochs * steps)
    for epoch in range(epochs):
        weight = float(attack(epoch * steps))
        assert weight == pytest.approx(2 * max(1 - 4 * epoch / (3 * epochs), 0), abs=1e-6)
        # SoftTargets at T = 3 holds the factor T^2 = 9.
        assert 9 * float(soft(epoch * steps)) == pytest.approx(3 * (1 - epoch / epochs) + 1)
    assert float(attack(60 * steps)) == 0.0
    kd.Term("mse", weight=attack)
