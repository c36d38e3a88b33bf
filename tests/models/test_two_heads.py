"""DeiT's wrapper: each head learns from its own, the mean of both is what is used."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from tests.models import nets
from tests.oracles import finite_differences
from tests.oracles import two_heads as oracle

RATE = 0.1


def student(ending=None, seed=2):
    """A hidden layer and two heads; `ending` is behind their mean, or "each" softmax before it."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((nets.FEATURES,))
    hidden = layers.Dense(5, "tanh", name="hidden")(inputs)
    names = ("head", "distillation_head")
    x = [layers.Dense(nets.CLASSES, name=name)(hidden) for name in names]
    if ending == "each":
        x = [keras.ops.softmax(logits) for logits in x]
    x = layers.Average(name="mean")(x)
    if ending == "softmax":
        x = layers.Softmax(name="softmax")(x)
    return keras.Model(inputs, x, name="student")


def teacher(activation=None):
    keras.utils.set_random_seed(1)
    return nets.mlp(activation, name="teacher")


def wrapper_of(losses=None, ending=None, activation=None, **options):
    wrapper = kd.TwoHeadDistiller(teacher(activation), student(ending), losses, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=ending is None)
    wrapper.compile(keras.optimizers.SGD(RATE), loss)
    return wrapper


def array(x):
    return keras.ops.convert_to_numpy(x).astype("float64")


def soft():
    return kd.Term(kd.losses.SoftTargets(3.0), weight=0.1)


MODES = {
    "hard": (oracle.hard, lambda: None, {}, "hard_targets"),
    "soft": (oracle.soft, soft, {"student_loss_weight": 0.9}, "soft_targets"),
}


@pytest.mark.parametrize("ending", [None, "softmax", "each"])
@pytest.mark.parametrize("mode", MODES)
def test_a_step_is_the_papers(mode, ending):
    equation, losses, options, name = MODES[mode]
    activation = None if ending is None else "softmax"
    wrapper = wrapper_of(losses(), ending, activation, **options)
    x, y = nets.vectors(), nets.class_ids()
    before = [array(v) for v in wrapper.student.trainable_variables]
    logits = teacher()  # the same weights, without the softmax
    logits.set_weights(wrapper.teacher.get_weights())
    given = x.astype("float64"), y, array(logits(x))
    logs = wrapper.train_on_batch(x, y, return_dict=True)
    for found, expected in zip(("loss", "label_loss", name), equation(before, *given)):
        assert float(logs[found]) == pytest.approx(expected, rel=1e-5)
    for i, variable in enumerate(wrapper.student.trainable_variables):

        def total(value, i=i):
            return equation([*before[:i], value, *before[i + 1 :]], *given)[0]

        expected = before[i] - RATE * finite_differences.gradient(total, before[i])
        np.testing.assert_allclose(array(variable), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "still"),
    [({"student_loss_weight": 0.0}, "head"), ({"weight": 0.0}, "distillation_head")],
)
def test_each_head_learns_from_its_own_alone(options, still):
    term = kd.Term(kd.losses.HardTargets(), weight=options.pop("weight", 1.0))
    wrapper = wrapper_of(term, **options)
    before = {name: array(wrapper.student.get_layer(name).kernel) for name in ("hidden", still)}
    wrapper.train_on_batch(nets.vectors(), nets.class_ids())
    assert np.abs(array(wrapper.student.get_layer("hidden").kernel) - before["hidden"]).max() > 0
    np.testing.assert_array_equal(array(wrapper.student.get_layer(still).kernel), before[still])


@pytest.mark.parametrize("evaluate_terms", [False, True])
def test_the_mean_is_evaluated_and_measured(evaluate_terms):
    wrapper = kd.TwoHeadDistiller(teacher(), student())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    wrapper.compile("sgd", loss, metrics=["accuracy"], evaluate_terms=evaluate_terms)
    wrapper.optimizer.learning_rate = 0.0
    x, y = nets.vectors(), nets.class_ids()
    weights = [array(v) for v in wrapper.student.trainable_variables]
    both = oracle.heads(weights, x.astype("float64"))
    mean = (both[0] + both[1]) / 2
    np.testing.assert_allclose(wrapper.predict(x, verbose=0), mean, rtol=1e-4, atol=1e-5)
    trained = wrapper.train_on_batch(x, y, return_dict=True)
    logs = wrapper.evaluate(x, y, verbose=0, return_dict=True)
    for found in (trained, logs):
        assert float(found["accuracy"]) == pytest.approx(np.mean(mean.argmax(-1) == y), rel=1e-5)
    label_loss = oracle.cross_entropy(y, mean)
    term = oracle.hard(weights, x.astype("float64"), y, array(wrapper.teacher(x)))[2]
    expected = 0.5 * label_loss + 0.5 * term if evaluate_terms else label_loss
    assert float(logs["loss"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("ending", ["softmax", "each"])
def test_other_losses_see_the_distillation_head(ending):
    """A loss of Keras reads probabilities; one of features, a layer; `class_map`, the classes."""
    terms = [
        kd.Term(keras.losses.KLDivergence(), name="of_keras"),
        kd.Term(kd.losses.SoftTargets(1.0), name="ours"),
        kd.Term(kd.losses.Hint(), "hidden", "hidden", connector="auto"),
    ]
    wrapper = wrapper_of(terms, ending, "softmax")
    logs = wrapper.train_on_batch(nets.vectors(), nets.class_ids(), return_dict=True)
    assert float(logs["of_keras"]) == pytest.approx(float(logs["ours"]), rel=1e-4)
    assert float(logs["hint"]) > 0


def test_stages_may_have_students_of_one_head():
    assistant = nets.mlp(name="assistant")
    stages = [
        kd.Stage("assistant", 1, kd.losses.SoftTargets(), student=assistant),
        kd.Stage("student", 1, kd.losses.HardTargets(), teacher=assistant),
    ]
    wrapper = wrapper_of(stages=stages)
    heads = [wrapper.student.get_layer(name) for name in ("head", "distillation_head")]
    before = [array(head.kernel) for head in heads]
    history = wrapper.fit(nets.vectors(), nets.class_ids(), batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"]).all() and len(history["loss"]) == 2
    assert all(np.any(array(head.kernel) != old) for head, old in zip(heads, before))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"distillation_head": "head"}, "another layer than `label_head`"),
        ({"label_head": "hidden"}, "`label_head` to be a layer that gives logits.*gives the shape"),
        ({"distillation_head": "heads"}, "heads"),
        ({"label_head": None}, "label_head=None"),
    ],
)
def test_what_is_no_head_is_refused(options, said):
    with pytest.raises((TypeError, ValueError), match=f"Expected.*{said}"):
        kd.TwoHeadDistiller(teacher(), student(), **options)


def test_students_that_do_not_return_one_mean_of_logits_are_refused():
    inputs = keras.Input((nets.FEATURES,))
    names = ("head", "distillation_head")
    heads = [layers.Dense(nets.CLASSES, name=name) for name in names]
    with pytest.raises(ValueError, match="one output.*Return the mean"):
        kd.TwoHeadDistiller(teacher(), keras.Model(inputs, [head(inputs) for head in heads]))
    heads = [layers.Dense(nets.CLASSES, "softmax", name=name) for name in names]
    mean = layers.Average()([head(inputs) for head in heads])
    with pytest.raises(ValueError, match="gives logits.*ends in a softmax"):
        kd.TwoHeadDistiller(teacher(), keras.Model(inputs, mean))
