"""The losses by name: their families, their papers, and which the command line can make."""

import inspect
import re

from keras_distill import _checks
from keras_distill import _keras
from keras_distill import losses
from keras_distill.losses._relation import RelationLoss

FAMILIES = ("response", "feature", "relation", "contrastive and boundary")

# Arguments of losses that the command line knows from the training.
SUPPLIED = {
    "bounds": lambda images, seed: (0.0, 1.0),  # what `data.batches` makes of images
    "labels": lambda images, seed: images.labels,
    "negatives": lambda images, seed: min(16384, len(images)),
    "samples": lambda images, seed: len(images),
    "seed": lambda images, seed: seed,
}


def names():
    """The names of all losses, family by family."""
    found = [name for name in losses.__all__ if _is_loss(name)]
    return sorted(found, key=lambda name: FAMILIES.index(family(name)))


def _is_loss(name):
    found = getattr(losses, name)
    return inspect.isclass(found) and found is not losses.DistillationLoss


def family(name):
    """One of `FAMILIES`."""
    cls = getattr(losses, name)
    if name == "BoundarySupport" or cls.needs_ids is True:
        return "contrastive and boundary"
    if cls.on_logits:
        return "response"
    return "relation" if issubclass(cls, RelationLoss) else "feature"


def summary(name):
    """What a loss is, with its paper, in a line, and the paper's address or None."""
    cls = getattr(losses, name)
    line = inspect.getdoc(cls).splitlines()[0].partition(": see")[0].rstrip(".")
    twin = getattr(losses, _keras.to_snake_case(name), None)
    for text in map(inspect.getdoc, filter(None, (twin, cls))):
        address = re.search(r"https?://[^\s)>]*[^\s)>.,;:]", text)
        if address:
            return line, address.group()
    return line, None


def listed():
    """The lines of `keras-distill losses`."""
    lines = []
    for name in names():
        title = f"{family(name)}:"
        if title not in lines:
            lines.append(title)
        line, address = summary(name)
        missing = unknown_arguments(name)
        in_python = f" (in Python: it needs {', '.join(missing)})" if missing else ""
        lines.append(f"  {name:26} {line}. {address or ''}".rstrip() + in_python)
    return lines


def unknown_arguments(name):
    """The arguments that a loss cannot do without and the command line does not know."""
    return [
        argument
        for argument, parameter in parameters(name).items()
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
        and argument not in SUPPLIED
    ]


def parameters(name):
    """The parameters of a loss's constructor, by name."""
    found = inspect.signature(getattr(losses, name).__init__).parameters
    return {argument: value for argument, value in found.items() if argument != "self"}


def supplied(name, images, seed):
    """The arguments of a loss that the command line knows.

    Args:
        name: The loss.
        images: The training `ImageData`.
        seed: The training's.
    """
    known = [argument for argument in parameters(name) if argument in SUPPLIED]
    return {argument: SUPPLIED[argument](images, seed) for argument in known}


def check(name, temperature=None):
    """Raises `ValueError` unless the command line can make the loss of that name.

    Args:
        name: What `--loss` says.
        temperature: What `--temperature` says, or None.
    """
    known = names()
    if name not in known:
        near = _checks.nearest_names(str(name), known)
        hint = f"Nearest: {', '.join(near)}." if near else ""
        expected = "`loss` to be one that `keras-distill losses` lists"
        raise ValueError(_checks.message(expected, "loss", name, hint))
    missing = unknown_arguments(name)
    if missing:
        raise ValueError(
            _checks.message(
                f"a `loss` that needs no {', '.join(missing)}",
                "loss",
                name,
                "Use that one in Python, in a kd.Term.",
            )
        )
    if temperature is not None and "temperature" not in parameters(name):
        raise ValueError(
            _checks.message(
                f"no `temperature` for {name}",
                "temperature",
                temperature,
                "It has none: leave the option out.",
            )
        )
