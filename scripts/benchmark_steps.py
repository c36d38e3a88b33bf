"""The standard set of `benchmark.py`: steps of KD, DML and DLB beside their parts and peers.

The parts of KD are what it has to do: train the student (`fit`) and run the teacher (`predict`).
All cases read the same images; batches lie ready, but for DLB's.
"""

import dataclasses

import benchmark_peers
import keras
from benchmark_measure import Case
from benchmark_measure import Ratio
from benchmark_measure import Timed
from benchmark_measure import compiled
from benchmark_measure import fitting
from benchmark_measure import label_loss
from benchmark_measure import samples
from benchmark_measure import student
from benchmark_measure import teacher

import keras_distill as kd

TAPS = ("stage1", "stage2", "stage3")
PARTS = ("student fit", "teacher predict")
WIRINGS = {"logits": (), "3 taps": TAPS}
FORMATS = ("", ", channels-last")


def ours(settings, tag, taps=(), **options):
    terms = [kd.Term(kd.losses.SoftTargets(4.0), weight=0.9)]
    terms += [kd.Term("mse", tap, tap) for tap in taps]
    networks = teacher(settings, f"teacher_{tag}"), student(settings, f"student_{tag}")
    distiller = kd.Distiller(*networks, terms, student_loss_weight=0.1, **options)
    return compiled(settings, distiller)


def theirs(settings, tag, taps):
    losses = [keras.distillation.LogitsDistillation(4.0, loss=keras.losses.KLDivergence())]
    losses += [
        keras.distillation.FeatureDistillation(
            loss="mse", teacher_layer_name=tap, student_layer_name=tap
        )
        for tap in taps
    ]
    networks = teacher(settings, f"teacher_{tag}"), student(settings, f"student_{tag}")
    distiller = keras.distillation.Distiller(*networks, losses, student_loss_weight=0.1)
    distiller.compile("sgd", label_loss(), jit_compile=settings.jit)
    return distiller


def peer(scheme, memory_format, settings):
    """The `Case` of a loop in PyTorch."""
    images, half = settings.count, settings.batch_size // 2
    forwarded = {"KD": images, "DML": 2 * images, "DLB": 2 * images - half}

    def make():
        return benchmark_peers.made(
            loop=scheme,
            settings=dataclasses.asdict(settings),
            count=images,
            memory_format=memory_format,
        )

    return Case(make, forwarded[scheme], ("torch",))


def suite(settings):
    import tensorflow as tf

    images, labels = samples(settings, "float32")
    count, half = settings.count, settings.batch_size // 2
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    data = data.batch(settings.batch_size, drop_remainder=True).cache().prefetch(2)

    def fit(make):
        return lambda: fitting(make(), data)

    def predict():
        network = teacher(settings, "teacher_alone")
        network.compile(jit_compile=settings.jit)
        inputs = data.map(lambda x, y: x)
        return lambda: network.predict(inputs, verbose=0)

    def dlb():
        halves = kd.data.overlap_batches((images, labels), half, seed=0)
        return fitting(compiled(settings, kd.DLBModel(student(settings, "dlb"))), halves)

    def dml():
        pair = [student(settings, f"mutual_{i}") for i in range(2)]
        return compiled(settings, kd.MutualLearner(pair))

    cases = {
        "student fit": Case(fit(lambda: compiled(settings, student(settings, "alone"))), count),
        "teacher predict": Case(predict, count),
    }
    ratios = []
    for name, taps in WIRINGS.items():
        own, other = f"KD, {name}", f"keras.distillation, {name}"
        tag = name.replace(" ", "_")
        cases[own] = Case(fit(lambda t=tag, x=taps: ours(settings, t, x)), count)
        cases[other] = Case(fit(lambda t=tag, x=taps: theirs(settings, f"k_{t}", x)), count)
        ratios += [over_parts(own), over_parts(other), Ratio(own, (other,))]
    lower = "KD, logits, bfloat16 teacher"
    cases[lower] = Case(fit(lambda: ours(settings, "lower", teacher_dtype="bfloat16")), count)
    ratios.append(over_parts(lower))
    cases["DML"] = Case(fit(dml), 2 * count)
    cases["DLB, ready images"] = Case(dlb, 2 * count)
    held = {"KD": ("KD, logits", lower), "DML": ("DML",), "DLB": ("DLB, ready images",)}
    for form in FORMATS:
        for scheme, own in held.items():
            name = f"PyTorch {scheme}{form}"
            cases[name] = peer(scheme, form, settings)
            ratios += [Ratio(one, (name,)) for one in own]
        ratios.append(over_parts(f"PyTorch KD{form}"))
    return Timed(cases, tuple(ratios), "student fit")


def over_parts(case):
    return Ratio(case, PARTS, reference="the parts")
