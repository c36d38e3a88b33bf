"""The type hints of the public signatures: all are there, and all can be read."""

import importlib
import inspect
import pathlib
import typing

import numpy as np
import pytest

import keras_distill
from keras_distill import _types
from tests.test_public_api import PUBLIC_MODULES
from tests.test_public_api import PUBLIC_PACKAGES

PACKAGE = pathlib.Path(keras_distill.__file__).parent
COMMANDS = {"cli", "cli_deploy", "cli_errors", "cli_options", "cli_start"}
# Of the names with underscores, those that a user calls.
CALLED = {"__init__", "__call__", "__len__"}


def is_ours(value):
    return getattr(value, "__module__", "").startswith("keras_distill")


def is_of(module, value):
    return getattr(value, "__module__", None) == module.__name__


def functions_of(name, value):
    """`{dotted name: function}` of a function; of a class with its bases; of a module's names."""
    if inspect.ismodule(value):
        own = [n for n, part in vars(value).items() if is_of(value, part) and not n.startswith("_")]
        parts = {n: getattr(value, n) for n in getattr(value, "__all__", own)}
    elif inspect.isclass(value):
        members = [pair for c in reversed(value.__mro__) if is_ours(c) for pair in vars(c).items()]
        parts = {n: part for n, part in members if n in CALLED or not n.startswith("_")}
    else:
        value = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        value = inspect.unwrap(value) if callable(value) else value
        # What `dataclasses` and `collections` write has the hints of the fields.
        written = inspect.isfunction(value) and value.__code__.co_filename.endswith(".py")
        return {name: value} if written and is_ours(value) else {}
    found = {}
    for own, part in parts.items():
        if not inspect.isclass(value) or not inspect.isclass(part):
            found |= functions_of(f"{name}.{own}", part)
    return found


def public_functions():
    """All public functions and methods, each once, under one of its names."""
    places = ["", *PUBLIC_PACKAGES, *(name for name in PUBLIC_MODULES if name not in COMMANDS)]
    found = {}
    for place in places:
        dotted = f"keras_distill.{place}".rstrip(".")
        found |= functions_of(dotted, importlib.import_module(dotted))
    return {function: name for name, function in sorted(found.items())}


FUNCTIONS = public_functions()


def test_the_walk_reaches_methods_bases_and_nested_modules():
    from keras_distill.models.base import DistillationModel
    from keras_distill.recipes import paper

    assert len(FUNCTIONS) > 500
    assert {
        keras_distill.tap,
        keras_distill.Term.__init__,
        keras_distill.data.Targets.labels.fget,
        keras_distill.data.TeacherCache.build.__func__,
        keras_distill.reporting.plots.confusions,
        paper.dlb,
        DistillationModel.train_step,
        DistillationModel.step.fget,
    } <= set(FUNCTIONS)


def test_every_public_signature_is_annotated():
    missing = []
    for function, name in FUNCTIONS.items():
        signature = inspect.signature(function)
        parts = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
        missing += [f"{name}({p.name})" for p in parts if p.annotation is p.empty]
        if signature.return_annotation is signature.empty:
            missing.append(f"{name} -> ?")
    assert missing == []


def test_every_annotation_resolves():
    broken = {}
    for function, name in FUNCTIONS.items():
        try:
            typing.get_type_hints(function)
        except (NameError, TypeError, AttributeError) as error:
            broken[name] = str(error)
    assert broken == {}


def test_a_default_of_none_is_among_the_types():
    """`seed: int = None` misleads; `None` has to be named where it is the default."""
    wrong = []
    for function, name in FUNCTIONS.items():
        hints = typing.get_type_hints(function)
        for parameter in inspect.signature(function).parameters.values():
            hint = hints.get(parameter.name)
            known = hint is typing.Any or type(None) in typing.get_args(hint)
            if parameter.default is None and not known:
                wrong.append(f"{name}({parameter.name}: {hint})")
    assert wrong == []


@pytest.mark.parametrize(
    ("alias", "value"),
    [
        (_types.PathLike, pathlib.Path("x")),
        (_types.LossLike, keras_distill.losses.SoftTargets()),
        (_types.LossLike, lambda teacher, student: student),
        (_types.NumberOrSchedule, keras_distill.schedules.Constant(1.0)),
        (_types.OptimizerLike, "adam"),
    ],
)
def test_aliases_hold_what_the_library_takes(alias, value):
    kinds = [typing.get_origin(part) or part for part in typing.get_args(alias)]
    assert any(isinstance(value, kind) for kind in kinds)
    assert not any(isinstance(np.zeros(1), kind) for kind in kinds)


def test_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").read_bytes() == b""
