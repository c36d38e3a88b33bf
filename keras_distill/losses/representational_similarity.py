"""RSA: matrices of dissimilarities between the samples of a batch, compared."""

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._ops import l2_normalize
from keras_distill._types import Config
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _anchors
from keras_distill.losses import _relation
from keras_distill.losses._relation import RelationLoss

DISTANCES = ("correlation", "euclidean", "squared", "cosine")
COMPARISONS = ("pearson", "mse")


def representational_similarity(
    teacher_features: Structure,
    student_features: Structure,
    distance: str = "correlation",
    compare: str = "pearson",
    gather: bool = False,
) -> Tensor:
    """RSA: the matrix of dissimilarities of a batch, compared by correlation.

    The features, flattened to rows f, give the matrix of dissimilarities (RDM)
    `R_ij = 1 - Pearson(f_i, f_j)`, or `||f_i - f_j||` ("euclidean"), its square ("squared"), or
    `1 - cosine` ("cosine"). The loss is `1 - Pearson` of the two matrices' entries above the
    diagonal, in [0, 2], the same number for each sample. `compare="mse"` is the mean squared
    difference of these entries instead, which depends on the scale of the matrices.

    A row of features, or a matrix, that is constant correlates 0 with anything. A batch whose
    size is known and below 4 is an error: two matrices of three entries correlate by chance.

    As the correlation knows no scale, take it beside a label loss.

    Args:
        teacher_features: Tensor `(batch, ...)`, map or vector, a constant to the gradient.
        student_features: Tensor `(batch, ...)` of any other shape.
        distance: `"correlation"`, `"euclidean"`, `"squared"` or `"cosine"`.
        compare: `"pearson"` or `"mse"`.
        gather: With several replicas (`tf.distribute`), whether the matrices are of the samples
            of all replicas, as on one device, or of each replica's own.

    Returns:
        Tensor `(batch,)`: one number for the batch, for each sample.

    Raises:
        ValueError: If a feature has no axis beyond the batch, the batches differ or are too
            small, or an option is unknown.

    References:
        Kriegeskorte et al. Frontiers in Systems Neuroscience 2008,
        https://doi.org/10.3389/neuro.06.004.2008, who compare networks so; no code for
        distillation is followed.
        Deviation: Pearson's correlation of the matrices where the paper ranks them, as ranks
        have no gradient.
    """
    _checks.one_of("distance", distance, DISTANCES)
    _checks.one_of("compare", compare, COMPARISONS)
    teacher, own = _relation.paired_samples(teacher_features, student_features)
    teacher, student = (_relation.from_all_replicas(x, gather) for x in (teacher, own))
    _relation.check_batch(teacher, student, 4, "fewer dissimilarities correlate by chance")
    # Both matrices are symmetric: off the diagonal says the same as above it.
    off = 1.0 - ops.eye(ops.shape(student)[0], dtype=student.dtype)
    count = ops.maximum(ops.sum(off), 1.0)
    matrices = [_dissimilarities(x, distance) for x in (ops.stop_gradient(teacher), student)]
    if compare == "mse":
        value = ops.sum(ops.square(matrices[1] - matrices[0]) * off) / count
    else:
        parts = []
        for matrix in matrices:
            # Less an entry first: a constant matrix gives exactly 0.
            matrix = (matrix - ops.stop_gradient(matrix[:1, -1:])) * off
            matrix = (matrix - ops.sum(matrix) / count) * off
            parts.append(l2_normalize(matrix, axis=(0, 1)))
        value = 1.0 - ops.sum(parts[0] * parts[1])
    return _relation.for_each_sample(value, own)


def _dissimilarities(x, distance):
    if distance == "euclidean":
        return _anchors.pairwise_distances(x, x)
    if distance == "squared":
        return _relation.squared_distances(x, x)
    unit = l2_normalize(x - _relation.center_of(x, axis=1) if distance == "correlation" else x)
    return 1.0 - _relation.products(unit, unit)


@keras.saving.register_keras_serializable(package="keras_distill")
class RepresentationalSimilarity(RelationLoss):
    """Matrices of dissimilarities, RSA (Kriegeskorte et al. 2008): see the function's page.

    Args:
        distance: `"correlation"`, `"euclidean"`, `"squared"` or `"cosine"`.
        compare: `"pearson"` (no scale) or `"mse"`.
        gather: With several replicas, whether the matrices are of all their samples.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(
        self,
        distance: str = "correlation",
        compare: str = "pearson",
        gather: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(gather, **kwargs)
        self.distance = _checks.one_of("distance", distance, DISTANCES)
        self.compare = _checks.one_of("compare", compare, COMPARISONS)

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        options = self.distance, self.compare, self.gather
        return representational_similarity(y_true, y_pred, *options)

    def get_config(self) -> Config:
        return {**super().get_config(), "distance": self.distance, "compare": self.compare}
