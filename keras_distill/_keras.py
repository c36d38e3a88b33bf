"""Every private Keras name that the library leans on, in one place.

Each has a test in `tests/test_keras_internals.py` that tells when Keras changes it.
"""

import io
import re

import keras
from keras import ops
from keras.src.backend import get_keras_mask
from keras.src.backend import set_keras_mask
from keras.src.losses.loss import reduce_weighted_values
from keras.src.losses.loss import scale_loss_for_distribution
from keras.src.losses.loss import unscale_loss_for_distribution
from keras.src.models.functional import Functional
from keras.src.saving import saving_lib
from keras.src.trainers.data_adapters.data_adapter_utils import unpack_x_y_sample_weight
from keras.src.utils.tracking import no_automatic_dependency_tracking

__all__ = [
    "Functional",
    "call_loss",
    "first_inputs",
    "flatten_layers",
    "get_keras_mask",
    "is_empty",
    "no_automatic_dependency_tracking",
    "rand_augment_images",
    "rand_augment_transformation",
    "register_tree_node",
    "scale_loss_for_distribution",
    "set_keras_mask",
    "to_snake_case",
    "unlocked",
    "unpack_x_y_sample_weight",
    "unscale_loss_for_distribution",
    "weights_in_memory",
]


def to_snake_case(name):
    """`SoftTargets` -> `soft_targets`, `DIST` -> `dist`."""
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()


def call_loss(loss, y_true, y_pred, sample_weight=None, always_reduce=False, **arguments):
    """`keras.losses.Loss.__call__`, with three differences; `loss.call` gets the `arguments`.

    * Integers (labels, ids) keep their dtype: Keras casts all of `y_true` to the loss's
      float dtype, in which ids above 2**24 collide.
    * A loss that returns one number for the batch is divided by the number of replicas and
      weighed by the mean weight.
    * With `always_reduce`, `reduction=None` means the mean: a training step needs one number.
    """

    def convert(x):
        x = ops.convert_to_tensor(x)
        if keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)):
            return ops.cast(x, loss.dtype)
        return x

    mask = None if isinstance(y_pred, (tuple, list, dict)) else get_keras_mask(y_pred)
    with keras.name_scope(loss.name):
        values = loss.call(
            keras.tree.map_structure(convert, y_true),
            keras.tree.map_structure(convert, y_pred),
            **arguments,
        )
        values = ops.convert_to_tensor(values, dtype=loss.dtype)
        reduction = loss.reduction
        if always_reduce and reduction in (None, "none"):
            reduction = "sum_over_batch_size"
        if len(values.shape) == 0:
            return _reduce_scalar(values, sample_weight, reduction)
        return reduce_weighted_values(
            values,
            sample_weight=sample_weight,
            mask=mask,
            reduction=reduction,
            dtype=loss.dtype,
        )


def _reduce_scalar(value, sample_weight, reduction):
    """A loss that is one number for the batch: Keras would not divide it by the replicas."""
    if sample_weight is not None:
        value = value * ops.mean(ops.cast(sample_weight, value.dtype))
    return value if reduction == "sum" else scale_loss_for_distribution(value)


def flatten_layers(layer):
    """`layer` and all the layers below it, each once."""
    return list(layer._flatten_layers(include_self=True, recursive=True))


def rand_augment_transformation(layer, images, seeds):
    """A draw of a `keras.layers.RandAugment`, all of it from `seeds`, a seed generator.

    The layer's own method gives its parts seeds of a state that moves with each call.
    """
    names = layer._AUGMENT_LAYERS
    chosen = layer.backend.random.randint((layer.num_ops,), 0, len(names), seed=seeds)
    draws = {
        name: getattr(layer, name).get_random_transformation(images, training=True, seed=seeds)
        for name in names
    }
    return {"transforms": draws, "layer_idxes": chosen}


def rand_augment_images(layer, images, transformation):
    """The images of a `keras.layers.RandAugment`, in `tf.data`: of its parts, the chosen run.

    The layer's own method runs all of them and then chooses.
    """
    import tensorflow as tf

    draws = transformation["transforms"]
    images = tf.cast(images, layer.compute_dtype)
    for i in range(layer.num_ops):
        parts = [
            lambda name=name, x=images: tf.ensure_shape(
                tf.cast(getattr(layer, name).transform_images(x, draws[name]), x.dtype), x.shape
            )
            for name in draws
        ]
        images = tf.switch_case(transformation["layer_idxes"][i], parts)
    return images


