"""The recipes: every one trains on digits, and forwards as many images as it says."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

import keras_distill as kd
from keras_distill.recipes import schemes
from keras_distill.recipes import tasks
from keras_distill.recipes import training
from keras_distill.recipes.schemes import Options
from keras_distill.reporting import RunFolder

NAMES = [
    "baseline",
    "label_smoothing",
    "distillation",
    "function_matching",
    "mutual",
    "dlb",
    "self_distillation",
    "cs_kd",
    "ddgsd",
    "ps_kd",
    "tf_kd_self",
    "tf_kd_virtual",
    "born_again",
    "one",
    "mean_teacher",
]
IMAGES = 40
EPOCHS = 2


@keras.saving.register_keras_serializable(package="tests")
class CountsRows(keras.layers.Layer):
    """Counts the images that any network forwards."""

    counter = None

    def call(self, inputs):
        if self.counter is not None:
            self.counter.assign_add(ops.shape(inputs)[0])
        return inputs


@pytest.fixture
def forwarded():
    """A function that says how many images were forwarded so far."""
    import tensorflow as tf

    CountsRows.counter = tf.Variable(0)
    yield lambda: int(CountsRows.counter.numpy())
    CountsRows.counter = None


def student(seed):
    """A small CNN of the library with a counter before its head."""
    keras.utils.set_random_seed(seed)
    model = kd.backbones.small_cnn((8, 8, 1), 10, (2, 3, 4))
    counted = CountsRows(name="counter")(model.get_layer("pool").output)
    outputs = keras.layers.Dense(10, name="head")(counted)
    return keras.Model(model.inputs, outputs)


def task_of(recipe, options, build=student):
    digits = kd.data.load("digits").train
    chosen = [np.flatnonzero(digits.labels == label)[: IMAGES // 10] for label in range(10)]
    images = digits.subset(np.concatenate(chosen))
    return tasks.Task(build, images, recipe.setting(options), seed=3, ensemble=2)


OPTIONS = Options(epochs=EPOCHS, batch_size=16)


def test_every_scheme_has_its_recipe():
    assert schemes.names() == NAMES
    for recipe in schemes.RECIPES:
        assert schemes.named(recipe.name) is recipe
        assert "https://" in recipe.reference
        assert recipe.summary.endswith(".") and len(recipe.summary) < 100
        assert "Published" in recipe.make.__doc__


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("name", NAMES)
def test_recipe_trains_and_forwards_what_it_says(name, tmp_path, forwarded):
    recipe = schemes.named(name)
    task = task_of(recipe, OPTIONS)
    teacher = None
    run = RunFolder(tmp_path)
    if recipe.first is not None:
        first = recipe.first(task)
        teacher = training.carry_out(run, "teacher", first)
        assert forwarded() == first.epochs * first.forwards.all
        CountsRows.counter.assign(0)
    plan = recipe.plan(task, OPTIONS, teacher)
    before = plan.network.get_weights()
    if name not in ("mean_teacher", "mutual"):
        for one, two in zip(before, student(3).get_weights()):
            np.testing.assert_array_equal(one, two)  # the same beginning in every recipe
    trained = training.carry_out(run, name, plan)
    assert forwarded() == plan.epochs * plan.forwards.all
    if recipe.views == 1:
        assert plan.epochs == EPOCHS and plan.forwards.student == IMAGES
    assert int(plan.model.optimizer.iterations) == plan.epochs * plan.steps
    assert trained.output_shape == (None, 10)
    assert any(np.any(a != b) for a, b in zip(before, trained.get_weights()))
    lines = run.read_metrics()
    own = [line for line in lines if line["model"] == name]
    assert [line["epoch"] for line in own] == list(range(plan.all_epochs))
    assert np.isfinite([line["loss"] for line in own]).all()


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["resnet8", "wrn-10-1"])
def test_exits_and_branches_are_found_in_each_family(name):
    from keras_distill.recipes import running

    split = kd.data.load("digits", limit=20, test_limit=10)
    options = Options("paper", student=name, epochs=1).filled()
    running.check([schemes.named("one"), schemes.named("self_distillation")], split, options)


def test_equal_images_by_default_and_equal_epochs_when_asked():
    twice = [recipe for recipe in schemes.RECIPES if recipe.views == 2]
    assert [recipe.name for recipe in twice] == ["dlb", "ddgsd"]
    base = schemes.named("baseline")
    for recipe in twice:
        own = recipe.setting(Options())
        assert (own.epochs, own.batch_size) == (30, 32)
        own = recipe.setting(Options(budget="epochs"))
        assert (own.epochs, own.batch_size) == (60, 64)
        own = recipe.setting(Options("paper", epochs=10))
        assert own.epochs == 5 and base.setting(Options("paper", epochs=10)).epochs == 10
        assert recipe.setting(Options(epochs=7), as_given=True).epochs == 7


def test_small_setting_is_the_same_for_all():
    base = schemes.named("baseline").setting(Options())
    assert base == schemes.SMALL
    for recipe in schemes.RECIPES:
        own = recipe.setting(Options())
        same = dataclasses.replace(
            own, epochs=base.epochs, batch_size=base.batch_size, augment=base.augment
        )
        assert same == base


def test_options_reach_every_recipe():
    options = Options(learning_rate=0.3, batch_size=8, augment=True, flip=True)
    for recipe in schemes.RECIPES:
        for as_given in (False, True):
            found = recipe.setting(options, as_given)
            assert (found.learning_rate, found.augment, found.flip) == (0.3, True, True)
    assert schemes.named("ddgsd").setting(Options(augment=False)).augment
    assert not schemes.named("baseline").setting(Options("paper", augment=False)).augment


def test_published_settings_stand_where_the_docstring_says_so():
    """Epochs, batch and rate of a recipe's docstring are those of its paper setting."""
    for recipe in schemes.RECIPES:
        text = " ".join(recipe.make.__doc__.split())
        if f"batch {recipe.paper.batch_size}" not in text:
            continue
        assert f"rate {recipe.paper.learning_rate}" in text
        assert f"{recipe.paper.epochs}" in text


def test_networks_of_the_settings():
    small, published = Options().filled(), Options("paper").filled()
    assert (small.student, small.teacher, small.ensemble) == ("small-8-16-32",) * 2 + (4,)
    assert (published.student, published.teacher, published.ensemble) == ("resnet20", "resnet56", 1)
    assert Options(student="small-2").filled().teacher == "small-2"
    assert Options(teacher="a.keras").filled().ensemble == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"setting": "big"}, "setting"),
        ({"budget": "seconds"}, "budget"),
        ({"epochs": 0}, "epochs"),
        ({"ensemble": 0}, "ensemble"),
        ({"looks": 0}, "looks"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"student": "a.keras"}, "network's name"),
        ({"teacher": "a.keras", "ensemble": 2}, "ensemble"),
    ],
)
def test_bad_options(wrong, said):
    with pytest.raises(ValueError, match=f"Expected.*{said}"):
        Options(**wrong)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="Nearest: mutual"):
        schemes.named("mutal")
    with pytest.raises(ValueError, match="baseline"):
        schemes.named("xyz")
