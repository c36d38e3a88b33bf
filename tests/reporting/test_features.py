"""What layers show: channels, similarity and exits, on networks whose answers are known."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.reporting import features
from keras_distill.reporting import networks

NAMES = ("cat", "dog")


def projection(weights, name="maps", model="net"):
    """A network whose layer `name` is a linear map of each pixel's channels."""
    weights = np.asarray(weights, "float32")
    inputs = keras.Input((2, 2, weights.shape[0]))
    maps = keras.layers.Conv2D(weights.shape[1], 1, use_bias=False, name=name)(inputs)
    outputs = keras.layers.Dense(2, name="head")(keras.layers.GlobalAveragePooling2D()(maps))
    network = keras.Model(inputs, outputs, name=model)
    network.get_layer(name).set_weights([weights[None, None]])
    return network


def shown(name, network, member=False):
    return {"name": name, "colour": "#000000", "network": network, "member": member}


@pytest.fixture(scope="module")
def images():
    """Eight images of three channels, each of them varying on its own."""
    values = np.random.default_rng(3).uniform(size=(8, 1, 1, 3)).astype("float32")
    return np.broadcast_to(values, (8, 2, 2, 3)).copy()


def test_layers_that_stand_for_the_stages():
    model = kd.backbones.small_cnn((8, 8, 1), 10, 2)
    stages = ["stem", "stem_pool", "stage1", "stage1_pool", "stage2", "pool", "head"]
    found = networks.layers_of(model)
    assert list(found) == stages
    assert found["stage2"] == (2, 2, 4) and found["head"] == (10,)
    assert features.last_map(model) == "stage2"
    inputs = keras.Input((8, 8, 1))
    nested = keras.Model(inputs, model(inputs))
    assert list(networks.layers_of(nested)) == [f"{model.name}/{name}" for name in stages]
    assert features.last_map(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])) is None


def test_features_are_those_of_the_layer_and_large_maps_are_averaged(images, monkeypatch):
    network = projection(np.eye(3))
    found = networks.features(network, ["maps"], images)["maps"]
    np.testing.assert_allclose(found, images)
    whole = (images * 255).astype("uint8")
    np.testing.assert_allclose(networks.features(network, ["maps"], whole)["maps"], whole / 255)
    monkeypatch.setattr(networks, "MOST_VALUES", 3)
    small = networks.features(network, ["maps"], images)["maps"]
    np.testing.assert_allclose(small, images.mean(axis=(1, 2), keepdims=True), rtol=1e-6)


def test_strongest_images_of_channels_and_their_match(images):
    """The second member's channels are the first's in another order; a third one is dead."""
    first, second = projection(np.eye(3)), projection(np.eye(3)[:, [1, 0]], model="other")
    poor = projection(np.eye(3)[:, [2, 2]] * [1, 0])
    labels = np.array([0, 1] * 4)
    models = [shown("a", first, True), shown("b", second, True), shown("poor", poor)]
    data = features.channel_responses(models, images, labels, NAMES)
    one, two, three = data["networks"]
    assert (data["images"], data["left_out"], one["layer"]) == (8, [], "maps")
    assert sorted(channel["channel"] for channel in one["channels"]) == [0, 1, 2]
    for channel in one["channels"]:
        order = np.argsort(-images[:, 0, 0, channel["channel"]])[:4]
        assert channel["images"] == order.tolist()
        assert channel["classes"] == [NAMES[labels[i]] for i in order]
    assert one["matched"] == pytest.approx(1.0, abs=1e-5)  # b's two channels are all in a
    values = images[:, 0, 0]
    alike = np.abs(np.corrcoef(values.T))
    assert two["matched"] == pytest.approx((1 + 1 + max(alike[2, 0], alike[2, 1])) / 3, abs=1e-5)
    assert [channel["channel"] for channel in three["channels"]] == [0]
    mean = np.mean([alike[2, 0], alike[2, 1], 1.0, alike[2, 1], alike[2, 0]])
    assert three["matched"] == pytest.approx(mean, abs=1e-5)


def test_a_named_layer_is_taken_where_it_is(images):
    models = [shown("a", projection(np.eye(3), "deep")), shown("b", projection(np.eye(3)))]
    data = features.channel_responses(models, images, np.zeros(8, int), NAMES, "deep")
    assert [entry["name"] for entry in data["networks"]] == ["a"]
    assert data["left_out"] == ["b"] and data["networks"][0]["matched"] is None
    with pytest.raises(ValueError, match="`layer` to name a layer.*Did you mean 'deep'"):
        features.channel_responses(models[:1], images, np.zeros(8, int), NAMES, "depe")


def test_similarity_of_layers_is_the_kernel_alignment(images):
    first, second = kd.backbones.small_cnn((8, 8, 1), 3, 2), kd.backbones.small_cnn((8, 8, 1), 3, 3)
    images = np.random.default_rng(0).uniform(size=(12, 8, 8, 1)).astype("float32")
    data = features.layer_similarity(("t", first), {"s": second, "t": first}, images)
    rows, (other, same) = data["reference"]["layers"], data["maps"]
    assert (data["images"], other["name"], rows) == (12, "s", other["layers"])
    np.testing.assert_allclose(np.diag(same["values"]), 1.0, atol=1e-6)
    one = networks.features(first, ["stage1"], images)["stage1"]
    two = networks.features(second, ["pool"], images)["pool"]
    loss = kd.losses.kernel_alignment(one, two, unbiased=True)
    found = other["values"][rows.index("stage1")][other["layers"].index("pool")]
    assert found == pytest.approx(1 - float(loss[0]), abs=1e-4)


def test_early_exits_from_the_first_to_the_last():
    student = kd.backbones.small_cnn((8, 8, 1), 3, 2)
    distiller = kd.SelfDistiller(student, ["stem", "stage1"])
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 8, 8, 1)).astype("uint8")
    labels = generator.integers(0, 3, 30)
    data = features.early_exits(distiller, images, labels)
    names = [entry["name"] for entry in data["exits"]]
    assert names == ["stem", "stage1", "the whole network"] and data["images"] == 30
    for point, alone in (
        (data["curve"][0], data["exits"][0]),
        (data["curve"][-1], data["exits"][2]),
    ):
        assert point["accuracy"] == pytest.approx(alone["accuracy"])
        assert point["compute"] == pytest.approx(alone["compute"])
    said = networks.probabilities(student, images).argmax(axis=-1)
    assert data["exits"][2]["accuracy"] == pytest.approx(np.mean(said == labels))
    assert data["exits"][0]["compute"] < data["exits"][1]["compute"] < data["exits"][2]["compute"]
