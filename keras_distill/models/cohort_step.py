"""The training step of a cohort whose students step one by one. TensorFlow only."""

import contextlib

import keras

from keras_distill import _checks
from keras_distill import distribution
from keras_distill.models.outputs import as_targets
from keras_distill.models.outputs import batch_size


def train_step(learner, x, y, sample_weight):
    """One update of each student, with a tape of its own, on its own device.

    The tapes are open together around one forward of all students: each watches one student,
    so that it records that student alone. Then, student by student: its loss against its
    peers' predictions, its gradient, its update, and, where the updates are sequential, the
    predictions that its new weights make, for the students after it.

    Args:
        learner: The `MutualLearner`.
        x, y, sample_weight: The batch.

    Returns:
        The logs.
    """
    import tensorflow as tf

    cohort, targets = learner.cohort, as_targets(y)
    last = len(cohort) - 1
    trained = [student.trainable_variables for student in cohort.students]
    temperature, weight = learner.current_temperature, learner.current_weight
    with contextlib.ExitStack() as stack:
        tapes = []
        for variables in trained:
            tapes.append(stack.enter_context(tf.GradientTape(watch_accessed_variables=False)))
            tapes[-1].watch([variable.value for variable in variables])
        outputs = learner(x, training=True)
        log_probs, peers = learner.peers_seen(outputs.terms, temperature)
    rows = batch_size(outputs.prediction)
    losses, label_losses = [], []
    for k, (tape, variables) in enumerate(zip(tapes, trained)):
        with cohort.on(k):
            with tape:
                parts = [
                    learner._aggregate_additional_loss(loss) for loss in cohort.students[k].losses
                ]
                label_loss = learner.student_label_loss(
                    k, targets.labels, outputs.prediction, sample_weight
                )
                if label_loss is not None:
                    label_losses.append(label_loss)
                    parts.append(label_loss)
                mimicry = learner.mimicry(k, log_probs[k], peers, temperature, sample_weight)
                learner._log(learner._term_trackers[k], mimicry, rows)
                loss = sum(keras.ops.cast(part, "float32") for part in [*parts, mimicry * weight])
                scaled = learner.optimizer.scale_loss(loss)
            losses.append(loss)
            if variables:
                gradients = tape.gradient(scaled, [variable.value for variable in variables])
                learner.optimizer.apply_gradients(zip(gradients, variables))
        if learner.update == "sequential" and k < last:
            peers[k] = _seen_again(learner, k, x, temperature)
    if label_losses:
        learner._log(learner._label_loss_tracker, sum(label_losses), rows)
    learner._log(learner._loss_tracker, sum(losses), rows)
    logs = learner.compute_metrics(x, y, outputs, sample_weight)
    return distribution.logs_for_reduction(logs, learner.distribute_strategy)


def _seen_again(learner, index, x, temperature):
    """What the peers see of a student that has stepped.

    From a forward in training mode whose effects are dropped: the batch has moved the batch
    statistics already, and added its activity losses. Only the seeds of dropout go on.
    """
    cohort, student = learner.cohort, learner.cohort.students[index]
    with keras.StatelessScope(initialize_variables=False) as scope:
        _, logits = cohort.run(index, x, training=True)
        peer = cohort.as_peer(index, cohort.log_probabilities(index, logits, temperature))
    weights = {id(variable) for variable in student.weights}
    for variable in student.variables:
        value = scope.get_current_value(variable)
        if id(variable) not in weights and value is not None:
            variable.assign(value)
    return peer


def check_optimizers(optimizers, update):
    """Raises where the order of the updates would be lost."""
    if update != "sequential":
        return
    for optimizer in optimizers:
        if optimizer.gradient_accumulation_steps:
            raise ValueError(
                _checks.message(
                    "optimizers that step at every batch with update='sequential', for peers "
                    "follow each other's steps",
                    "gradient_accumulation_steps",
                    optimizer.gradient_accumulation_steps,
                    "Use update='simultaneous', or larger batches.",
                )
            )


def checked_jit(jit_compile, devices):
    """`jit_compile` for `compile`: XLA compiles for one device."""
    if devices is None or jit_compile is False:
        return jit_compile
    if jit_compile == "auto":
        return False
    raise ValueError(
        _checks.message(
            "`jit_compile` to be False where students have devices of their own: XLA compiles "
            "for one device",
            "jit_compile",
            jit_compile,
        )
    )
