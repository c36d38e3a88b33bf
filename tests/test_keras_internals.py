"""What the library leans on in Keras without Keras promising it: this tells when it changes.

The names that `keras_distill._keras` gathers, the members of Keras's trainer that the wrappers
use or override, and behaviour that their design rests on. `tests/test_graph.py` has those of the
graph.
"""

import inspect

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_distill import _keras
from tests.models import nets


def signature(function):
    return list(inspect.signature(function).parameters)


# `_keras`.


def test_every_name_of_keras_is_there():
    for name in _keras.__all__:
        assert callable(getattr(_keras, name)), name


def test_masks_travel_on_tensors():
    x = ops.ones((2, 3))
    assert _keras.get_keras_mask(x) is None
    mask = ops.convert_to_tensor([True, False])
    _keras.set_keras_mask(x, mask)
    assert _keras.get_keras_mask(x) is mask
    embedded = layers.Embedding(4, 2, mask_zero=True)(np.array([[1, 0]]))
    assert _keras.get_keras_mask(embedded) is not None
    if keras.backend.backend() == "tensorflow":
        assert _keras.get_keras_mask(ops.stop_gradient(x)) is None
        assert _keras.get_keras_mask(ops.copy(x)) is None


def test_losses_are_reduced_weighed_and_masked():
    values = ops.convert_to_tensor([[1.0, 2.0], [3.0, 4.0]])
    weights = ops.convert_to_tensor([1.0, 0.0])
    reduce = _keras.reduce_weighted_values
    assert float(reduce(values)) == 2.5
    assert float(reduce(values[:, 0], sample_weight=weights)) == 0.5
    assert float(reduce(values, sample_weight=weights[:, None])) == 0.75
    assert float(reduce(values, reduction="sum")) == 10.0
    mask = ops.convert_to_tensor([[True, True], [True, False]])
    assert float(reduce(values, mask=mask)) == 2.0
    assert ops.shape(reduce(values, reduction=None)) == (2, 2)


def test_on_one_device_losses_are_not_scaled():
    value = ops.convert_to_tensor(6.0)
    assert float(_keras.scale_loss_for_distribution(value)) == 6.0
    assert float(_keras.unscale_loss_for_distribution(value)) == 6.0


def test_call_loss_is_what_a_called_loss_of_keras_gives():
    y, z = nets.vectors(6)[:, :3], nets.vectors(6, seed=4)[:, :3]
    weights = np.linspace(0, 2, 6).astype("float32")
    for loss in (keras.losses.MeanSquaredError(), keras.losses.Huber(reduction="sum")):
        for sample_weight in (None, weights):
            ours = _keras.call_loss(loss, y, z, sample_weight)
            np.testing.assert_allclose(
                nets.array(ours), nets.array(loss(y, z, sample_weight)), rtol=1e-6
            )
    nothing = keras.losses.MeanSquaredError(reduction=None)
    assert _keras.call_loss(nothing, y, z).shape == (6,)
    assert _keras.call_loss(nothing, y, z, always_reduce=True).shape == ()


def test_call_loss_keeps_integers():
    seen = []

    class Ids(keras.losses.Loss):
        def call(self, y_true, y_pred):
            seen.append(keras.backend.standardize_dtype(y_true.dtype))
            return ops.sum(y_pred, -1)

    _keras.call_loss(Ids(), np.array([2**24 + 1]), np.ones((1, 2), "float32"))
    assert seen == ["int64"] or seen == ["int32"]


