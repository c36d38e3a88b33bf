"""Boundary supporting samples: images attacked until the teacher is in two minds."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill import distribution
from keras_distill._ops import flatten_samples
from keras_distill._ops import l2_normalize
from keras_distill._types import Config
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _draws
from keras_distill.losses import _inputs
from keras_distill.losses import _logits
from keras_distill.losses.base import DistillationLoss
from keras_distill.losses.trained import TrainedLoss

SCORES = ("logits", "probs")


def eligible(teacher_logits, student_logits, labels):
    """Which samples may be attacked, and the order of preference among them.

    Args:
        teacher_logits: Tensor `(batch, classes)`.
        student_logits: Tensor `(batch, classes)`.
        labels: Class ids `(batch,)`.

    Returns:
        `(right, score)`: a boolean `(batch,)`, where both networks' largest logit is the label's;
        and `sum over k != label of (p_t - p_s)^2`, at a temperature of 1.
    """
    is_label = _logits.target_mask(labels, teacher_logits)
    labels = ops.cast(labels, "int32")
    right = ops.logical_and(
        ops.equal(_largest(teacher_logits), labels), ops.equal(_largest(student_logits), labels)
    )
    squares = ops.square(ops.softmax(teacher_logits) - ops.softmax(student_logits))
    return right, ops.sum(ops.where(is_label, ops.zeros_like(squares), squares), axis=-1)


def target_classes(teacher_logits, labels, draws):
    """A class to attack towards, drawn with probability `p_t(k) / (1 - p_t(label))`.

    The inverse of the distribution function over the teacher's other classes, sorted from the
    likeliest: the first class at which the sum of the probabilities reaches the draw.

    Args:
        teacher_logits: Tensor `(batch, classes)`.
        labels: Class ids `(batch,)`.
        draws: Tensor `(batch,)`, uniform in 0 .. 1.

    Returns:
        int32 tensor `(batch,)`.
    """
    is_label = _logits.target_mask(labels, teacher_logits)
    others = ops.where(is_label, ops.full_like(teacher_logits, _logits.EXCLUDED), teacher_logits)
    order = ops.argsort(-others, axis=-1)
    reached = ops.cumsum(ops.take_along_axis(ops.softmax(others), order, axis=-1), axis=-1)
    below = ops.cast(reached < ops.expand_dims(ops.cast(draws, reached.dtype), -1), "int32")
    # Rounding may leave the whole sum below a draw near 1; the label stands last.
    place = ops.minimum(ops.sum(below, axis=-1), teacher_logits.shape[-1] - 2)
    return ops.cast(_at(order, place), "int32")


def attack(network, images, targets, steps=10, step_size=0.3, bounds=(-2.5, 2.5), score="logits"):
    """Images moved towards the target class until the network's largest score changes.

    Each step, while the largest score is still that of the clean image's class:
    `x <- clip(x + step_size * (z_base - z_target + 1e-4) * g / ||g||, bounds)`, with
    `g = d(z_target - z_base) / dx`. The step that crosses is kept, which may lead into a third
    class. Where g is 0 the image stays. On TensorFlow only.

    Args:
        network: A function of images that gives logits, each sample's on its own.
        images: Float tensor `(batch, ...)`.
        targets: Class ids `(batch,)`.
        steps: Number of steps.
        step_size: Factor of a step.
        bounds: `(low, high)` of the images, or `None`.
        score: Whether z is `"logits"` or `"probs"`, softmax probabilities.

    Returns:
        Tensor of the shape of `images`, a constant to the gradient.
    """
    import tensorflow as tf

    base = _largest(_inputs.scores_of(network, images))

    def step(_, images):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            scores = _inputs.scores_of(network, images)
            if score == "probs":
                scores = ops.softmax(scores)
            lead = _at(scores, base) - _at(scores, targets)
            behind = -lead
        slope = tape.gradient(behind, images, unconnected_gradients="zero")
        still = ops.cast(ops.equal(_largest(scores), base), images.dtype)
        length = step_size * still * (ops.cast(lead, images.dtype) + 1e-4)
        moves = ops.expand_dims(length, -1) * l2_normalize(flatten_samples(slope))
        images = images + ops.reshape(moves, ops.shape(images))
        return images if bounds is None else ops.clip(images, *bounds)

    return ops.stop_gradient(ops.fori_loop(0, steps, step, ops.stop_gradient(images)))


@keras.saving.register_keras_serializable(package="keras_distill")
class BoundarySupport(TrainedLoss):
    """Distillation with boundary supporting samples, BSS (Heo et al. 2019).

    Samples whose class both networks name rightly are attacked, towards a class drawn from what
    the teacher says of the others, until the teacher's answer changes: see `eligible`,
    `target_classes` and `attack`. There, near the teacher's boundary, the student learns from it:

        L = -(1 / N) sum over the N attacked samples, sum_k softmax(z_t / T) log softmax(z_s / T)

    without the factor T^2; 0 where none is attacked. The attacked images are constants, and no
    gradient reaches the teacher. It takes the networks' logits and labels by itself, so that the
    term names no layers; it needs labels (those of -1 are left out), one tensor of inputs for
    both networks, and TensorFlow. One value a sample, whose mean over the batch is L.

    Weight in use, beside the label loss and the soft targets at T = 3 without T^2 (weights of E
    epochs of S steps; the code counts in epochs):

        kd.Term(kd.losses.BoundarySupport(), weight=kd.schedules.Linear(2.0, 0.0, 3 * E * S // 4))
        kd.Term(
            kd.losses.SoftTargets(3.0), weight=kd.schedules.Linear(4 / 9, 1 / 9, E * S)
        )

    On several replicas each attacks up to `attack_size` samples of its own batch, and N counts
    those of all replicas: where `attack_size` leaves none out, the step is that of one device.

    Args:
        attack_size: The most samples of a batch that are attacked: those whose predictions differ
            the most. 64 of a batch of 256 in the authors' code.
        steps: Steps of the attack.
        step_size: Factor of a step of the attack.
        bounds: `(low, high)`, the least and the largest value of an image, or `None`. The default
            belongs to standardised images: pass `(0, 1)` for images in 0 .. 1.
        score: What is attacked: `"logits"`, or `"probs"`, softmax probabilities (AberHu's code).
        temperature: T of the soft cross-entropy.
        seed: Whole number that starts the draws. Defaults to a random one.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.

    References:
        Heo et al. AAAI 2019, https://arxiv.org/abs/1805.05532. Follows the authors' code.

    Deviation: the student runs for inference, on the clean images that are selected and on the
        attacked ones, so that its batch statistics are those of the clean images alone.
    Deviation: an image where the teacher's slope is 0 stays, where the code gives NaN.
    """

    on_inputs = True
    # It holds a seed, but no layers: nothing to build.
    __call__ = DistillationLoss.__call__

    def __init__(
        self,
        attack_size: int = 64,
        steps: int = 10,
        step_size: float = 0.3,
        bounds: tuple[float, float] | None = (-2.5, 2.5),
        score: str = "logits",
        temperature: float = 3.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.attack_size = _checks.positive_integer("attack_size", attack_size)
        self.steps = _checks.positive_integer("steps", steps)
        self.step_size = _checks.positive("step_size", step_size)
        self.bounds = _checked_bounds(bounds)
        self.score = _checks.one_of("score", score, SCORES)
        self.temperature = _checks.positive("temperature", temperature)
        self.seed = seed
        self._seeds = keras.random.SeedGenerator(seed)
        self.built = True

    def compared(
        self,
        teacher: Callable[[Structure], Tensor],
        student: Callable[[Structure], Tensor],
        inputs: tuple[Structure, Structure],
        labels: Tensor | None,
        training: bool = True,
    ) -> tuple[Structure, Structure]:
        images, labels = _inputs.images_and_labels(self.name, inputs, labels)
        of_teacher = ops.stop_gradient(_inputs.scores_of(teacher, images))
        of_student = ops.stop_gradient(_inputs.scores_of(student, images))
        _inputs.check_classes(self.name, of_teacher, of_student)
        right, score = eligible(of_teacher, of_student, labels)

        def draw(rows):
            return keras.random.uniform(
                (rows,), dtype="float32", seed=self._seeds if training else 0
            )

        draws = _draws.of_own_rows(draw, ops.shape(images)[0])
        targets = target_classes(of_teacher, labels, draws)
        # The samples to attack stand first.
        order = ops.argsort(-ops.where(right, score, -ops.ones_like(score)))
        rows = order[: self.attack_size]
        attacked = attack(
            teacher,
            ops.take(images, rows, axis=0),
            ops.take(targets, rows, axis=0),
            self.steps,
            self.step_size,
            self.bounds,
            self.score,
        )
        logits = ops.stop_gradient(_inputs.scores_of(teacher, attacked))
        student_logits = _inputs.scores_of(student, attacked)
        # Back to the order of the batch, whose other rows hold any logits.
        places = ops.argsort(order)
        right = ops.logical_and(right, places < self.attack_size)
        places = ops.minimum(places, ops.shape(rows)[0] - 1)
        logits, student_logits = (ops.take(x, places, axis=0) for x in (logits, student_logits))
        return (logits, right), student_logits

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        """The values of a batch.

        Args:
            y_true: `(teacher_logits, attacked)`: `(batch, classes)`, and a boolean `(batch,)`.
            y_pred: The student's logits `(batch, classes)`.
        """
        teacher, attacked = y_true
        teacher, student = _logits.matched_pair(teacher, y_pred)
        temperature = _logits.temperature_like(self.temperature, student)
        probs = ops.softmax(teacher / temperature)
        values = -ops.sum(probs * ops.log_softmax(student / temperature), axis=-1)
        attacked = ops.cast(attacked, values.dtype)
        count = distribution.sum_over_replicas(ops.sum(attacked))
        # Keras takes the mean over the rows of a replica, and then over the replicas.
        context = distribution.replica_context()
        replicas = 1 if context is None else context.num_replicas_in_sync
        rows = ops.cast(ops.shape(values)[0] * replicas, values.dtype)
        return values * attacked * rows / ops.maximum(count, 1.0)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "attack_size": self.attack_size,
            "steps": self.steps,
            "step_size": self.step_size,
            "bounds": self.bounds,
            "score": self.score,
            "temperature": self.temperature,
            "seed": self.seed,
        }


def _largest(scores):
    return ops.cast(ops.argmax(scores, axis=-1), "int32")


def _at(table, places):
    """Each row's entry at its place: `(batch, classes)` and `(batch,)` -> `(batch,)`."""
    return ops.take_along_axis(table, ops.expand_dims(places, -1), axis=-1)[:, 0]


def _checked_bounds(bounds):
    """`bounds` as a list of two floats, or `None`."""
    if bounds is None:
        return None
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise ValueError(
            _checks.message("`bounds` to be (low, high), low below high, or None", "bounds", bounds)
        )
    return [_checks.finite("bounds", bound) for bound in bounds]
