"""Networks on devices of their own. TensorFlow only."""

import contextlib
import warnings

import keras

from keras_distill import _checks
from keras_distill import _keras
from keras_distill import distribution


def checked_devices(devices, count):
    """`None`, or full names of `count` devices of this machine; raises where they do not fit."""
    if devices is None:
        return None
    distribution.require_tensorflow("`devices`")
    import tensorflow as tf

    if isinstance(devices, str) or not isinstance(devices, (list, tuple)) or len(devices) != count:
        raise ValueError(
            _checks.message(f"`devices` to be a list of {count}, one a student", "devices", devices)
        )
    if tf.distribute.has_strategy():
        raise ValueError(
            "Expected `devices` without a `tf.distribute` strategy. Received: devices="
            f"{devices!r} inside the scope of {type(tf.distribute.get_strategy()).__name__}. "
            "Choose one: a device a student, or all students on each replica."
        )
    known = {_short(device.name): device.name for device in tf.config.list_logical_devices()}
    for device in devices:
        if not isinstance(device, str) or _short(device) not in known:
            raise ValueError(
                _checks.message(
                    f"`devices` to be among {', '.join(known)}", "devices", list(devices)
                )
            )
    return [_short(device) for device in devices]


def is_known(devices):
    """Whether this machine has all these devices."""
    if devices is None or not distribution.is_tensorflow():
        return devices is None
    import tensorflow as tf

    known = {_short(device.name) for device in tf.config.list_logical_devices()}
    return {_short(device) for device in devices} <= known


def devices_here(devices):
    """The devices of a saved cohort; `None`, with a warning, where this machine lacks them."""
    if is_known(devices):
        return devices
    warnings.warn(
        f"The cohort was saved with devices={devices}, which this machine does not have: it is "
        "loaded without.",
        stacklevel=3,
    )
    return None


def _short(name):
    """`"/device:gpu:0"` -> `"GPU:0"`."""
    return name.rsplit("/", 1)[-1].upper().removeprefix("DEVICE:")


def on_device(device):
    """A context that places operations on `device`; `None` leaves the choice to TensorFlow."""
    if device is None:
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.device(device)


def place(model, device):
    """Creates the variables of `model` anew on `device`, with their values.

    Integers (seeds, counters) stay where they are. Functions that Keras traced with the old
    variables are dropped.
    """
    for variable in model.variables:
        value = variable.value
        if not keras.backend.is_float_dtype(variable.dtype) or _short(value.device) == device:
            continue
        array = value.numpy()
        with on_device(device):
            variable._initialize(array)
    for layer in _keras.flatten_layers(model):
        if isinstance(layer, keras.Model):
            layer.train_function = layer.test_function = layer.predict_function = None
