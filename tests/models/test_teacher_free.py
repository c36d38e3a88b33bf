"""Tf-KD: the virtual teacher in both conventions, and the student as its own teacher."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests.models import nets
from tests.oracles import finite_differences
from tests.oracles import generations as oracle


def linear(classes=nets.CLASSES):
    inputs = keras.Input((nets.FEATURES,))
    return keras.Model(inputs, keras.layers.Dense(classes, name="head")(inputs), name="linear")


def compiled(student=None, loss="ce", **options):
    wrapper = kd.TeacherFreeDistiller(nets.sharpen(student or linear()), **options)
    loss = nets.cross_entropy() if loss == "ce" else loss
    wrapper.compile(nets.sgd(0.5), loss, jit_compile=False)
    return wrapper


CONVENTIONS = [
    ({"alpha": 0.3}, lambda y, z: oracle.paper_term(y, z, 20.0, 0.99), 0.3),
    (
        {"temperature": 3.0, "correct_probability": 0.9},
        lambda y, z: oracle.paper_term(y, z, 3.0, 0.9),
        0.1,
    ),
    (
        {"preset": "official", "multiplier": 100.0},
        lambda y, z: oracle.official_term(y, z, 20.0, 0.99, 100.0),
        0.1,
    ),
    (
        {"preset": "official", "temperature": 40.0, "alpha": 0.95, "mean_over": "samples"},
        lambda y, z: oracle.official_term(y, z, 40.0, 0.99, float(nets.CLASSES)),
        0.95,
    ),
]


@pytest.mark.parametrize(("options", "term", "alpha"), CONVENTIONS)
def test_the_virtual_teacher_equals_the_oracle_in_value_and_gradient(options, term, alpha):
    x, y = nets.vectors(), nets.class_ids()
    wrapper = compiled(mode="virtual", **options)
    weights = [w.astype("float64") for w in wrapper.student.get_weights()]

    def total(kernel):
        logits = oracle.scores([kernel, weights[1]], x)
        hard = float(np.mean(oracle.cross_entropies(y, logits)))
        return (1 - alpha) * hard + alpha * term(y, logits)

    logs = wrapper.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["loss"], total(weights[0]), rtol=1e-5)
    expected = term(y, oracle.scores(weights, x))
    np.testing.assert_allclose(logs["virtual_teacher"], expected, rtol=1e-5)
    step = 0.5 * finite_differences.gradient(total, weights[0])
    own = wrapper.student.get_weights()[0] - weights[0]
    np.testing.assert_allclose(own, -step, rtol=1e-3, atol=1e-6)


def test_the_probabilities_of_the_code_are_nearly_even():
    """The figures that the specification names for five classes at T = 20."""
    p = oracle.softmax(oracle.virtual_teacher(np.array([0]), 5, 0.99) / 20.0)[0]
    np.testing.assert_allclose(p[:2], [0.208, 0.198], atol=5e-4)


def test_one_hot_labels_equal_class_ids():
    x, y = nets.vectors(), nets.class_ids()
    ids = compiled(mode="virtual", alpha=0.5)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    one_hot = compiled(nets.copy_of(ids.student), loss, mode="virtual", alpha=0.5)
    one_hot.student.set_weights(ids.student.get_weights())
    for labels, wrapper in ((y, ids), (np.eye(nets.CLASSES)[y], one_hot)):
        wrapper.fit(x, labels, batch_size=8, shuffle=False, epochs=2, verbose=0)
    nets.assert_same_weights(ids.student, one_hot.student, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["ce", None])
def test_unlabelled_samples_have_no_virtual_teacher(loss):
    x, y = nets.vectors(8), nets.class_ids(8)
    y[3:] = -1
    wrapper = compiled(mode="virtual", alpha=0.5, loss=loss)
    logits = nets.predict(wrapper.student, x)
    logs = wrapper.train_on_batch(x, y, return_dict=True)
    expected = oracle.paper_term(y[:3], logits[:3].astype("float64"), 20.0, 0.99) * 3 / 8
    np.testing.assert_allclose(logs["virtual_teacher"], expected, rtol=1e-5)


def test_sample_weights_reach_the_term():
    x, y = nets.vectors(8), nets.class_ids(8)
    wrapper = compiled(mode="virtual")
    logits = nets.predict(wrapper.student, x).astype("float64")
    weight = np.array([0, 2, 0, 0, 2, 0, 0, 0], "float32")
    logs = wrapper.train_on_batch(x, y, weight, return_dict=True)
    rows = [1, 4]
    expected = oracle.paper_term(y[rows], logits[rows], 20.0, 0.99) * 2 * 2 / 8
    np.testing.assert_allclose(logs["virtual_teacher"], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [None, "official"])
def test_a_binary_head_equals_two_classes(preset):
    """One unit z stands for the pair [0, z]."""
    x, y = nets.vectors(), nets.class_ids() % 2
    one = nets.mlp("sigmoid", classes=1)
    two = nets.mlp(classes=2)
    for name in ("hidden", "head"):
        kernel, bias = one.get_layer(name).get_weights()
        if name == "head":
            kernel = np.concatenate([np.zeros_like(kernel), kernel], -1)
            bias = np.concatenate([np.zeros_like(bias), bias], -1)
        two.get_layer(name).set_weights([kernel, bias])
    logs = []
    for student, loss in ((one, keras.losses.BinaryCrossentropy()), (two, nets.cross_entropy())):
        wrapper = kd.TeacherFreeDistiller(student, "virtual", preset, temperature=4.0)
        wrapper.compile(nets.sgd(), loss)
        logs.append(wrapper.evaluate(x, y, verbose=0, return_dict=True))
        wrapper.compile(nets.sgd(), loss, evaluate_terms=True)
        logs[-1].update(wrapper.evaluate(x, y, verbose=0, return_dict=True))
    for name in ("label_loss", "virtual_teacher"):
        np.testing.assert_allclose(logs[0][name], logs[1][name], rtol=1e-4, err_msg=name)


def test_several_outputs_and_maps_of_labels():
    x = nets.vectors()
    wrapper = kd.TeacherFreeDistiller(nets.two_heads(), "virtual")
    wrapper.compile(nets.sgd(), [nets.cross_entropy(), nets.cross_entropy()])
    y = [nets.class_ids(), nets.class_ids() % 3]
    logits = nets.predict(wrapper.student, x)
    logs = wrapper.train_on_batch(x, y, return_dict=True)
    expected = sum(
        oracle.paper_term(labels, own.astype("float64"), 20.0, 0.99)
        for labels, own in zip(y, logits)
    )
    np.testing.assert_allclose(logs["virtual_teacher"], expected, rtol=1e-5)
    wrapper = kd.TeacherFreeDistiller(nets.two_heads(), "virtual", "official")
    wrapper.compile(nets.sgd(), [nets.cross_entropy(), nets.cross_entropy()])
    with pytest.raises(ValueError, match="one number of classes"):
        wrapper.train_on_batch(x, y)

    student = nets.tagger()
    wrapper = compiled(student, mode="virtual")
    ids, labels = nets.token_ids(), nets.class_ids((8, 5))
    logits = nets.predict(student, ids).astype("float64")
    logs = wrapper.train_on_batch(ids, labels, return_dict=True)
    mask = ids != 0
    expected = oracle.paper_term(labels[mask], logits[mask], 20.0, 0.99)
    np.testing.assert_allclose(logs["virtual_teacher"], expected, rtol=1e-4)


# Tf-KD_self.


SELF = [
    ({"alpha": 0.6, "temperature": 5.0}, 1.0, 0.6),
    ({"preset": "official", "temperature": 6.0, "alpha": 0.95, "multiplier": 50.0}, None, 0.95),
]


@pytest.mark.parametrize(("options", "factor", "alpha"), SELF)
def test_the_second_training_learns_from_the_first_one(options, factor, alpha):
    x, y = nets.vectors(), nets.class_ids()
    wrapper = compiled(seed=3, **options)
    starts = [wrapper.student.get_weights(), wrapper._fresh_copy(1).get_weights()]
    temperature = options["temperature"]
    first, _ = oracle.train(x, y, starts[:1], 2, 24, 0.5, 0.0, 1.0, 0.0)
    history = wrapper.fit(x, y, batch_size=24, epochs=2, shuffle=False, verbose=0)
    for own, value in zip(wrapper.trained_generations()[0].get_weights(), first[0]):
        np.testing.assert_allclose(own, value, rtol=1e-4, atol=1e-6)
    teacher, student = oracle.scores(first[0], x), oracle.scores(starts[1], x)
    term = oracle.official_self_term(teacher, student, temperature, 1.0)
    term *= nets.CLASSES if factor else options["multiplier"]
    expected = (1 - alpha) * np.mean(oracle.cross_entropies(y, student)) + alpha * term
    np.testing.assert_allclose(history.history["teacher"][0], term, rtol=1e-4)
    np.testing.assert_allclose(history.history["loss"][0], expected, rtol=1e-4)
    assert "teacher" not in history.generations[0]


def test_with_alpha_0_the_second_training_is_plain_fit():
    x, y = nets.vectors(), nets.class_ids()
    wrapper = compiled(alpha=0.0)
    alone = wrapper._fresh_copy(1)
    alone.compile(nets.sgd(0.5), nets.cross_entropy())
    arguments = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    wrapper.fit(x, y, **arguments)
    alone.fit(x, y, **arguments)
    nets.assert_same_weights(wrapper.student, alone, rtol=1e-5, atol=1e-6)


# Options.


def test_preset_sets_what_is_not_given():
    official = kd.TeacherFreeDistiller(linear(), "virtual", "official", mean_over="samples")
    assert (official.soften, official.student_temperature) == ("probabilities", 1.0)
    assert (official.temperature_squared, official.mean_over) == (False, "samples")
    clone = kd.TeacherFreeDistiller.from_config(official.get_config())
    assert clone.get_config() == official.get_config()
    trained = kd.TeacherFreeDistiller(linear(), preset="official", temperature=6.0)
    assert (trained.soften, trained.student_temperature) == ("logits", 6.0)
    assert (trained.temperature_squared, trained.mean_over) == (True, "elements")


def test_bad_arguments():
    for options, message in (
        ({"mode": "reg"}, "one of 'self', 'virtual'"),
        ({"preset": "paper"}, "one of None, 'official'"),
        ({"alpha": 1.1}, "from 0 to 1"),
        ({"temperature": 0}, "positive finite number"),
        ({"multiplier": -1}, "0 or more"),
        ({"mode": "virtual", "correct_probability": 1.0}, "above 0 and below 1"),
        ({"soften": "probabilities"}, "only with mode='virtual'"),
        ({"mode": "virtual", "soften": "both"}, "one of 'logits', 'probabilities'"),
        ({"mean_over": "classes"}, "one of 'samples', 'elements'"),
    ):
        with pytest.raises(ValueError, match=message):
            kd.TeacherFreeDistiller(linear(), **options)
    with pytest.raises(ValueError, match="which generation 0 learns from"):
        kd.TeacherFreeDistiller(linear()).compile("sgd")
    virtual = kd.TeacherFreeDistiller(linear(), "virtual")
    virtual.compile("sgd")
    with pytest.raises(ValueError, match="Expected labels, which the teacher is made of"):
        virtual.fit(nets.vectors(), verbose=0)
