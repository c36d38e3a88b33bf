"""Mixed precision beyond the contract: heavy terms, loss scaling, networks of other policies."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests.contract import Wrapper
from tests.contract import in_pairs
from tests.contract import network
from tests.contract import samples
from tests.contract import two_heads

HEAVY = 30000.0  # the largest weight in use, ProbabilisticTransfer's
MOST_STEPS = 20  # until a scale of 2**-5


def term(loss, *layers, weight=HEAVY):
    wiring = dict(zip(("teacher", "student"), layers))
    return kd.Term(loss, weight=weight, connector="auto" if layers else None, **wiring)


def distiller(**options):
    """Each kind of loss, each as heavy as that."""
    terms = [
        term(kd.losses.SoftTargets(4.0)),
        term(kd.losses.Hint(), "features", "features"),
        term(kd.losses.ProbabilisticTransfer(), "pool", "pool"),
        term(kd.losses.AttentionTransfer(), "features", "features"),
    ]
    return kd.Distiller(network("teacher", 5, **options), network("student", **options), terms)


def of_student(cls, **arguments):
    return lambda **options: cls(network("student", **options), **arguments)


def of_both(cls, make=network, **arguments):
    def create(**options):
        return cls(network("teacher", 5, **options), make("student", **options), **arguments)

    return create


def mutual(**options):
    return kd.MutualLearner([network(name, **options) for name in "ab"], weight=HEAVY)


WRAPPERS = {
    "ClassWiseDistiller": Wrapper(of_student(kd.ClassWiseDistiller, weight=HEAVY), in_pairs),
    "Distiller": Wrapper(distiller),
    "DistortionDistiller": Wrapper(
        of_student(kd.DistortionDistiller, weight=HEAVY, feature_weight=HEAVY), in_pairs
    ),
    "MeanTeacher": Wrapper(of_student(kd.MeanTeacher, weight=HEAVY), in_pairs),
    "MutualLearner": Wrapper(mutual),
    "NativeEnsemble": Wrapper(
        of_student(kd.NativeEnsemble, branch_at="features", temperature=3.0, weight=HEAVY)
    ),
    "ReusedClassifierDistiller": Wrapper(of_both(kd.ReusedClassifierDistiller, weight=HEAVY)),
    "SelfDistiller": Wrapper(
        of_student(kd.SelfDistiller, exits=["stem", "features"], feature_weight=HEAVY)
    ),
    "TeacherFreeDistiller": Wrapper(
        of_student(kd.TeacherFreeDistiller, mode="virtual", multiplier=HEAVY)
    ),
    "TwoHeadDistiller": Wrapper(
        of_both(
            kd.TwoHeadDistiller,
            two_heads,
            distillation_losses=term(kd.losses.HardTargets()),
            label_head="logits",
        )
    ),
}


def updates(model):
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def arrays(model):
    return [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]


def first_update(model, wrapper):
    """What the first update that is not skipped changes, its logs, and the steps it took."""
    x, y = wrapper.element(*samples(8))
    before, steps = arrays(model), 0
    while not updates(model) and steps < MOST_STEPS:
        for old, new in zip(before, arrays(model)):
            np.testing.assert_array_equal(old, new)  # a step that is skipped changes nothing
        logs = model.train_on_batch(x, y, return_dict=True)
        assert all(np.isfinite(value) for value in logs.values())
        steps += 1
    return [new - old for old, new in zip(before, arrays(model))], logs, steps


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_heavy_term_takes_the_step_of_float32(name):
    """Its loss is finite in float32; where the gradient overflows, the scale falls till it fits."""
    wrapper = WRAPPERS[name]
    compiling = {"optimizer": keras.optimizers.SGD(1e-6), "run_eagerly": True}
    plain = wrapper.compiled(compile=compiling)
    expected, logs, steps = first_update(plain, wrapper)
    assert steps == 1 and logs["loss"] > 100
    compiling = {**compiling, "optimizer": keras.optimizers.SGD(1e-6)}
    mixed = wrapper.compiled(dtype="mixed_float16", compile=compiling)
    found, mixed_logs, steps = first_update(mixed, wrapper)
    optimizer = mixed.optimizer
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    assert optimizer.initial_scale == 2.0**15
    scale = float(keras.ops.convert_to_numpy(optimizer.dynamic_scale))
    assert updates(mixed) == 1 and scale == 2.0**15 * 0.5 ** (steps - 1)
    assert mixed_logs["loss"] == pytest.approx(logs["loss"], rel=0.05)
    found, expected = (
        np.concatenate([part.ravel() for part in parts]) for parts in (found, expected)
    )
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


# Networks of different policies.

PLAIN = {
    "Distiller": lambda teacher, student: kd.Distiller(
        network("teacher", 5, dtype=teacher),
        network("student", dtype=student),
        [kd.losses.SoftTargets(2.0), term(kd.losses.Hint(), "features", "features", weight=1.0)],
    ),
    "Distiller of an ensemble": lambda teacher, student: kd.Distiller(
        kd.EnsembleTeacher([network("a", 4, dtype=teacher), network("b", 5, dtype=student)]),
        network("student", dtype=student),
        [
            kd.losses.SoftTargets(2.0),
            term(kd.losses.Hint(), "a/features", "features", weight=1.0),
        ],
    ),
    "MutualLearner": lambda one, other: kd.MutualLearner(
        [network("a", 4, dtype=one), network("b", 4, dtype=other)]
    ),
    "ReusedClassifierDistiller": lambda teacher, student: kd.ReusedClassifierDistiller(
        network("teacher", 5, dtype=teacher),
        network("student", dtype=student),
        student_loss_weight=1.0,
    ),
    "TwoHeadDistiller": lambda teacher, student: kd.TwoHeadDistiller(
        network("teacher", 5, dtype=teacher),
        two_heads("student", dtype=student),
        label_head="logits",
    ),
}


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    "policies", [("float32", "mixed_float16"), ("mixed_float16", "float32")], ids="->".join
)
def test_networks_of_different_policies_train_as_in_float32(name, policies):
    logs = []
    for own in (("float32", "float32"), policies):
        wrapper = Wrapper(lambda own=own: PLAIN[name](*own))
        model = wrapper.compiled(compile={"run_eagerly": True})
        for _ in range(3):
            found = model.train_on_batch(*samples(8), return_dict=True)
        logs.append(found)
    mixed = policies[1] == "mixed_float16" or name == "MutualLearner"
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == mixed
    assert updates(model) == 3
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    losses = [key for key in logs[0] if "accuracy" not in key]
    for key in losses:
        assert logs[1][key] == pytest.approx(logs[0][key], rel=0.05, abs=1e-3), key
