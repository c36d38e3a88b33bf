"""The public names: all that is promised exists, is documented, and nothing else leaks out."""

import ast
import dataclasses
import importlib
import inspect
import pathlib

import keras
import pytest

import keras_distill
from keras_distill import _keras
from keras_distill import losses
from keras_distill.losses.base import DistillationLoss

PACKAGE = pathlib.Path(keras_distill.__file__).parent

# `design.md` section 3. A parameter may be added behind these, and none may be renamed or moved.
PROMISED = {
    "BornAgain": "student generations temperature label_weight variant",
    "ClassWiseDistiller": "student temperature weight student_from_logits",
    "Distiller": "teacher student distillation_losses student_loss_weight class_map stages "
    "teacher_from_logits student_from_logits teacher_dtype",
    "DLBModel": "student temperature weight fused_forward",
    "DistortionDistiller": "student temperature weight feature_weight features detach",
    "EnsembleTeacher": "members average weights objective",
    "LabelSmoothing": "smoothing from_logits spread",
    "MeanTeacher": "student decay weight consistency teacher_training",
    "MutualLearner": "students temperature weight peers reduce update devices",
    "NativeEnsemble": "model branch_at branches temperature weight gate",
    "ProgressiveDistiller": "student samples alpha epochs table",
    "ReusedClassifierDistiller": "teacher student teacher_layer student_layer",
    "SelfDistiller": "model exits temperature alpha feature_weight feature_loss preset",
    "Stage": "name epochs terms trainable optimizer",
    "TeacherFreeDistiller": "student mode preset temperature alpha",
    "Term": "loss teacher student weight temperature connector name",
    "TwoHeadDistiller": "teacher student distillation_losses student_loss_weight label_head "
    "distillation_head",
    "tap": "model paths",
    "data.balanced_batches": "images labels batch_size samples_per_class",
    "data.class_pairs": "images labels batch_size",
    "data.label_noise": "dataset rate kind seed",
    "data.load": "",
    "data.overlap_batches": "dataset half_batch_size augment carry seed start_epoch",
    "data.superclass_batches": "images labels features batch_size clusters samples_per_cluster",
    "data.Targets": "",
    "data.two_views": "images labels batch_size augment",
    "data.with_ids": "dataset",
    "export.saved_model": "model path",
    "export.tflite": "model path quantize representative_data io",
    "export.check_parity": "model path data",
}

# Made to be subclassed, never saved themselves.
BASES = {"DistillationLoss", "DistillationModel"}

# Losses whose weights or step leave nothing for a pure function to do.
WITHOUT_FUNCTION = {"DistillationLoss", "ContrastiveRepresentation", "BoundarySupport"}

# What a loss cannot be built without, for the tests that build every loss.
EXAMPLE_ARGUMENTS = {
    "AlphaDivergence": {"alpha": 0.5},
    "ContrastiveRepresentation": {"samples": 8},
}

# Constructor arguments that every Keras loss takes.
KERAS_ARGUMENTS = {"name", "reduction", "dtype", "kwargs"}

PUBLIC_PACKAGES = sorted(
    path.parent.name
    for path in PACKAGE.glob("*/__init__.py")
    if not path.parent.name.startswith("_")
)
PUBLIC_MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_"))


def public_objects():
    """`dotted name -> object` of all functions and classes that the `__all__` lists name."""
    found = {}
    for place in ["", *PUBLIC_PACKAGES]:
        dotted = f"keras_distill.{place}".rstrip(".")
        module = importlib.import_module(dotted)
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found[f"{dotted}.{name}"] = value
    return found


def loss_classes():
    return [
        getattr(losses, name)
        for name in losses.__all__
        if inspect.isclass(getattr(losses, name)) and name != "DistillationLoss"
    ]


def loss_functions():
    return [getattr(losses, n) for n in losses.__all__ if inspect.isfunction(getattr(losses, n))]


def build(cls):
    """An instance of a loss, from its defaults or the example arguments."""
    required = [
        name
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if name != "self"
        and parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    arguments = EXAMPLE_ARGUMENTS.get(cls.__name__, {})
    assert set(required) <= set(arguments), (
        f"{cls.__name__} cannot be built without {required}: add them to EXAMPLE_ARGUMENTS."
    )
    return cls(**arguments)


def own_parameters(function, skip):
    """`name -> default` of a signature's parameters, less those to skip."""
    parameters = inspect.signature(function).parameters
    return {name: value.default for name, value in parameters.items() if name not in skip}


def groups_of_all(path):
    """The entries of a module's `__all__`, in the groups that comments make."""
    source = path.read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            break
    else:
        return []
    groups = [[]]
    for line in source.splitlines()[node.lineno - 1 : node.end_lineno]:
        if line.strip().startswith("#"):
            groups.append([])
        groups[-1] += [entry for entry in line.split('"')[1::2] if not line.strip().startswith("#")]
    return [group for group in groups if group]


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_promised_name_and_parameters(name):
    value = keras_distill
    for part in name.split("."):
        value = getattr(value, part)
    expected = PROMISED[name].split()
    target = value.__init__ if inspect.isclass(value) else value
    received = [p for p in inspect.signature(target).parameters if p != "self"]
    assert received[: len(expected)] == expected


@pytest.mark.parametrize("place", ["", *PUBLIC_PACKAGES])
def test_all_names_exist_and_none_is_missing(place):
    module = importlib.import_module(f"keras_distill.{place}".rstrip("."))
    listed = list(module.__all__)
    assert len(listed) == len(set(listed))
    assert [name for name in listed if not hasattr(module, name)] == []
    assert [name for name in listed if name.startswith("_") and name != "__version__"] == []
    # Whatever else can be reached is a submodule or private.
    leaked = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in listed and not inspect.ismodule(value)
    ]
    assert leaked == []
    # Modules of others do not show as ours (`keras_distill.losses.keras`).
    foreign = [
        name
        for name, value in vars(module).items()
        if inspect.ismodule(value)
        and not name.startswith("_")
        and not value.__name__.startswith("keras_distill")
    ]
    assert foreign == []


