"""Argument checks with one wording.

Every message has the same three parts: what was expected, what was received
(`name=value`), and, where it helps, what to do. All checks run at construction
or in `compile`, never inside a training step.
"""

import math
import numbers


def message(expected, name, value, hint=""):
    """Builds the library's error text.

    Args:
        expected: A clause such as "`temperature` to be a positive number".
        name: The argument's name as the caller wrote it.
        value: What was received.
        hint: One sentence that says what to do.

    Returns:
        "Expected {expected}. Received: {name}={value!r}. {hint}"
    """
    text = f"Expected {expected}. Received: {name}={value!r}."
    return f"{text} {hint}" if hint else text


def is_number(value):
    """Whether `value` is a Python or NumPy real number (not a bool)."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_finite(value):
    """Whether `value` is a real number that a float can hold."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:  # a whole number above all floats
        return False


def positive(name, value):
    """Returns `value` as a float; raises unless it is finite and above 0."""
    if not is_finite(value) or value <= 0:
        raise ValueError(message(f"`{name}` to be a positive finite number", name, value))
    return float(value)


def non_negative(name, value):
    """Returns `value` as a float; raises unless it is finite and at least 0."""
    if not is_finite(value) or value < 0:
        raise ValueError(message(f"`{name}` to be a finite number, 0 or more", name, value))
    return float(value)


def finite(name, value):
    """Returns `value` as a float; raises unless it is a finite number."""
    if not is_finite(value):
        raise ValueError(message(f"`{name}` to be a finite number", name, value))
    return float(value)


def positive_integer(name, value):
    """Returns `value` as an int; raises unless it is a whole number above 0."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value <= 0:
        raise ValueError(message(f"`{name}` to be a positive whole number", name, value))
    return int(value)


def one_of(name, value, choices):
    """Returns `value`; raises unless it is one of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(message(f"`{name}` to be one of {listed}", name, value))
    return value


def instance(name, value, kind, description, hint=""):
    """Returns `value`; raises `TypeError` unless it is an instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(
            f"Expected `{name}` to be {description}. "
            f"Received: {name}={value!r} of type {type(value).__name__}."
            + (f" {hint}" if hint else "")
        )
    return value


def nearest_names(name, names, count=3):
    """The `count` entries of `names` that read most like `name`."""
    import difflib

    close = difflib.get_close_matches(name, names, n=count, cutoff=0.4)
    tail = name.rsplit("/", 1)[-1]
    ends = [n for n in names if n.rsplit("/", 1)[-1] == tail and n not in close]
    return (ends + close)[:count]
