"""What `benchmark.py --losses` times: a step with one more term, beside the step without.

Losses that own layers, attack the input or loop over the batch are also held against the same
arithmetic in a bare `tf.function`: the same networks, the same loss object, no wrapper.
"""

import types

import benchmark_schemes
import keras
from benchmark_schemes import Variant

import keras_distill as kd
from keras_distill.backbones import resnet
from keras_distill.recipes import loss_terms

WITHOUT = "soft targets alone"
ADDS = {
    "Hint": 1.05,
    "AttentionTransfer": 1.05,
    "ActivationBoundary": 1.05,
    "SimilarityPreserving": 1.05,
    "ProbabilisticTransfer": 1.05,
    "RelationalDistance": 1.05,
    "CorrelationCongruence": 1.05,
    "FlowOfSolution": 1.05,
    "NeuronSelectivity": 1.10,
}
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
BARE_BOUND = 1.05


def networks(arguments, tag):
    """A fresh teacher and student, whose last stages agree in channels."""
    teacher = resnet(arguments.teacher_depth, name=f"teacher_{tag}")
    student = resnet(arguments.student_depth, name=f"student_{tag}")
    return teacher, student


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


def distiller(arguments, data, name=None):
    teacher, student = networks(arguments, name or "plain")
    terms = [kd.Term(kd.losses.SoftTargets(4.0), weight=0.9)]
    if name is not None:
        terms += terms_of(wiring(name, teacher, student, data))
    model = kd.Distiller(teacher, student, terms, student_loss_weight=0.1)
    model.compile("sgd", benchmark_schemes.label_loss())
    return model


def bare_step(model):
    """One update of a Distiller's networks and terms in a `tf.function` of its own."""
    import tensorflow as tf

    part = model._parts.current
    trained = model.trainable_variables
    optimizer = keras.optimizers.SGD(0.01)
    optimizer.build(trained)
    label_loss = benchmark_schemes.label_loss()

    def logits(network):
        return lambda x: network.class_scores(x)

    @tf.function
    def step(x, y, ids):
        with tf.GradientTape() as tape:
            teacher = part.teacher_network(x)
            student = part.student_network(x, training=True)
            total = 0.1 * label_loss(y, student.scores[0])
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


def variants(arguments):
    """All variants by name, the references among them."""
    images, labels = benchmark_schemes.samples(arguments)
    names = [str(i) for i in range(10)]
    data = kd.data.ImageData(images, labels, names, "noise")
    count = len(images)
    batches = kd.data.batches(images, labels, arguments.batch_size, shuffle=False, ids=True)
    batches = batches.cache()
    found = {}

    def fitting(model):
        return lambda: model.fit(batches, shuffle=False, verbose=0)

    def looping(step):
        def run():
            for x, y in batches:
                step(x, y["labels"], y["ids"])

        return run

    found[WITHOUT] = Variant(fitting(distiller(arguments, data)), count)
    for name in [*ADDS, *BARE]:
        if arguments.only and name not in arguments.only:
            continue
        model = distiller(arguments, data, name)
        found[name] = Variant(fitting(model), count, WITHOUT, ADDS.get(name))
        if name in BARE:
            step = bare_step(distiller(arguments, data, name))
            found[f"{name}, bare"] = Variant(looping(step), count)
            held = Variant(found[name].run, count, f"{name}, bare", BARE_BOUND)
            found[f"{name}, wrapped"] = held
    return found
