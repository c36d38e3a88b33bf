"""FT: the two stages, the paraphraser that they share, and its saving."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import losses
from keras_distill.losses.factor_transfer import FactorReconstruction
from keras_distill.losses.factor_transfer import Paraphraser
from tests.contract import network
from tests.contract import samples
from tests.losses import numerics


def arrays(variables):
    return [numerics.to_numpy(v) for v in variables]


def moved(before, variables):
    """How far the furthest weight has gone."""
    return max(np.abs(a - b).max() for a, b in zip(before, arrays(variables), strict=True))


def staged(**options):
    transfer = losses.FactorTransfer(**options)
    stages = [
        kd.Stage(
            "paraphraser",
            2,
            kd.Term(transfer.reconstruction(), "features", "pool"),
            trainable=[],
            student_loss_weight=0,
        ),
        kd.Stage("transfer", 1, kd.Term(transfer, "features", "features", weight=5.0)),
    ]
    teacher = network("teacher", 6, batch_norm=False)
    model = kd.Distiller(teacher, network("student", batch_norm=False), stages=stages)
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model, transfer


def test_stages_train_the_paraphraser_then_the_rest(tmp_path):
    model, transfer = staged()
    x, y = samples(16)
    parts = [transfer.paraphraser.variables, model.student.variables]
    parts.append([v for layer in transfer.translator for v in layer.variables])
    start = [arrays(part) for part in parts]
    logs = model.fit(x, y, batch_size=8, epochs=2, verbose=0).history
    assert logs["factor_reconstruction"][1] < logs["factor_reconstruction"][0]
    assert moved(start[0], parts[0]) > 1e-3
    assert moved(start[1], parts[1]) == moved(start[2], parts[2]) == 0.0
    middle = arrays(parts[0])
    model.fit(x, y, batch_size=8, initial_epoch=2, verbose=0)
    assert moved(middle, parts[0]) == 0.0
    assert moved(start[1], parts[1]) > 1e-4 and moved(start[2], parts[2]) > 1e-5

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    first, second = (term.loss for term in loaded.terms)
    assert (type(first), type(second)) == (FactorReconstruction, losses.FactorTransfer)
    assert first.paraphraser is second.paraphraser
    for one, other in ((second, transfer), (first.paraphraser, transfer.paraphraser)):
        for a, b in zip(arrays(one.variables), arrays(other.variables), strict=True):
            np.testing.assert_array_equal(a, b)
    model.student.save(tmp_path / "student.keras")
    student = keras.models.load_model(tmp_path / "student.keras")
    assert len(student.weights) == len(network("other", batch_norm=False).weights)


def test_alone_it_leaves_the_paraphraser_as_it_is():
    """Without a warning about weights that have no gradient."""
    term = kd.Term(losses.FactorTransfer(), "features", "features")
    model = kd.Distiller(network("teacher", 6), network("student"), term)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    paraphraser = model.terms[0].loss.paraphraser
    tracked = {id(v) for v in model.variables}
    assert {id(v) for v in paraphraser.variables} <= tracked
    trained = {id(v) for v in model.trainable_variables}
    assert not trained & {id(v) for v in paraphraser.variables}
    before = arrays(paraphraser.variables)
    model.fit(*samples(8), batch_size=8, verbose=0)
    assert moved(before, paraphraser.variables) == 0.0


def test_together_each_term_trains_its_own():
    """In one stage: the paraphraser by its reconstruction, the translator by the transfer."""
    transfer = losses.FactorTransfer()
    terms = [
        kd.Term(transfer, "features", "features"),
        kd.Term(transfer.reconstruction("mse"), "features", "features"),
    ]
    model = kd.Distiller(network("teacher", 6), network("student"), terms)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = arrays(transfer.variables)
    model.fit(*samples(8), batch_size=8, verbose=0)
    changed = [np.abs(a - b).max() > 0 for a, b in zip(before, arrays(transfer.variables))]
    assert len(changed) == 18 and all(changed)


def test_configs_hold_the_paraphraser():
    loss = losses.FactorTransfer(rate=0.25, power=2, name="mine")
    loss.build_for((None, 2, 2, 8), (None, 2, 2, 3))
    for one in (loss, loss.reconstruction("mse")):
        config = keras.saving.serialize_keras_object(one)
        restored = keras.saving.deserialize_keras_object(config)
        assert type(restored) is type(one) and restored.get_config() == one.get_config()
        assert restored.paraphraser is not loss.paraphraser
        assert restored.paraphraser.rate == 0.25
        assert [v.shape for v in restored.paraphraser.variables] == [
            v.shape for v in loss.paraphraser.variables
        ]


def test_a_paraphraser_may_be_given():
    paraphraser = Paraphraser(0.75)
    loss = losses.FactorTransfer(rate=0.75, paraphraser=paraphraser)
    assert loss.paraphraser is loss.reconstruction().paraphraser is paraphraser
    loss.build_for((None, 2, 2, 8), (None, 2, 2, 3))
    assert loss.translator[-1].filters == paraphraser.factor_channels == 6
    with pytest.raises(ValueError, match="`rate` to be that of the paraphraser, 0.75.*rate=0.5"):
        losses.FactorTransfer(paraphraser=paraphraser)
    with pytest.raises(TypeError, match="`paraphraser` to be a Paraphraser"):
        losses.FactorTransfer(paraphraser=keras.layers.Dense(3))
    with pytest.raises(ValueError, match="the 8 channels that the paraphraser was built for"):
        losses.FactorTransfer(0.75, paraphraser=paraphraser).build_for(
            (None, 2, 2, 6), (None, 2, 2, 3)
        )
