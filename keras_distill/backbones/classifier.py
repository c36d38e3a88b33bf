"""A head on any backbone, and the names of the backbone's stages."""

import keras
from keras import layers

from keras_distill import _checks
from keras_distill import _graph
from keras_distill import _keras


def build(backbone, classes, activation, pooling, dropout, name):
    """See `cv_classifier` and `hub_classifier`."""
    _checks.instance("backbone", backbone, keras.Model, "a backbone, a Keras model")
    classes = _checks.positive_integer("classes", classes)
    _checks.one_of("pooling", pooling, ("avg", "max", "token"))
    shape = getattr(backbone, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) not in (3, 4):
        expected = "`backbone` to return one map (batch, height, width, channels) or tokens"
        raise ValueError(_checks.message(expected, "output_shape", shape))
    inputs = keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), backbone.input
    )
    # Paths into a nested model begin with its name, which Keras would number.
    backbone.name = "backbone"
    x = backbone(inputs)
    x = _pool(x, pooling, getattr(backbone, "data_format", None))
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Dense(classes, activation=activation, name="head")(x)
    default = f"{_keras.to_snake_case(type(backbone).__name__)}_classifier"
    return keras.Model(inputs, x, name=name or default)


def _pool(x, pooling, data_format):
    if pooling == "token":
        if len(x.shape) != 3:
            expected = '`pooling` to be "avg" or "max" for a map of places'
            raise ValueError(_checks.message(expected, "pooling", pooling))
        return layers.Identity(name="pool")(x[:, 0])
    pools = {
        (3, "avg"): layers.GlobalAveragePooling1D,
        (3, "max"): layers.GlobalMaxPooling1D,
        (4, "avg"): layers.GlobalAveragePooling2D,
        (4, "max"): layers.GlobalMaxPooling2D,
    }
    return pools[len(x.shape), pooling](data_format=data_format, name="pool")(x)


def stages(model: keras.Model) -> dict[str, str]:
    """Lists the paths of the stages of a keras-cv or keras-hub network, or of one of ours.

    Args:
        model: A backbone, or a classifier that nests one.

    Returns:
        Dict of stage -> path for `tap`. keras-cv and keras-hub name stages by level: "P2"
        is a quarter of the image's height and width. Ours: "stage1", "stage2", ....

    Raises:
        ValueError: If the model names no stages.

    Example:
    ```python
    model = keras_distill.backbones.cv_resnet(classes=10, input_shape=(64, 64, 3))
    keras_distill.backbones.stages(model)["P3"]  # "backbone/v2_stack_1_block2_out"
    ```
    """
    found = _stages(model)
    if not found and _graph.has_graph(model):
        for call in _graph.Graph(model).calls:
            inner = _stages(call.operation)
            found |= {stage: f"{call.name}/{path}" for stage, path in inner.items()}
    if not found:
        expected = "`model` to be, or to nest, a backbone that names its stages"
        hint = "`keras_distill.taps.list_taps(model)` lists all of its layers."
        raise ValueError(_checks.message(expected, "model", model, hint))
    return found


def _stages(layer):
    if not _graph.has_graph(layer):
        return {}
    levels = getattr(layer, "pyramid_level_inputs", None)
    if levels:
        return dict(levels)
    graph = _graph.Graph(layer)
    levels = getattr(layer, "pyramid_outputs", None)
    if levels:
        return {level: graph.producer[id(x)][0].name for level, x in levels.items()}
    names = [f"stage{number}" for number in range(1, len(graph.calls))]
    return {name: name for name in names if name in graph.names}