def register_tree_node(cls, flatten, unflatten):
    """Makes `cls` a node of Keras's trees (optree's "keras" namespace)."""
    import optree

    optree.register_pytree_node(cls, flatten, unflatten, namespace="keras")


def is_empty(x):
    """Whether a data set, an array or a structure of arrays is known to hold nothing."""
    if hasattr(x, "cardinality"):
        return int(x.cardinality()) == 0
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches == 0
    arrays = [leaf for leaf in keras.tree.flatten(x) if hasattr(leaf, "shape")]
    return bool(arrays) and len(arrays[0].shape) > 0 and arrays[0].shape[0] == 0


def first_inputs(x, rows=8):
    """The inputs of the first few samples, or `None` where looking would use them up."""
    if hasattr(x, "element_spec") and hasattr(x, "take"):
        for element in x.take(1):
            return _head_rows(unpack_x_y_sample_weight(element)[0], rows)
    if isinstance(x, keras.utils.PyDataset):
        return _head_rows(unpack_x_y_sample_weight(x[0])[0], rows)
    leaves = keras.tree.flatten(x)
    if leaves and all(hasattr(leaf, "shape") for leaf in leaves):
        return _head_rows(x, rows)
    return None


def _head_rows(structure, rows):
    return keras.tree.map_structure(lambda leaf: leaf[:rows], structure)


def unlocked(layer):
    """A context in which a built layer takes another sub-layer."""
    return _Unlocked(layer)


class _Unlocked:
    def __init__(self, layer):
        self.layer = layer

    def __enter__(self):
        self.layer._tracker.unlock()

    def __exit__(self, *error):
        if self.layer.built:
            self.layer._lock_state()


def serialized(value):
    """Schedules, layers and functions as their configs; numbers, text and `None` as they are."""
    if isinstance(value, (list, tuple)):
        return [serialized(part) for part in value]
    return keras.saving.serialize_keras_object(value) if callable(value) else value


def serialized_objects(values):
    """Registered objects that cannot be called, such as terms, as their configs."""
    return [keras.saving.serialize_keras_object(value) for value in values]


def deserialized(value):
    """The reverse of `serialized`."""
    if isinstance(value, (list, tuple)):
        return [deserialized(part) for part in value]
    return keras.saving.deserialize_keras_object(value) if isinstance(value, dict) else value


def arguments_of(config, custom_objects=None):
    """The arguments of a constructor from a config whose values are `serialized`."""
    with keras.saving.custom_object_scope(custom_objects or {}):
        return {name: deserialized(value) for name, value in config.items()}


def weights_in_memory(model):
    """What `model.save_weights` writes to a `.weights.h5` file, as an `io.BytesIO`.

    HDF5 does not survive a disk that is full: each of its open objects fails once more when it is
    closed, and the process may crash. Python writes such bytes, and raises one `OSError`.
    """
    file = io.BytesIO()
    store = saving_lib.H5IOStore(file, mode="w")
    saving_lib._save_state(model, store, None, inner_path="", visited_saveables=set())
    store.close()
    return file


def changed_state(model, result, change):
    """What Keras's step on JAX returned, `(logs, state)`, with the state that a change makes of it.

    Args:
        model: The model of the step.
        result: What the step returned.
        change: A function that assigns variables of the model.
    """
    logs, (trained, others, *rest) = result
    own = model.trainable_variables + model.non_trainable_variables + model.optimizer.variables
    mapping = list(zip(own, [*trained, *others, *rest[0]], strict=True))
    with keras.StatelessScope(state_mapping=mapping) as scope:
        change()
    trained, others = (
        [
            value if (new := scope.get_current_value(variable)) is None else new
            for variable, value in zip(variables, values)
        ]
        for variables, values in (
            (model.trainable_variables, trained),
            (model.non_trainable_variables, others),
        )
    )
    return logs, (trained, others, *rest)
