"""MutualLearner, one student after the other, keeps the promises of every wrapper.

`tests/test_contract.py` runs on all backends and accumulates gradients, which this order refuses.
"""

import keras
import numpy as np
import pytest

from tests.contract import network
from tests.contract import samples
from tests.models import cohorts
from tests.models import nets

pytestmark = pytest.mark.tensorflow


def three(dtype=None, batch_norm=True, dropout=0.0, **compile_options):
    keras.utils.set_random_seed(7)
    options = {"dtype": dtype, "batch_norm": batch_norm, "dropout": dropout}
    students = [network(name, width, **options) for name, width in zip("abc", (3, 4, 5))]
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    compile_options = {"metrics": ["accuracy"], **compile_options}
    return cohorts.compiled(
        students, optimizer, compile_options=compile_options, update="sequential", temperature=2.0
    )


def assert_same_run(model, other, logs, other_logs, rtol=1e-5):
    for a, b in zip(cohorts.states(model), cohorts.states(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)
    for name in logs:
        np.testing.assert_allclose(logs[name], other_logs[name], rtol=10 * rtol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"jit_compile": True}, {"steps_per_execution": 3}, {"run_eagerly": True}]
)
def test_compiled_in_any_way_it_trains_the_same(options):
    x, y = samples()
    plain, other = three(), three(**options)
    logs, other_logs = (cohorts.fit(model, x, y, batch_size=8) for model in (plain, other))
    assert_same_run(plain, other, logs, other_logs, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains(policy):
    model = three(dtype=policy)
    is_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (policy == "mixed_float16")
    history = cohorts.fit(model, *samples(), epochs=5, batch_size=8)
    assert all(np.isfinite(values).all() for values in history.values())
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.slow
def test_mixed_precision_scales_each_loss_as_it_unscales_its_gradient():
    """The scale grows in between: the steps are those of float32."""
    x, y = samples()
    plain, scaled = three(), three(dtype="mixed_float16")
    scaled.optimizer.dynamic_growth_steps = 2
    start = float(scaled.optimizer.dynamic_scale.numpy())
    logs, other = (cohorts.fit(model, x, y, batch_size=8) for model in (plain, scaled))
    assert float(scaled.optimizer.dynamic_scale.numpy()) > start
    for name in ("loss", "a_loss", "c_mimicry"):
        np.testing.assert_allclose(logs[name], other[name], rtol=0.05)


@pytest.mark.slow
def test_two_replicas_equal_one_device(two_replicas):
    import tensorflow as tf

    def run(strategy):
        with strategy.scope():
            model = three(batch_norm=False)
        return model, cohorts.fit(model, *samples(40), batch_size=8)

    model, logs = run(tf.distribute.get_strategy())
    both, logs_of_both = run(two_replicas)
    for a, b in zip(model.trainable_variables, both.trainable_variables, strict=True):
        np.testing.assert_allclose(nets.array(a), nets.array(b), rtol=1e-5, atol=1e-7)
    for name in logs:
        np.testing.assert_allclose(logs[name], logs_of_both[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_batch_statistics_on_two_replicas(two_replicas):
    """They move once a step there too, and dropout is drawn."""
    with two_replicas.scope():
        model = three(dropout=0.5)
    history = cohorts.fit(model, *samples(), epochs=3, batch_size=8)
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.slow
def test_load_and_fit_on_equals_uninterrupted(tmp_path):
    x, y = samples()
    model = three(dropout=0.5)
    cohorts.fit(model, x, y, batch_size=8)
    model.save(tmp_path / "cohort.keras")
    loaded = keras.saving.load_model(tmp_path / "cohort.keras")
    assert loaded.update == "sequential"
    logs, other = (cohorts.fit(m, x, y, epochs=2, batch_size=8) for m in (model, loaded))
    assert_same_run(model, loaded, logs, other)