def test_a_loss_of_one_number_is_weighed_by_the_mean_weight():
    class One(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return ops.mean(y_pred)

    y = np.ones((4, 2), "float32")
    weights = np.array([0.0, 0.0, 1.0, 1.0], "float32")
    assert float(_keras.call_loss(One(), y, 3 * y)) == 3.0
    assert float(_keras.call_loss(One(), y, 3 * y, weights)) == 1.5


def test_functional_is_the_class_of_functional_models():
    model = nets.mlp()
    assert isinstance(model, _keras.Functional)
    assert not isinstance(nets.Subclassed(), _keras.Functional)


def test_unpacking_an_element():
    unpack = _keras.unpack_x_y_sample_weight
    assert unpack((1, 2, 3)) == (1, 2, 3)
    assert unpack((1, 2)) == (1, 2, None)
    assert unpack((1,)) == (1, None, None)
    assert unpack(1) == (1, None, None)
    assert unpack([1, 2]) == (1, 2, None)


def test_flatten_layers_gives_all_layers_below():
    inner = nets.mlp(name="inner")
    model = keras.Sequential([keras.Input((nets.FEATURES,)), inner, layers.Dense(2, name="top")])
    names = [layer.name for layer in _keras.flatten_layers(model)]
    assert names[0] == model.name
    assert {"inner", "hidden", "head", "top"} <= set(names)
    assert len(names) == len(set(names))


def test_a_built_layer_is_locked_unless_unlocked():
    class Holder(keras.Model):
        def call(self, x):
            return x

    holder = Holder()
    holder.build((None, 2))
    with pytest.raises(ValueError, match="cannot add new elements"):
        holder.part = layers.Dense(2)
    with _keras.unlocked(holder):
        holder.part = layers.Dense(2)
    assert holder.part in holder._layers
    with pytest.raises(ValueError, match="cannot add new elements"):
        holder.other = layers.Dense(2)


def test_nodes_are_registered_with_the_trees_of_keras():
    class Pair:
        def __init__(self, a, b):
            self.a, self.b = a, b

    _keras.register_tree_node(
        Pair, lambda p: ((p.a, p.b), None, None), lambda _, parts: Pair(*parts)
    )
    doubled = keras.tree.map_structure(lambda x: 2 * x, Pair(1, [2, 3]))
    assert isinstance(doubled, Pair) and (doubled.a, doubled.b) == (2, [4, 6])
    assert keras.tree.flatten(Pair(1, 2)) == [1, 2]


def test_trees_flatten_dicts_by_sorted_keys_and_keep_none():
    assert keras.tree.flatten({"b": 1, "a": 2}) == [2, 1]
    assert keras.tree.flatten([1, None]) == [1, None]
    packed = keras.tree.pack_sequence_as({"b": 0, "a": 0}, [1, None])
    assert packed == {"b": None, "a": 1}


def test_lists_that_are_attributes_of_a_layer_are_tracked_unless_told():
    class Holder(layers.Layer):
        @_keras.no_automatic_dependency_tracking
        def hold(self, part):
            self.held = [part]

    holder = Holder()
    holder.hold(layers.Dense(2))
    assert holder._layers == []
    holder.tracked = [layers.Dense(2)]
    assert holder._layers == list(holder.tracked)


def test_what_is_empty():
    assert _keras.is_empty(np.zeros((0, 3)))
    assert _keras.is_empty({"a": np.zeros((0, 3)), "b": np.zeros((0, 2))})
    assert not _keras.is_empty(np.zeros((1, 3)))
    assert not _keras.is_empty(iter([1]))
    assert not _keras.is_empty(None)

    class Batches(keras.utils.PyDataset):
        def __init__(self, count):
            super().__init__()
            self.count = count

        def __len__(self):
            return self.count

        def __getitem__(self, index):
            return np.full((9, 2), index), np.zeros(9)

    assert _keras.is_empty(Batches(0))
    assert not _keras.is_empty(Batches(2))
    np.testing.assert_array_equal(_keras.first_inputs(Batches(2), 4), np.zeros((4, 2)))


def test_first_inputs():
    x = {"a": np.arange(20).reshape(10, 2), "b": np.arange(10)}
    first = _keras.first_inputs(x, 3)
    np.testing.assert_array_equal(first["a"], x["a"][:3])
    np.testing.assert_array_equal(first["b"], x["b"][:3])
    generator = iter([x])
    assert _keras.first_inputs(generator) is None
    assert next(generator) is x


@pytest.mark.tensorflow
def test_first_inputs_of_a_dataset_leave_it_whole():
    import tensorflow as tf

    x, y = np.arange(10.0), np.zeros(10)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    np.testing.assert_array_equal(_keras.first_inputs(dataset, 3), x[:3])
    assert len(list(dataset)) == 3
    assert _keras.is_empty(dataset.take(0)) and not _keras.is_empty(dataset)
    assert not _keras.is_empty(dataset.repeat())


@pytest.mark.parametrize(
    "name, snake",
    [
        ("SoftTargets", "soft_targets"),
        ("DIST", "dist"),
        ("LogitMSE", "logit_mse"),
        ("DecoupledKD", "decoupled_kd"),
        ("KLDivergence", "kl_divergence"),
        ("SparseCategoricalCrossentropy", "sparse_categorical_crossentropy"),
        ("already_snake", "already_snake"),
    ],
)
def test_snake_case(name, snake):
    assert _keras.to_snake_case(name) == snake


# The trainer's members that the wrappers use or override.


@pytest.fixture
def compiled():
    model = nets.mlp()
    model.compile("sgd", nets.cross_entropy(), metrics=["accuracy"], jit_compile=False)
    return model


def test_the_compiled_loss_and_metrics_are_where_the_wrappers_look(compiled):
    x, y = nets.vectors(8), nets.class_ids(8)
    z = compiled(x)
    expected = nets.ce(y, nets.array(z)).mean()
    assert float(compiled._compile_loss(y, z, None)) == pytest.approx(expected, rel=1e-5)
    compiled._compile_metrics.update_state(y, z, None)
    assert set(compiled.get_metrics_result()) == {"loss", "accuracy"}
    compiled._loss_tracker.update_state(2.0, sample_weight=3)
    assert float(compiled._loss_tracker.result()) == 2.0
    assert compiled._loss_tracker.name == "loss"
    assert nets.mlp()._compile_loss is None and nets.mlp()._compile_metrics is None


def test_compiled_metrics_are_lists_by_output(compiled):
    metrics = compiled._compile_metrics
    x, y = nets.vectors(8), nets.class_ids(8)
    z = compiled(x)
    assert not metrics.built
    metrics.build(y, z)
    assert metrics.built
    assert len(metrics._flat_metrics) == len(metrics._flat_weighted_metrics) == 1
    assert metrics._flatten_y(y) is not None and len(metrics._flatten_y({"a": y})) == 1
    weights = np.array([1.0, 0, 0, 0, 0, 0, 0, 1.0], "float32")
    metrics._flat_metrics[0].update_state(y, z, weights)
    right = nets.array(z).argmax(-1) == y
    expected = right[[0, 7]].mean()
    assert float(compiled.get_metrics_result()["accuracy"]) == pytest.approx(expected)


def test_added_losses_are_summed_and_cleared():
    class Adds(layers.Layer):
        def call(self, x):
            self.add_loss(ops.mean(x))
            return x

    model = keras.Sequential([keras.Input((2,)), Adds()])
    x = np.ones((3, 2), "float32")
    model(x), model(x)
    assert len(model.losses) == 1  # each outer call begins anew
    assert float(model._aggregate_additional_loss(ops.ones((2,)))) == 2.0
    model._clear_losses()
    assert model.losses == []


def test_penalties_follow_the_trainable_weights_of_the_outer_model():
    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = nets.mlp(regularizer=keras.regularizers.L2(0.1))

        @property
        def trainable_weights(self):
            return []

    outer = Outer()
    assert len(outer.inner.losses) == 1
    assert outer.losses == []


@pytest.mark.tensorflow
def test_hooks_that_the_wrappers_override_are_called(compiled):
    called = []

    class Watched(nets.Subclassed):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            called.append(("compute_loss", training))
            return super().compute_loss(x, y, y_pred, sample_weight, training)

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            called.append("compute_metrics")
            return super().compute_metrics(x, y, y_pred, sample_weight)

        def _maybe_symbolic_build(self, iterator=None, data_batch=None):
            called.append("_maybe_symbolic_build")
            return super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    model = Watched()
    model.compile("sgd", nets.cross_entropy(), metrics=["accuracy"], jit_compile=False)
    model.fit(nets.vectors(8), nets.class_ids(8), validation_split=0.5, verbose=0)
    assert {("compute_loss", True), ("compute_loss", False)} <= set(called)
    assert {"compute_metrics", "_maybe_symbolic_build"} <= set(called)


@pytest.mark.tensorflow
def test_signatures_of_what_the_wrappers_override():
    base = keras.Model
    assert signature(base._maybe_symbolic_build) == ["self", "iterator", "data_batch"]
    assert signature(base.compute_loss) == [
        "self", "x", "y", "y_pred", "sample_weight", "training",
    ]  # fmt: skip
    assert signature(base.compute_metrics) == ["self", "x", "y", "y_pred", "sample_weight"]
    assert signature(base.compile)[1:6] == [
        "optimizer", "loss", "loss_weights", "metrics", "weighted_metrics",
    ]  # fmt: skip
    for name in ("fit", "evaluate", "train_on_batch"):
        assert signature(getattr(base, name))[1:3] == ["x", "y"]
    assert signature(base.save_weights)[:2] == signature(base.load_weights)[:2] == [
        "self", "filepath",
    ]  # fmt: skip
    optimizer = keras.optimizers.Optimizer
    assert signature(optimizer.apply) == ["self", "grads", "trainable_variables"]
    assert signature(optimizer.stateless_apply) == [
        "self", "optimizer_variables", "grads", "trainable_variables",
    ]  # fmt: skip


def test_the_compile_config_is_what_the_wrappers_extend(compiled):
    config = compiled.get_compile_config()
    assert {"optimizer", "loss", "loss_weights", "metrics", "weighted_metrics"} <= set(config)
    assert nets.mlp().get_compile_config() in (None, {})


def test_output_names_reach_the_compiled_loss():
    class Named(nets.Subclassed):
        output_names = ["a"]

    model = Named()
    model.compile("sgd", "mse")
    assert model._compile_loss.output_names == ["a"]


@pytest.mark.tensorflow
def test_the_strategy_of_a_model_is_where_the_wrappers_look():
    model = nets.mlp()
    assert model._distribute_strategy is None
    assert model.distribute_strategy.num_replicas_in_sync == 1


def test_weights_files_hold_what_dir_shows(tmp_path):
    class Hiding(keras.Model):
        def __init__(self):
            super().__init__()
            self.shown = layers.Dense(2, name="shown")
            self.hidden = layers.Dense(2, name="hidden")
            self.shown.build((None, 2))
            self.hidden.build((None, 2))
            self.built = True

        def __dir__(self):
            hidden = {"hidden", "layers", "_layers"}
            return [name for name in super().__dir__() if name not in hidden]

    import h5py

    Hiding().save_weights(tmp_path / "w.weights.h5")
    names = []
    with h5py.File(tmp_path / "w.weights.h5") as file:
        file.visit(names.append)
    assert any(name.startswith("shown/") for name in names)
    assert not any("hidden" in name for name in names)


def test_seeds_of_layers_are_state_but_no_weights():
    model = nets.cnn(dropout=0.5)
    seeds = [v for v in model.variables if not any(v is w for w in model.weights)]
    assert len(seeds) == 1 and "seed" in seeds[0].path


def test_weights_in_memory_are_a_weights_file(tmp_path):
    model, other = nets.cnn(dropout=0.5), nets.cnn(dropout=0.5)
    content = _keras.weights_in_memory(model).getvalue()
    (tmp_path / "memory.weights.h5").write_bytes(content)
    other.load_weights(tmp_path / "memory.weights.h5")
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# What Keras does today, and the wrappers do otherwise: remove the workaround once it changes.


def test_keras_itself_saves_no_seed_of_a_dropout_layer(tmp_path):
    model = nets.cnn(dropout=0.5)
    model(nets.images(2), training=True)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    old, new = (nets.array(m.get_layer("dropout").seed_generator.state) for m in (model, loaded))
    assert np.any(old != new)


def test_copying_a_loss_of_keras_goes_through_its_config():
    import copy

    class Unregistered(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return y_pred

    with pytest.raises(TypeError, match="Could not locate class"):
        copy.copy(Unregistered())


def test_keras_keeps_the_loss_of_an_earlier_compile(compiled):
    compiled.compile("sgd", None)
    assert compiled._compile_loss is not None and compiled._compile_metrics is not None


@pytest.mark.tensorflow
def test_keras_runs_once_more_where_the_cardinality_is_unknown():
    import tensorflow as tf

    model = nets.mlp()
    model.compile(nets.sgd(), nets.cross_entropy(), jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices((nets.vectors(8), nets.class_ids(8))).batch(4)
    data = data.filter(lambda x, y: True)
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(data, verbose=0, shuffle=False)
    assert int(nets.array(model.optimizer.iterations)) == 3  # of 2 batches


def test_rand_augment_is_what_keras_makes_of_the_same_draws():
    layer = layers.RandAugment(value_range=(0, 1), num_ops=2, factor=0.6)
    images = np.random.default_rng(0).uniform(0, 1, (1, 8, 8, 3)).astype("float32")
    for seed in range(12):
        draws = _keras.rand_augment_transformation(layer, images, keras.random.SeedGenerator(seed))
        again = _keras.rand_augment_transformation(layer, images, keras.random.SeedGenerator(seed))
        np.testing.assert_array_equal(draws["layer_idxes"], again["layer_idxes"])
        assert list(draws["transforms"]) == layer._AUGMENT_LAYERS
        if keras.backend.backend() == "tensorflow":
            ours = _keras.rand_augment_images(layer, images, draws)
            expected = layer.transform_images(images, draws)
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
