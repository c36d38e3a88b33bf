"""SelfDistiller: the loss and its gradients, one step and several, exits, saving, bad input."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_distill as kd
from keras_distill.models.outputs import Outputs
from tests.models import nets
from tests.oracles import self_distillation as oracle
from tests.oracles.finite_differences import gradient

EXITS = ["stage1", "stage2"]


def network(activation=None, classes=nets.CLASSES, name="net", dropout=0.0, top=True):
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(3, 3, padding="same", use_bias=False, name="conv1")(inputs)
    x = layers.BatchNormalization(momentum=0.7, name="bn1")(x)
    x = layers.ReLU(name="stage1")(x)
    x = layers.Conv2D(4, 3, 2, padding="same", activation="relu", name="stage2")(x)
    x = layers.Conv2D(5, 3, 2, padding="same", activation="relu", name="stage3")(x)
    if not top:
        return keras.Model(inputs, x, name=name)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(classes, activation, name="head")(x), name=name)


def compiled(model=None, loss="ce", optimizer=None, exits=EXITS, compile=None, **options):
    wrapper = kd.SelfDistiller(model or network(), exits, **options)
    loss = nets.cross_entropy() if loss == "ce" else loss
    wrapper.compile(optimizer or nets.sgd(), loss, **{"jit_compile": False, **(compile or {})})
    return wrapper


def outputs_of(wrapper, x, training=False):
    """`(logits, features)` of all exits as arrays, the deepest last."""
    found = wrapper.forward(ops.convert_to_tensor(x), training=training)
    deepest, logits, target, features = found.terms
    arrays = [nets.array(z) for z in [*logits, deepest]]
    return arrays, [nets.array(f) for f in [*features, target]]


def fabricated(wrapper, batch=5, width=6, seed=0):
    """`Outputs` of chosen logits and features for two exits, and their arrays."""
    rng = np.random.default_rng(seed)
    z = [rng.normal(size=(batch, nets.CLASSES)).astype("float32") for _ in range(3)]
    f = [np.abs(rng.normal(size=(batch, width))).astype("float32") for _ in range(3)]
    return z, f


def term_values(wrapper, z, f, y, weights=None):
    """`name -> (value, weight)` for logits and features of the exits, the deepest last."""
    z, f = (list(map(ops.convert_to_tensor, arrays)) for arrays in (z, f))
    features = [f[i] for i in wrapper.feature_exits]
    outputs = Outputs(z[-1], (z[-1], z[:-1], f[-1], features))
    weights = None if weights is None else ops.convert_to_tensor(weights)
    terms = wrapper.term_values(outputs, kd.data.Targets(labels=y), weights)
    return {name: (value, weight) for name, value, weight in terms}


VARIANTS = [
    {},
    {"feature_loss": "squared_l2"},
    {"feature_loss": "l2norm"},
    {"scale_t2": False},
    {"soft_loss": "cross_entropy"},
    {"soft_loss": "cross_entropy", "scale_t2": False, "temperature": 2.0},
    {"preset": "journal", "adapt": False},
]


def oracle_options(wrapper):
    return {
        "temperature": wrapper.temperature,
        "scale_t2": wrapper.scale_t2,
        "kind": wrapper.soft_loss,
    }


# The loss.


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_terms_equal_the_equations(options, weighted):
    wrapper = compiled(**options)
    z, f = fabricated(wrapper)
    y = nets.class_ids(5)
    weights = np.array([1.0, 0.5, 0.0, 2.0, 1.0], "float32") if weighted else None
    values = term_values(wrapper, z, f, y, weights)
    for i in range(2):
        expected = {
            f"exit_{i}_label_loss": (oracle.cross_entropy(y, z[i], weights), 0.7),
            f"exit_{i}_soft": (
                oracle.soft(z[-1], z[i], weights=weights, **oracle_options(wrapper)),
                0.3,
            ),
        }
        if i in wrapper.feature_exits:
            distance = oracle.feature(f[-1], f[i], wrapper.feature_loss, weights)
            expected[f"exit_{i}_feature"] = (distance, 0.03)
        for name, (value, weight) in expected.items():
            np.testing.assert_allclose(values.pop(name)[0], value, rtol=2e-5, err_msg=name)
            assert weight == pytest.approx(weight)
    assert not values


@pytest.mark.tensorflow
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_gradients_equal_the_equations_and_none_reaches_the_targets(options):
    import tensorflow as tf

    wrapper = compiled(**options)
    z, f = fabricated(wrapper)
    y = nets.class_ids(5)
    weights = np.array([1.0, 0.5, 0.0, 2.0, 1.0], "float32")
    z, f = [tf.constant(a) for a in z], [tf.constant(a) for a in f]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([*z, *f])
        values = term_values(wrapper, z, f, y, weights)
        soft, feature = values["exit_0_soft"][0], values["exit_0_feature"][0]
        everything = sum(value * weight for value, weight in values.values())
    options = oracle_options(wrapper)
    kind = options.pop("kind")
    expected = oracle.soft_gradient(z[-1].numpy(), z[0].numpy(), weights=weights, **options)
    np.testing.assert_allclose(tape.gradient(soft, z[0]), expected, rtol=1e-4, atol=1e-6)
    numeric = gradient(
        lambda own: oracle.soft(z[-1].numpy(), own, kind=kind, weights=weights, **options),
        z[0].numpy(),
    )
    np.testing.assert_allclose(expected, numeric, rtol=1e-4, atol=1e-7)
    of_feature = wrapper.feature_loss, weights
    expected = oracle.feature_gradient(f[-1].numpy(), f[0].numpy(), *of_feature)
    np.testing.assert_allclose(tape.gradient(feature, f[0]), expected, rtol=1e-4, atol=1e-6)
    numeric = gradient(lambda own: oracle.feature(f[-1].numpy(), own, *of_feature), f[0].numpy())
    np.testing.assert_allclose(expected, numeric, rtol=1e-4, atol=1e-7)
    assert tape.gradient(everything, [z[-1], f[-1]]) == [None, None]


def test_norm_of_equal_features_is_finite():
    wrapper = compiled(feature_loss="l2norm")
    z, f = fabricated(wrapper)
    values = term_values(wrapper, z, [f[0]] * 3, nets.class_ids(5))
    np.testing.assert_allclose(values["exit_0_feature"][0], 0.0, atol=1e-5)


def test_labels_of_one_unit_and_of_several():
    for activation, classes in (("sigmoid", 3), (None, 1), ("sigmoid", 1)):
        loss = keras.losses.BinaryCrossentropy(from_logits=activation is None)
        wrapper = compiled(network(activation, classes), loss)
        rng = np.random.default_rng(0)
        z = [rng.normal(size=(5, classes)).astype("float32") for _ in range(3)]
        f = [rng.normal(size=(5, 5)).astype("float32") for _ in range(3)]
        y = rng.integers(0, 2, size=(5, classes)).astype("float32")
        values = term_values(wrapper, z, f, y)
        np.testing.assert_allclose(
            values["exit_1_soft"][0], oracle.sigmoid_soft(z[-1], z[1]), rtol=1e-4
        )
        p = nets.sigmoid(z[1])
        label = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
        np.testing.assert_allclose(values["exit_1_label_loss"][0], label, rtol=1e-4)
        other = compiled(network(activation, classes), loss, soft_loss="cross_entropy")
        entropy = term_values(other, [z[-1]] * 3, f, y)["exit_1_soft"][0]
        np.testing.assert_allclose(
            term_values(other, z, f, y)["exit_1_soft"][0] - entropy,
            oracle.sigmoid_soft(z[-1], z[1]),
            rtol=1e-3,
        )


def test_logged_loss_equals_the_equation():
    wrapper = compiled()
    x, y = nets.images(8), nets.class_ids(8)
    z, f = outputs_of(wrapper, x, training=True)
    logs = wrapper.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["loss"], oracle.total(y, z, f), rtol=1e-5)
    np.testing.assert_allclose(logs["label_loss"], oracle.cross_entropy(y, z[-1]), rtol=1e-5)
    names = {f"exit_{i}_{term}" for i in (0, 1) for term in ("label_loss", "soft", "feature")}
    assert set(logs) == {"loss", "label_loss", *names}


@pytest.mark.slow
@pytest.mark.parametrize("width", [8, 64])
def test_what_is_added_is_below_the_label_loss_at_the_start(width):
    x, y = np.random.default_rng(0).uniform(size=(64, 16, 16, 3)), nets.class_ids(64)
    model = kd.backbones.resnet(8, classes=10, input_shape=(16, 16, 3), width=width // 4)
    wrapper = compiled(model, compile={"evaluate_terms": True})
    logs = wrapper.train_on_batch(x.astype("float32"), y, return_dict=True)
    added = sum(0.3 * logs[f"exit_{i}_soft"] + 0.03 * logs[f"exit_{i}_feature"] for i in (0, 1))
    assert 0 < added < logs["label_loss"]


# Steps.


@pytest.mark.slow
@pytest.mark.tensorflow
def test_three_steps_equal_a_hand_written_loop():
    import tensorflow as tf

    wrapper = compiled(network(), adapt=True, temperature=2.0)
    alone = nets.copy_of(wrapper.student)
    bottlenecks = [nets.copy_of(head) for head in wrapper.bottlenecks]
    dense = [
        [tf.Variable(nets.array(v)) for v in layer.trainable_variables]
        for layer in [*wrapper.classifiers, *wrapper.adaptations]
    ]
    classifiers, adaptations = dense[:2], dense[2:]
    tapped = [alone.get_layer(name).output for name in ("stage1", "stage2", "pool", "head")]
    features = keras.Model(alone.input, tapped)
    networks = [v.value for m in (alone, *bottlenecks) for v in m.trainable_variables]
    trained = networks + [v for pair in dense for v in pair]
    for step in range(3):
        x, y = nets.images(8, seed=step), nets.class_ids(8, seed=step)
        with tf.GradientTape() as tape:
            *maps, target, deepest = features(x, training=True)
            total = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, deepest))
            p = tf.stop_gradient(tf.nn.log_softmax(deepest / 2.0))
            for i in (0, 1):
                feature = bottlenecks[i](maps[i], training=True)
                own = feature @ classifiers[i][0] + classifiers[i][1]
                ce = tf.nn.sparse_softmax_cross_entropy_with_logits(y, own)
                q = tf.nn.log_softmax(own / 2.0)
                soft = 4.0 * tf.reduce_mean(tf.reduce_sum(tf.exp(p) * (p - q), -1))
                adapted = feature @ adaptations[i][0] + adaptations[i][1]
                distance = tf.reduce_mean(tf.square(adapted - tf.stop_gradient(target)))
                total += 0.7 * tf.reduce_mean(ce) + 0.3 * soft + 0.03 * distance
        for variable, g in zip(trained, tape.gradient(total, trained)):
            variable.assign_sub(0.1 * g)
        logs = wrapper.train_on_batch(x, y, return_dict=True)
        np.testing.assert_allclose(logs["loss"], float(total), rtol=1e-5)
        wrapper.reset_metrics()
    nets.assert_same_weights(wrapper.student, alone, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(wrapper.bottlenecks, bottlenecks):
        nets.assert_same_weights(ours, theirs, rtol=1e-4, atol=1e-6)
    for layer, pair in zip([*wrapper.classifiers, *wrapper.adaptations], dense):
        for ours, theirs in zip(layer.trainable_variables, pair):
            np.testing.assert_allclose(nets.array(ours), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.tensorflow
def test_the_exits_train_the_stages_below_and_nothing_above():
    import tensorflow as tf

    wrapper = compiled()
    x, y = nets.images(8), nets.class_ids(8)
    with tf.GradientTape() as tape:
        outputs = wrapper(x, training=True)
        terms = wrapper.term_values(outputs, kd.data.Targets(labels=y), None)
        loss = sum(value * weight for _, value, weight in terms)
    student = wrapper.student
    gradients = tape.gradient(loss, [v.value for v in student.trainable_variables])
    reached = {
        variable.path
        for variable, g in zip(student.trainable_variables, gradients)
        if g is not None and np.abs(g).max() > 0
    }
    assert reached == {"conv1/kernel", "bn1/gamma", "bn1/beta", "stage2/kernel", "stage2/bias"}


def test_alpha_of_one_leaves_the_labels_to_the_deepest_exit():
    wrapper = compiled(alpha=1.0, feature_weight=0.0)
    x, y = nets.images(8), nets.class_ids(8)
    logs = wrapper.train_on_batch(x, y, return_dict=True)
    soft = sum(logs[f"exit_{i}_soft"] for i in (0, 1))
    np.testing.assert_allclose(logs["loss"], logs["label_loss"] + soft, rtol=1e-5)


@pytest.mark.slow
def test_unlabelled_samples_teach_by_their_targets_alone():
    wrapper = compiled(compile={"metrics": ["accuracy"]})
    x, y = nets.images(8), nets.class_ids(8)
    z, f = outputs_of(wrapper, x, training=True)
    y[4:] = -1
    logs = wrapper.train_on_batch(x, y, return_dict=True)
    known = np.array([1.0] * 4 + [0.0] * 4)
    expected = oracle.cross_entropy(np.maximum(y, 0), z[0], known)
    np.testing.assert_allclose(logs["exit_0_label_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(logs["exit_0_soft"], oracle.soft(z[-1], z[0]), rtol=1e-4)
    assert logs["exit_1_accuracy"] == pytest.approx(np.mean(z[1][:4].argmax(-1) == y[:4]))


@pytest.mark.slow
def test_a_softmax_head_trains_as_its_logits_do():
    def trained(activation):
        keras.utils.set_random_seed(3)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
        wrapper = compiled(network(activation), loss)
        history = wrapper.fit(nets.images(16), nets.class_ids(16), epochs=2, verbose=0).history
        return wrapper, history

    (plain, logs), (softmax, other) = trained(None), trained("softmax")
    for name in logs:
        np.testing.assert_allclose(logs[name], other[name], rtol=1e-4, err_msg=name)
    nets.assert_same_weights(plain.student, softmax.student, rtol=1e-3, atol=1e-5)
    x = nets.images(4)
    for i in range(3):
        probabilities = nets.softmax(nets.predict(plain.exit(i), x))
        np.testing.assert_allclose(
            nets.predict(softmax.exit(i), x), probabilities, rtol=1e-3, atol=1e-5
        )
    np.testing.assert_allclose(
        nets.predict(softmax.ensemble(), x),
        nets.softmax(nets.predict(plain.ensemble(), x)),
        rtol=1e-3,
        atol=1e-5,
    )


def test_a_trained_model_that_is_frozen_gets_exits_without_labels():
    model = network()
    model.trainable = False
    before = [nets.array(v) for v in model.variables]
    wrapper = compiled(model, loss=None)
    history = wrapper.fit(nets.images(16), epochs=3, verbose=0, batch_size=8).history
    assert not [name for name in history if name.endswith("label_loss")]
    assert history["loss"][-1] < history["loss"][0]
    for variable, value in zip(model.variables, before):
        np.testing.assert_array_equal(nets.array(variable), value)


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("options", [{}, {"feature_loss": "l2norm", "adapt": True}], ids=str)
def test_two_replicas_equal_one_device(options, two_replicas):
    import tensorflow as tf

    def run(strategy):
        keras.utils.set_random_seed(5)
        model_options = {"batch_norm": False, "feature_weight": 0.5, **options}
        with strategy.scope():
            inputs = keras.Input((8, 8, 1))
            x = layers.Conv2D(4, 3, 2, activation="relu", name="stage1")(inputs)
            x = layers.GlobalAveragePooling2D(name="pool")(x)
            model = keras.Model(inputs, layers.Dense(nets.CLASSES, name="head")(x))
            metrics = {"metrics": ["accuracy"]}
            wrapper = compiled(model, exits=["stage1"], compile=metrics, **model_options)
        x, y = nets.images(20), nets.class_ids(20)
        weights = np.linspace(0.5, 1.5, 20).astype("float32")
        history = wrapper.fit(
            x, y, sample_weight=weights, batch_size=8, epochs=2, shuffle=False, verbose=0
        ).history
        return [v.numpy() for v in wrapper.trainable_variables], history

    weights, history = run(tf.distribute.get_strategy())
    both, other = run(two_replicas)
    for a, b in zip(weights, both):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert set(history) == set(other)
    for name in history:
        np.testing.assert_allclose(history[name], other[name], rtol=1e-4, err_msg=name)


# Metrics and evaluation.


def test_metrics_of_one_network_are_copied_for_each_exit():
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top")]
    wrapper = compiled(
        optimizer=nets.sgd(0.0),
        compile={"metrics": metrics, "weighted_metrics": ["accuracy"], "evaluate_terms": True},
    )
    x, y = nets.images(24), nets.class_ids(24)
    weights = np.linspace(0.0, 1.0, 24).astype("float32")
    logs = wrapper.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    z, _ = outputs_of(wrapper, x)
    names = ["exit_0_", "exit_1_", "", "ensemble_"]
    for name, own in zip(names, [*z, np.mean(z, axis=0)]):
        hits = own.argmax(-1) == y
        assert logs[f"{name}accuracy"] == pytest.approx(np.mean(hits))
        weighted = np.sum(hits * weights) / weights.sum()
        assert logs[f"{name}weighted_accuracy"] == pytest.approx(weighted, rel=1e-5)
        top = np.mean([label in row.argsort()[-2:] for label, row in zip(y, own)])
        assert logs[f"{name}top"] == pytest.approx(top)


@pytest.mark.slow
def test_evaluation_is_of_the_deepest_exit_alone():
    wrapper = compiled(compile={"metrics": ["accuracy"]})
    x, y = nets.images(16), nets.class_ids(16)
    history = wrapper.fit(x, y, validation_data=(x, y), epochs=2, verbose=0).history
    validation = {name for name in history if name.startswith("val_")}
    assert validation == {"val_loss", "val_accuracy"}
    exits = {f"{name}_accuracy" for name in ("exit_0", "exit_1", "ensemble")}
    assert exits <= set(history)
    assert wrapper.inference_model is wrapper.student
    expected = nets.predict(wrapper.student, x)
    np.testing.assert_allclose(wrapper.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_callbacks_know_which_way_an_exits_metric_is_better():
    wrapper = compiled(compile={"metrics": ["accuracy"], "evaluate_terms": True})
    x, y = nets.images(16), nets.class_ids(16)
    stop = keras.callbacks.EarlyStopping("val_exit_0_accuracy", patience=5)
    wrapper.fit(x, y, validation_data=(x, y), epochs=2, verbose=0, callbacks=[stop])
    assert stop.monitor_op is ops.greater


def test_compiling_again_without_metrics_leaves_none():
    wrapper = compiled(compile={"metrics": ["accuracy"]})
    wrapper.compile(nets.sgd(), nets.cross_entropy())
    logs = wrapper.train_on_batch(nets.images(8), nets.class_ids(8), return_dict=True)
    assert not [name for name in logs if "accuracy" in name]


# The exits as models.


def test_an_exit_holds_only_what_it_needs():
    wrapper = compiled()
    x = nets.images(6)
    z, _ = outputs_of(wrapper, x)
    for i in range(3):
        np.testing.assert_allclose(nets.predict(wrapper.exit(i), x), z[i], rtol=1e-4, atol=1e-6)
    shallow = wrapper.exit(0)
    names = {layer.name for layer in shallow.layers}
    assert names & {"stage2", "stage3", "pool", "head"} == set()
    stem = sum(wrapper.student.get_layer(name).count_params() for name in ("conv1", "bn1"))
    heads = wrapper.bottlenecks[0].count_params() + wrapper.classifiers[0].count_params()
    assert shallow.count_params() == stem + heads
    assert wrapper.exit(1).count_params() > 0
    assert wrapper.exit(2) is wrapper.student
    assert not {id(v) for b in wrapper.bottlenecks for v in b.variables} & {
        id(v) for v in wrapper.exit(2).variables
    }
    for index in (3, -1, "stage1", 1.0):
        with pytest.raises(ValueError, match="from 0 .shallowest. to 2 .deepest."):
            wrapper.exit(index)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
def test_ensemble_is_the_mean_of_the_logits(activation, tmp_path):
    loss = {
        "sigmoid": keras.losses.BinaryCrossentropy(),
        "softmax": keras.losses.SparseCategoricalCrossentropy(),
        None: "ce",
    }[activation]
    wrapper = compiled(network(activation), loss)
    x = nets.images(6)
    z, _ = outputs_of(wrapper, x)
    mean = np.mean(z, axis=0)
    forms = {None: lambda v: v, "softmax": nets.softmax, "sigmoid": nets.sigmoid}
    ensemble = wrapper.ensemble()
    predicted = nets.predict(ensemble, x)
    np.testing.assert_allclose(predicted, forms[activation](mean), rtol=1e-4, atol=1e-6)
    ensemble.save(tmp_path / "ensemble.keras")
    loaded = keras.models.load_model(tmp_path / "ensemble.keras")
    np.testing.assert_allclose(nets.predict(loaded, x), predicted, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_trained_exit_is_saved_alone(tmp_path):
    wrapper = compiled()
    x, y = nets.images(16), nets.class_ids(16)
    wrapper.fit(x, y, epochs=2, verbose=0)
    wrapper.exit(0).save(tmp_path / "exit.keras")
    loaded = keras.models.load_model(tmp_path / "exit.keras")
    expected = outputs_of(wrapper, x)[0][0]
    np.testing.assert_allclose(nets.predict(loaded, x), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.tensorflow
@pytest.mark.slow
def test_exits_and_ensemble_export_to_tflite(tmp_path):
    pytest.importorskip("ai_edge_litert")
    wrapper = compiled(preset="journal")
    x = nets.images(16)
    for name, model in (("exit", wrapper.exit(0)), ("ensemble", wrapper.ensemble())):
        path = tmp_path / f"{name}.tflite"
        kd.export.tflite(model, path)
        assert kd.export.check_parity(model, path, x).samples == 16


# Backbones.


def hub_or_cv_resnet(library):
    pytest.importorskip(f"keras_{library}")
    build = getattr(kd.backbones, f"{library}_resnet")
    model = build(nets.CLASSES, (32, 32, 3), (64, 8), (1, 1), (1, 2))
    return model, kd.backbones.stages(model)["P2"]


def hub_vit():
    pytest.importorskip("keras_hub")
    model = kd.backbones.hub_vit(nets.CLASSES, (16, 16, 3), 8, layers=1, heads=1, channels=8)
    return model, "backbone/vit_patching_and_embedding"


def sequential():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(3, 3, activation="relu", name="stage1"),
            layers.Conv2D(4, 3, activation="relu", name="stage2"),
            layers.Flatten(name="flat"),
            layers.Dense(nets.CLASSES, name="head"),
        ]
    )
    return model, "stage1"


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: hub_or_cv_resnet("cv"), id="keras_cv"),
        pytest.param(lambda: hub_or_cv_resnet("hub"), id="keras_hub"),
        pytest.param(hub_vit, id="keras_hub_vision_transformer"),
        pytest.param(sequential, id="sequential"),
    ],
)
def test_backbones_train_and_give_their_exits(build):
    model, path = build()
    wrapper = compiled(model, exits=[path])
    x = np.random.default_rng(0).uniform(size=(4, *model.input_shape[1:])).astype("float32")
    history = wrapper.fit(x, nets.class_ids(4), batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    z, _ = outputs_of(wrapper, x)
    for i in range(2):
        own = wrapper.exit(i)(x, training=False)
        np.testing.assert_allclose(nets.array(own), z[i], rtol=1e-3, atol=1e-5)
    head = {id(v) for v in model.layers[-1].variables}
    assert head and not head & {id(v) for v in wrapper.exit(0).variables}
    np.testing.assert_allclose(
        wrapper.ensemble()(x, training=False), np.mean(z, 0), rtol=1e-3, atol=1e-5
    )
    predictions, _ = wrapper.early_exit(1.0).predict(x)
    np.testing.assert_allclose(predictions, z[-1], rtol=1e-3, atol=1e-5)


def test_the_head_is_as_wide_as_the_deepest_feature():
    model, path = sequential()
    assert compiled(model, exits=[path]).bottlenecks[0].output_shape == (None, 64)


# Presets and saving.


def test_journal_preset_sets_the_options():
    wrapper = compiled(preset="journal")
    assert (wrapper.temperature, wrapper.alpha, wrapper.feature_weight) == (3.0, 0.3, 0.03)
    assert (wrapper.feature_loss, wrapper.scale_t2) == ("l2norm", False)
    assert (wrapper.soft_loss, wrapper.adapt, wrapper.attention) == ("cross_entropy", True, True)
    assert wrapper.feature_exits == [0]  # exit 3/4 of four is the one left out
    assert len(wrapper.adaptations) == 1
    logs = wrapper.train_on_batch(nets.images(8), nets.class_ids(8), return_dict=True)
    assert "exit_0_feature" in logs and "exit_1_feature" not in logs
    changed = kd.SelfDistiller(
        network(), EXITS, preset="journal", adapt=False, attention=False, feature_exits=[0, 1]
    )
    assert (changed.adapt, changed.attention, changed.feature_exits) == (False, False, [0, 1])


@pytest.mark.slow
def test_journal_wrapper_is_saved_with_its_heads(tmp_path):
    wrapper = compiled(network(dropout=0.3), preset="journal", compile={"metrics": ["accuracy"]})
    x, y = nets.images(16), nets.class_ids(16)
    wrapper.fit(x, y, verbose=0)
    wrapper.save(tmp_path / "wrapper.keras")
    loaded = keras.models.load_model(tmp_path / "wrapper.keras")
    config = {**wrapper.get_config(), "model": None}
    assert {**loaded.get_config(), "model": None} == config
    for ours, theirs in zip(outputs_of(wrapper, x), outputs_of(loaded, x)):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_model_stays_free_of_heads():
    model = network()
    weights = [v.path for v in model.weights]
    wrapper = compiled(model)
    wrapper.fit(nets.images(8), nets.class_ids(8), verbose=0)
    assert [v.path for v in model.weights] == weights
    assert len(wrapper.weights) > len(weights)


def test_names_that_the_model_has_taken():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(3, 3, activation="relu", name="exit_0")(inputs)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(nets.CLASSES, name="exit_0_head")(x))
    wrapper = compiled(model, exits=["exit_0"])
    assert wrapper.exit(0)(nets.images(2)).shape == (2, nets.CLASSES)
    assert wrapper.ensemble()(nets.images(2)).shape == (2, nets.CLASSES)


# Bad input.


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"temperature": 0.0}, "`temperature` to be a positive"),
        ({"alpha": 1.5}, r"`alpha` to be in \[0, 1\]"),
        ({"alpha": -0.1}, "`alpha` to be"),
        ({"feature_weight": -1.0}, "`feature_weight` to be"),
        ({"feature_loss": "l1"}, "`feature_loss` to be one of 'mse'"),
        ({"soft_loss": "mse"}, "`soft_loss` to be one of 'kl'"),
        ({"preset": "paper"}, "`preset` to be one of None, 'journal'"),
        ({"preset": "journal", "feature_loss": "squared_l2"}, "`feature_loss` to be left out"),
        ({"feature_exits": [2]}, "indices of exits, from 0 to 1"),
        ({"feature_exits": [0, 0]}, "each once"),
        ({"exits": []}, "at least one layer"),
        ({"exits": ["stage4"]}, "Did you mean 'stage"),
        ({"exits": ["pool"]}, "before the model's own head"),
        ({"exits": ["stage2", "stage1"]}, "swap them"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be(options, error):
    with pytest.raises(ValueError, match=error):
        kd.SelfDistiller(**{"model": network(), "exits": EXITS, **options})


def test_models_that_cannot_be():
    with pytest.raises(TypeError, match="`model` to be a keras.Model"):
        kd.SelfDistiller("resnet", EXITS)
    with pytest.raises(TypeError, match="`adapt` to be True or False"):
        kd.SelfDistiller(network(), EXITS, adapt=1)
    with pytest.raises(ValueError, match="a graph of layers"):
        kd.SelfDistiller(nets.Subclassed(), EXITS)
    with pytest.raises(ValueError, match="reads logits"):
        compiled(loss="sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="labels from 0 to 3"):
        compiled().fit(nets.images(4), np.array([0, 1, 2, 9]), verbose=0)
    with pytest.raises(ValueError, match="names of their own.*'exit_0_soft'"):
        compiled(compile={"metrics": [keras.metrics.MeanSquaredError(name="exit_0_soft")]})
