"""`TerminateOnNonFinite`: the step, the term and what to try."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests.contract import network
from tests.contract import samples

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(model, x, y, **options):
    stop = kd.callbacks.TerminateOnNonFinite()
    return model.fit(x, y, verbose=0, shuffle=False, callbacks=[stop], **options)


def distiller(**options):
    terms = [kd.losses.SoftTargets(2.0), kd.Term(kd.losses.LogitMSE(), name="logits")]
    wrapper = kd.Distiller(network("teacher", 5), network("student", **options), terms)
    wrapper.compile(keras.optimizers.SGD(0.01), CE, metrics=["accuracy"])
    return wrapper


def test_the_step_the_term_and_what_to_try_are_named():
    x, y = samples(16)
    x = np.array(x)
    x[9] = np.nan
    with pytest.raises(
        kd.callbacks.NonFiniteLoss,
        match=r"label_loss=nan.*soft_targets=nan.*step 3 of epoch 1\..*`clipnorm`.*'logits'",
    ):
        fit(distiller(), x, y, batch_size=4, epochs=2)


def test_the_term_alone_is_named_in_its_epoch():
    x, y = samples(16)
    wrapper = distiller()
    spoil = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: epoch == 1 and wrapper.terms[1].weight.assign(np.inf)
    )
    stop = kd.callbacks.TerminateOnNonFinite()
    with pytest.raises(kd.callbacks.NonFiniteLoss) as error:
        wrapper.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[spoil, stop])
    assert "Received: loss=inf in step 1 of epoch 2." in str(error.value)


def test_plain_models_and_half_precision():
    x, y = samples(16)
    student = network("student")
    student.compile("sgd", CE)
    with pytest.raises(kd.callbacks.NonFiniteLoss, match=r"Received: loss=nan in step 1 of"):
        fit(student, np.full_like(x, np.nan), y)
    with pytest.raises(kd.callbacks.NonFiniteLoss, match="mixed_bfloat16 or float32"):
        fit(distiller(dtype="mixed_float16"), np.full_like(x, np.nan), y)


def test_finite_losses_go_through():
    x, y = samples(16)
    assert len(fit(distiller(), x, y, epochs=2).history["loss"]) == 2
