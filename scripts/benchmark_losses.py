"""What `benchmark.py --losses` times: a step with one more term, beside the step without.

Losses that own layers, attack the input or loop over the batch are also held against the same
arithmetic in a bare `tf.function`: the same networks, the same loss object, no wrapper.
"""

import functools
import types

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
from keras_distill.recipes import loss_terms

WITHOUT = "soft targets alone"
ADDS = (
    "Hint",
    "AttentionTransfer",
    "ActivationBoundary",
    "SimilarityPreserving",
    "ProbabilisticTransfer",
    "RelationalDistance",
    "CorrelationCongruence",
    "FlowOfSolution",
    "NeuronSelectivity",
)
BARE = (
    "VariationalInformation",
    "FactorTransfer",
    "ReviewKD",
    "GradientAttention",
    "ContrastiveRepresentation",
    "BoundarySupport",
    "InstanceGraph",
    "RelationalAngle",
)


def wiring(name, teacher, student, data):
    """The loss and its layers, as `keras-distill train --loss NAME` wires them."""
    settings = types.SimpleNamespace(loss=name, weight=1e-3, label_weight=0.1, ensemble=1, seed=0)
    settings.temperature = settings.teacher_layer = settings.student_layer = None
    return loss_terms.wired(settings, teacher, student, data)


def terms_of(made):
    """The terms of a wiring, without a stage before."""
    if made.pairs is None:
        return [kd.Term(made.loss(), weight=1e-3)]
    return [
        kd.Term(made.loss(), own, other, 1e-3, connector=connectors)
        for own, other, connectors in made.pairs
    ]


def distiller(settings, data, name=None):
    networks = teacher(settings, f"teacher_{name}"), student(settings, f"student_{name}")
    terms = [kd.Term(kd.losses.SoftTargets(4.0), weight=0.9)]
    if name is not None:
        terms += terms_of(wiring(name, *networks, data))
    model = kd.Distiller(*networks, terms, student_loss_weight=0.1)
    return compiled(settings, model)


def bare_step(model):
    """One update of a Distiller's networks and terms in a `tf.function` of its own."""
    import tensorflow as tf

    part = model._parts.current
    trained = model.trainable_variables
    optimizer = keras.optimizers.SGD(0.01)
    optimizer.build(trained)
    labelled = label_loss()

    def logits(network):
        return lambda x: network.class_scores(x)

    @tf.function
    def step(x, y, ids):
        with tf.GradientTape() as tape:
            teacher = part.teacher_network(x)
            student = part.student_network(x, training=True)
            total = 0.1 * labelled(y, student.scores[0])
            for term in part.terms:
                total += term.current_weight(0) * value(term, teacher, student, x, y, ids)
        gradients = tape.gradient(total, trained)
        optimizer.apply_gradients(zip(gradients, trained))
        return total

    def value(term, teacher, student, x, y, ids):
        loss = term.loss
        if term.on_inputs:
            both = [logits(network) for network in (part.teacher_network, part.student_network)]
            return loss(*loss.compared(*both, (x, x), y))
        if not term.on_features:
            return loss(teacher.scores[0], student.scores[0])
        own = [student.features[part.student_network.paths.index(p)] for p in term.student_paths]
        own = term.connected(own, True)
        target = [teacher.features[part.teacher_network.paths.index(p)] for p in term.teacher_paths]
        target, own = (side[0] if len(side) == 1 else tuple(side) for side in (target, own))
        return loss((target, ids) if loss.needs_ids else target, own)

    return step


def suite(settings):
    images, labels = samples(settings)
    names = [str(i) for i in range(10)]
    data = kd.data.ImageData(images, labels, names, "noise")
    batches = kd.data.batches(images, labels, settings.batch_size, shuffle=False, ids=True)
    batches = batches.cache()

    def fit(name):
        return fitting(distiller(settings, data, name), batches)

    def loop(name):
        step = bare_step(distiller(settings, data, name))

        def run():
            for x, y in batches:
                total = step(x, y["labels"], y["ids"])
            return float(total)

        return run

    cases = {WITHOUT: Case(functools.partial(fit, None), settings.count)}
    ratios = []
    for name in (*ADDS, *BARE):
        cases[name] = Case(functools.partial(fit, name), settings.count)
        ratios.append(Ratio(name, (WITHOUT,)))
    for name in BARE:
        bare = f"{name} in a bare step"
        cases[bare] = Case(functools.partial(loop, name), settings.count, ("tensorflow",))
        ratios.append(Ratio(name, (bare,)))
    return Timed(cases, tuple(ratios), WITHOUT)
