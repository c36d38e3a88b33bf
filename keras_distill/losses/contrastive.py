"""Contrastive representation distillation: a sample's two embeddings against those of others."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_distill import _checks
from keras_distill import _rows
from keras_distill import distribution
from keras_distill._ops import at_least_float32
from keras_distill._ops import l2_normalize
from keras_distill._types import Config
from keras_distill._types import Shapes
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _draws
from keras_distill.losses import _logits
from keras_distill.losses import misfit
from keras_distill.losses._negatives import KEYS
from keras_distill.losses._negatives import Negatives
from keras_distill.losses.trained import TrainedLoss

MODES = ("exact", "relax")
EPSILON = 1e-7
# A bank of up to so many rows a candidate is multiplied whole: cheaper than gathering rows.
DENSE = 32


def contrastive_scores(bank, vectors, candidates, temperature=0.07):
    """`<m_j, v_i> / T`, the log of CRD's `o = exp(<m, v> / T)`, of each sample's candidates.

    Args:
        bank: The memory `(samples, dimension)` of one network, an array or a `keras.Variable`; a
            constant to the gradient.
        vectors: The other network's embeddings `(batch, dimension)`.
        candidates: int32 `(batch, candidates)`: rows of the bank.
        temperature: A positive number, or a scalar tensor.

    Returns:
        Tensor `(batch, candidates)`.
    """
    vectors = at_least_float32(vectors)
    vectors = vectors / _logits.temperature_like(temperature, vectors)
    count = candidates.shape[-1]
    if count is not None and bank.shape[0] <= DENSE * count:
        everything = ops.stop_gradient(ops.cast(ops.convert_to_tensor(bank), vectors.dtype))
        scores = ops.matmul(vectors, ops.transpose(everything))
        return ops.take_along_axis(scores, candidates, axis=-1)
    rows = ops.cast(ops.stop_gradient(_rows.read_rows(bank, candidates)), vectors.dtype)
    return ops.einsum("bkd,bd->bk", rows, vectors)


def log_normalizer(log_sum, count, samples):
    """The log of CRD's constant `Z = mean(o) * n`, over all scores of a batch.

    Of several replicas the batch is that of all of them.

    Args:
        log_sum: The log of the sum of all `o` of the batch: `ops.logsumexp(scores)`.
        count: How many they are.
        samples: Number n of training samples.
    """
    total = ops.logsumexp(distribution.of_all_replicas(ops.reshape(log_sum, (1,))))
    count = distribution.sum_over_replicas(ops.cast(count, total.dtype))
    return total - ops.log(count) + math.log(samples)


def nce_loss(scores, log_z, samples):
    """Noise-contrastive estimation of one positive against K negatives: shape `(batch,)`.

    With `P = o / Z` and `c = K / n`:
    `-log(P+ / (P+ + c + eps)) - sum over negatives of log(c / (P- + c + eps))`, `eps = 1e-7`,
    computed from logarithms, so that no temperature overflows.

    Args:
        scores: The log of `o`, `(batch, 1 + K)`, the positive first.
        log_z: The log of Z, a scalar.
        samples: Number n of training samples.
    """
    noise = (scores.shape[-1] - 1) / samples
    log_noise = math.log(noise + EPSILON)
    excess = scores - log_z - log_noise
    positive = ops.log_sigmoid(excess[:, 0])
    # log(c / (c + eps)) of each negative.
    constant = (scores.shape[-1] - 1) * (math.log(noise) - log_noise)
    return -(positive + ops.sum(ops.log_sigmoid(-excess[:, 1:]), axis=-1) + constant)


def moved_rows(rows, vectors, momentum=0.5):
    """`l2n(momentum * rows + (1 - momentum) * vectors)`: the rows of a bank after a batch."""
    return l2_normalize(momentum * rows + (1.0 - momentum) * vectors)


@keras.saving.register_keras_serializable(package="keras_distill")
class ContrastiveRepresentation(TrainedLoss):
    """Contrastive representation distillation, CRD (Tian et al. 2020).

    Each network has a linear embedding onto the unit sphere and a memory bank of the embeddings
    of all training samples. A sample's student embedding is told apart, by noise-contrastive
    estimation, from K others in the teacher's bank, and the teacher's in the student's:

        o = exp(<m, v> / T),  P = o / Z,  c = K / n
        L = -(1 / B) [sum log P+ / (P+ + c + 1e-7) + sum log c / (P- + c + 1e-7)],  both sides

    Z is, for each side, `mean(o) * n` of the first batch, and constant from then on. After it is
    scored, a batch moves its rows of both banks, `m <- l2n(momentum * m + (1 - momentum) * v)`.
    Only training moves banks, Z and the seed of the draws; `evaluate` draws the same negatives at
    each batch.

    Features are vectors `(batch, size)`, which may differ in size: taps of the pooled layer. It
    needs the ids of the samples, 0 to `samples - 1` (`kd.data.with_ids`, or
    `kd.data.batches(..., ids=True)`). Weight in use: 0.8, beside the label loss. One value a
    sample, both sides summed.

    Banks, Z, embeddings and seed are saved with the wrapper: a run taken up again goes on as if it
    had not been stopped. The banks hold `2 * samples * dimension` float32 numbers. A bank of at
    most 32 rows a candidate is multiplied whole; of a larger one rows are gathered, a tensor
    `(batch, 1 + negatives, dimension)`.

    On several replicas the step is that of one device: the draws are those for the global batch,
    Z is of the global first batch, each replica scores its samples against the banks as they were
    before the step, and the rows of all replicas are written into every replica's copy. Where one
    batch holds an id twice, one of the two is kept.

    Args:
        samples: Number n of training samples.
        dimension: Size of the embeddings.
        negatives: Number K of negatives for each sample.
        temperature: T, a positive number.
        momentum: Share of the old row, 0 or more and below 1.
        mode: `"exact"`: the positive is the sample itself; `"relax"`: a random one of its class.
        labels: The class ids of all training samples, `(samples,)`, by their ids: negatives are
            of other classes. -1 marks an unlabelled sample, whose negatives are all others. `None`
            (not in `"relax"`): negatives of any class, all other samples.
        seed: Whole number that starts the draws. Defaults to a random one.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.

    References:
        Tian et al. ICLR 2020, https://arxiv.org/abs/1910.10699. Follows RepDistiller, the authors'
        code: both embeddings are trained, negatives are drawn without replacement unless K exceeds
        their number.

    Deviation: a zero embedding stays zero, where the code divides by its norm without a guard.
    Deviation: draws are made on the device, from the sample's id, instead of by the data set.
    """

    needs_ids = True

    def __init__(
        self,
        samples: int,
        dimension: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        mode: str = "exact",
        labels: ArrayLike | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.samples = _checks.positive_integer("samples", samples)
        self.dimension = _checks.positive_integer("dimension", dimension)
        self.negatives = _checks.positive_integer("negatives", negatives)
        self.temperature = _checks.positive("temperature", temperature)
        self.momentum = _checks.non_negative("momentum", momentum)
        if self.momentum >= 1.0:
            raise ValueError(_checks.message("`momentum` below 1", "momentum", momentum))
        self.mode = _checks.one_of("mode", mode, MODES)
        self.labels = _class_ids(labels, self.samples, self.mode)
        self.seed = seed
        self._seeds = keras.random.SeedGenerator(seed)
        self._pool = Negatives(self.samples, self.labels)
        if not self._pool.pools.all():
            raise ValueError(
                _checks.message(
                    "`samples` of more than one class, to be set against each other",
                    "samples",
                    self.samples,
                    "Pass labels=None for negatives of any class.",
                )
            )

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        return misfit.of_one_vector(teacher_shapes, student_shapes)

    def make(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        self.teacher_embedding = self._embedding("teacher_embedding", teacher_shapes)
        self.student_embedding = self._embedding("student_embedding", student_shapes)
        self.teacher_bank = self._bank("teacher_bank")
        self.student_bank = self._bank("student_bank")
        # The log of Z of the scores in the teacher's and in the student's bank, once it is known.
        self.log_normalizers = self._state("log_normalizers", (2,))
        self.normalizers_known = self._state("normalizers_known", ())

    def _embedding(self, name, shape):
        limit = 1.0 / math.sqrt(shape[-1])
        uniform = [keras.initializers.RandomUniform(-limit, limit) for _ in range(2)]
        layer = keras.layers.Dense(
            self.dimension,
            kernel_initializer=uniform[0],
            bias_initializer=uniform[1],
            dtype=self.dtype,
            name=name,
        )
        layer.build(tuple(shape))
        return layer

    def _bank(self, name):
        limit = 1.0 / math.sqrt(self.dimension / 3)
        uniform = keras.initializers.RandomUniform(-limit, limit)
        return self._state(name, (self.samples, self.dimension), uniform)

    def _state(self, name, shape, initializer="zeros"):
        return self.add_weight(
            shape=shape, initializer=initializer, dtype=self.dtype, trainable=False, name=name
        )

    def call(self, y_true: Structure, y_pred: Structure, training: bool = True) -> Tensor:
        teacher, ids = y_true
        teacher, student = _logits.matched_pair(teacher, y_pred)
        teacher = l2_normalize(self.teacher_embedding(teacher))
        student = l2_normalize(self.student_embedding(student))
        ids = ops.cast(ids, "int32")
        inside = ops.logical_and(ids >= 0, ids < self.samples)
        rows = ops.clip(ids, 0, self.samples - 1)
        candidates = self._candidates(rows, training)
        scores = [
            contrastive_scores(bank, vectors, candidates, self.temperature)
            for bank, vectors in ((self.teacher_bank, student), (self.student_bank, teacher))
        ]
        log_z = self._log_normalizers(scores, training)
        values = sum(nce_loss(scores[i], log_z[i], self.samples) for i in range(2))
        if training:
            ids, rows = (distribution.of_all_replicas(x) for x in (ids, rows))
            self._move(self.teacher_bank, ids, rows, distribution.of_all_replicas(teacher))
            self._move(self.student_bank, ids, rows, distribution.of_all_replicas(student))
        return ops.where(inside, values, float("nan"))

    def _candidates(self, ids, training):
        seed = self._seeds if training else 0

        def keys(rows):
            return keras.random.randint((rows, KEYS), 0, 2**31 - 1, dtype="int32", seed=seed)

        count = ids.shape[0] if ids.shape[0] is not None else ops.shape(ids)[0]
        keys = _draws.of_own_rows(keys, count)
        return self._pool.draw(ids, keys, self.negatives, self.mode == "relax")

    def _log_normalizers(self, scores, training):
        """The two constants: of this batch where it is the first."""
        known = self.normalizers_known > 0.5
        kept = ops.convert_to_tensor(self.log_normalizers)
        scores = [ops.stop_gradient(own) for own in scores]
        # Once they are known, nothing is summed over the scores.
        sums = [ops.cond(known, lambda s=s: s[0, 0], lambda s=s: ops.logsumexp(s)) for s in scores]
        count = ops.size(scores[0])
        fresh = ops.stack([log_normalizer(own, count, self.samples) for own in sums])
        log_z = ops.where(known, kept, ops.cast(fresh, kept.dtype))
        if training:
            self.log_normalizers.assign(log_z)
            self.normalizers_known.assign(ops.ones(()))
        return log_z

    def _move(self, bank, ids, rows, vectors):
        vectors = ops.cast(ops.stop_gradient(vectors), bank.dtype)
        moved = moved_rows(_rows.read_rows(bank, rows), vectors, self.momentum)
        _rows.write_rows(bank, ids, moved)

    def check_ids(self, ids: ArrayLike) -> None:
        """Raises where an id has no row in the banks.

        Args:
            ids: Integer array of ids of samples.
        """
        ids = np.asarray(ops.convert_to_numpy(ids))
        if ids.size and (ids.min() < 0 or ids.max() >= self.samples):
            raise ValueError(
                f"Expected ids from 0 to {self.samples - 1} for the loss {self.name!r}, whose "
                f"memory banks have samples={self.samples} rows. Received: ids from {ids.min()} "
                f"to {ids.max()}. Pass the number of training samples as `samples`."
            )

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "samples": self.samples,
            "dimension": self.dimension,
            "negatives": self.negatives,
            "temperature": self.temperature,
            "momentum": self.momentum,
            "mode": self.mode,
            "labels": None if self.labels is None else self.labels.tolist(),
            "seed": self.seed,
        }


def _class_ids(labels, samples, mode):
    """The labels as int32 `(samples,)`, or `None`."""
    if labels is None:
        if mode == "relax":
            raise ValueError(
                _checks.message(
                    "`labels` to be the classes of all training samples for mode='relax'",
                    "labels",
                    labels,
                    "Pass them in the order of their ids.",
                )
            )
        return None
    labels = np.asarray(ops.convert_to_numpy(labels))
    if labels.shape != (samples,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"Expected `labels` to be class ids of shape (samples,)=({samples},). Received: "
            f"labels.shape={labels.shape} of dtype {labels.dtype}. Pass the class of each training "
            "sample, in the order of their ids."
        )
    return labels.astype("int32")