@pytest.mark.parametrize("place", ["", *PUBLIC_PACKAGES])
def test_all_lists_are_sorted_within_their_groups(place):
    groups = groups_of_all(PACKAGE / place / "__init__.py")
    assert groups, "no `__all__` written as a list"
    for group in groups:
        assert group in (sorted(group), sorted(group, key=str.lower))


def test_version_is_that_of_the_version_file():
    from keras_distill import _version

    assert keras_distill.__version__ == _version.__version__


def test_docstring_of_the_package_names_its_parts():
    """The package's docstring is the map of the library."""
    parts = [name for name in [*PUBLIC_PACKAGES, *PUBLIC_MODULES] if name in keras_distill.__all__]
    assert [name for name in parts if name not in keras_distill.__doc__] == []


@pytest.mark.parametrize("name", sorted(public_objects()))
def test_public_object_has_a_docstring(name):
    text = inspect.getdoc(public_objects()[name])
    assert text
    assert text.strip().splitlines()[0].strip(), "the first line says what it is"


@pytest.mark.parametrize("name", sorted(public_objects()))
def test_docstring_names_every_parameter(name):
    """Each constructor or function argument is explained where the user looks for it."""
    value = public_objects()[name]
    target = value.__init__ if inspect.isclass(value) else value
    if inspect.isclass(value) and (
        "__init__" not in vars(value)
        or dataclasses.is_dataclass(value)
        or issubclass(value, Exception)
    ):
        return  # inherited, or a record whose fields say what they are
    documented = inspect.getdoc(value) + (inspect.getdoc(target) or "")
    skipped = {"self", "args", "kwargs", "name", "reduction", "dtype"}
    missing = [
        parameter
        for parameter in inspect.signature(target).parameters
        if parameter not in skipped and parameter not in documented
    ]
    assert missing == []


@pytest.mark.parametrize("name", sorted(public_objects()))
def test_keras_objects_are_registered_under_our_name(name):
    """So that a saved file loads without `custom_objects`, and no name clashes with another's."""
    value = public_objects()[name]
    savable = (keras.layers.Layer, keras.losses.Loss, keras.metrics.Metric)
    savable += (keras.optimizers.Optimizer, keras.optimizers.schedules.LearningRateSchedule)
    if inspect.isclass(value) and issubclass(value, savable) and value.__name__ not in BASES:
        assert keras.saving.get_registered_name(value) == f"keras_distill>{value.__name__}"


@pytest.mark.parametrize(
    ("camel", "snake"),
    [
        ("SoftTargets", "soft_targets"),
        ("LogitMSE", "logit_mse"),
        ("DecoupledKD", "decoupled_kd"),
        ("NormalizedKD", "normalized_kd"),
        ("MultiLevelKD", "multi_level_kd"),
        ("DIST", "dist"),
        ("AdaptiveAlphaDivergence", "adaptive_alpha_divergence"),
        ("ReviewKD", "review_kd"),
        ("Hint", "hint"),
    ],
)
def test_snake_case_of_class_names(camel, snake):
    assert _keras.to_snake_case(camel) == snake


@pytest.mark.parametrize("cls", loss_classes(), ids=lambda cls: cls.__name__)
def test_loss_class_has_its_function(cls):
    if cls.__name__ not in WITHOUT_FUNCTION:
        assert _keras.to_snake_case(cls.__name__) in losses.__all__


@pytest.mark.parametrize("function", loss_functions(), ids=lambda function: function.__name__)
def test_loss_function_has_its_class(function):
    assert function.__name__ in {_keras.to_snake_case(cls.__name__) for cls in loss_classes()}


@pytest.mark.parametrize("function", loss_functions(), ids=lambda function: function.__name__)
def test_loss_function_takes_the_teacher_first(function):
    first, second, *_ = inspect.signature(function).parameters
    assert first.startswith("teacher_")
    assert second == first.replace("teacher_", "student_", 1)


@pytest.mark.parametrize("cls", loss_classes(), ids=lambda cls: cls.__name__)
def test_loss_and_function_share_options_and_defaults(cls):
    function = getattr(losses, _keras.to_snake_case(cls.__name__), None)
    if function is None or issubclass(cls, keras.layers.Layer):
        return  # a layer's weights are the function's tensors
    first, second, *_ = inspect.signature(function).parameters
    of_function = own_parameters(function, {first, second, "labels", "ids"})
    assert own_parameters(cls.__init__, {"self", *KERAS_ARGUMENTS}) == of_function


@pytest.mark.parametrize("cls", loss_classes(), ids=lambda cls: cls.__name__)
def test_loss_config_round_trip(cls):
    loss = build(cls)
    assert isinstance(loss, DistillationLoss)
    assert loss.name == _keras.to_snake_case(cls.__name__)
    config = loss.get_config()
    assert set(own_parameters(cls.__init__, {"self", "kwargs", "dtype"})) <= set(config)
    assert cls.from_config(config).get_config() == config
    revived = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(revived) is cls
    assert revived.get_config() == config
