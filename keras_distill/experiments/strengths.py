"""How a loss is wired in an experiment, and how strong it is where training begins."""

import dataclasses
import math
import types

import keras
import numpy as np
from keras import ops

from keras_distill.recipes import loss_names
from keras_distill.recipes import loss_terms
from keras_distill.recipes import networks
from keras_distill.recipes import running
from keras_distill.recipes import schemes

ALPHA = 0.5
SHARE = 4  # official: 64 of 256 images of a batch are attacked
# The arguments that the command line cannot know, or that a batch of 64 wants in proportion.
ARGUMENTS = {
    "AlphaDivergence": lambda task: {"alpha": ALPHA},
    "BoundarySupport": lambda task: {"attack_size": max(1, task.setting.batch_size // SHARE)},
}


def wiring(name, teacher, student, task):
    """The `loss_terms.Wiring` of a loss: the papers' layers and weights.

    Args:
        name: The loss.
        teacher, student: The networks.
        task: The `Task`.
    """
    more = ARGUMENTS.get(name, lambda task: {})(task)
    if loss_names.unknown_arguments(name):
        return loss_terms.Wiring(name, more, loss_terms.use_of(name))
    said = dict.fromkeys(
        ("temperature", "weight", "label_weight", "teacher_layer", "student_layer")
    )
    settings = types.SimpleNamespace(loss=name, ensemble=1, seed=task.seed, **said)
    found = loss_terms.wired(settings, teacher, student, task.images)
    return dataclasses.replace(found, arguments={**found.arguments, **more})


def slope(place, row, seed):
    """`{"slope": ...}` of a row that is named after its loss, see `slope_of`."""
    return {"slope": slope_of(place, row.name, seed)}


def slope_of(place, name, seed):
    """How strong a loss is where training begins.

    The norm of the gradient of the weighted loss, at the weight of its schedule that is farthest
    from 0, over that of the label loss: on the first batch, by all of the student's weights. None
    for `FactorTransfer`, whose paraphraser has learned nothing then.
    """
    task = running.task_of(
        schemes.named("distillation"), place.load().train, place.scale.options.filled(), seed
    )
    teacher = networks.load(place.model("teacher", seed))
    wired = wiring(name, teacher, task.build(), task)
    if wired.paraphrases:
        return None
    use = dataclasses.replace(wired.use, rises=None, falls=None, first=None, label_weight=0.0)
    wired = dataclasses.replace(wired, use=use)
    student, alone = task.build(), task.build()
    keras.utils.set_random_seed(seed)
    model = wired.distiller(teacher, student, 1, task.steps)
    moved = _moved(task.plan(model, student, ids=bool(wired.needs_ids)))
    return moved / _moved(task.plan(alone, alone))


def _moved(plan):
    """The norm of the gradient on the first batch: of what a step of SGD at rate 1 changes."""
    before = [ops.convert_to_numpy(v) for v in plan.network.trainable_variables]
    plan.model.compile(keras.optimizers.SGD(1.0), plan.compile["loss"], run_eagerly=True)
    plan.model.fit(plan.data(0).take(1), shuffle=False, verbose=0)
    after = [ops.convert_to_numpy(v) for v in plan.network.trainable_variables]
    return math.sqrt(sum(float(np.square(a - b).sum()) for a, b in zip(after, before)))
