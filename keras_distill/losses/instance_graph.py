"""IRG: the graph of a batch, its vertices, its edges and how they change between layers."""

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._ops import flatten_samples
from keras_distill._types import Config
from keras_distill._types import Shapes
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.connectors import adaptive_average_matrix
from keras_distill.losses import _logits
from keras_distill.losses import _relation
from keras_distill.losses._relation import RelationLoss

PARTS = "(earlier map, later map, pooled vector, logits)"
FITTING_MAPS = (
    "maps of known sizes, the later one no larger than the earlier one and with as many channels "
    "or twice as many"
)
LEAST_DISTANCE = 1e-12


def instance_graph(
    teacher_features: Structure,
    student_features: Structure,
    vertex_weight: float = 0.1,
    edge_weight: float = 5.0,
    transformation_weight: float = 5.0,
    gather: bool = False,
) -> Tensor:
    """IRG: instance relationship graphs.

    Each network gives two maps f1 and f2, a pooled vector g and logits z. The value is
    `0.1 vertices + 5 edges + 5 transformation` by default:

    - vertices: of a sample, the mean over classes of `(s - t)^2` of the logits;
    - edges: for each of g, f1 and f2, flattened, the squared distances of all pairs over the
      largest of them; of sample i the mean over j of the squared difference between the
      networks; the mean of the three;
    - transformation: of a sample, the squared distance between f1 and f2, over the largest of
      the batch; its squared difference between the networks. Where f1 is larger in space it
      is averaged down to f2's size; where f2 has twice the channels, each pair of neighbouring
      channels is averaged.

    Distances are 1e-12 at least, a sample's from itself 0. The largest carries gradient. Teacher
    and student may differ in channels and sizes, not in classes.

    Args:
        teacher_features: Four tensors, `(batch, H1, W1, C1)`, `(batch, H2, W2, C2)`,
            `(batch, features)` and `(batch, classes)`, constants to the gradient.
        student_features: Four tensors alike.
        vertex_weight: Weight of the vertices, 0 or more.
        edge_weight: Weight of the edges, 0 or more.
        transformation_weight: Weight of the transformation, 0 or more.
        gather: With several replicas (`tf.distribute`), whether edges and maxima span the
            samples of all replicas, as on one device, or of each replica's own batch.

    Returns:
        Tensor `(batch,)`, 0 at equal features.

    Raises:
        ValueError: If there are not four tensors of these ranks, or their shapes do not fit.

    References:
        Liu et al. CVPR 2019, "Knowledge Distillation via Instance Relationship Graph",
        https://openaccess.thecvf.com/content_CVPR_2019/html/Liu_Knowledge_Distillation_via_Instance_Relationship_Graph_CVPR_2019_paper.html.
        Convention of AberHu's Knowledge-Distillation-Zoo, weights included.
        Deviation: where all distances are 0 (a batch of one), edges are 0 instead of NaN.
    """
    pairs = _paired(teacher_features, student_features)
    teacher_logits, student_logits = pairs[3]
    vertices = ops.mean(ops.square(student_logits - teacher_logits), axis=-1)
    edges = [
        ops.mean(ops.square(_edges(student, gather) - _edges(teacher, gather)), axis=-1)
        for teacher, student in pairs[:3]
    ]
    (teacher_earlier, student_earlier), (teacher_later, student_later) = pairs[:2]
    change = _change(student_earlier, student_later, gather)
    change = change - _change(teacher_earlier, teacher_later, gather)
    return (
        vertex_weight * vertices
        + edge_weight * (edges[0] + edges[1] + edges[2]) / 3.0
        + transformation_weight * ops.square(change)
    )


def _paired(teacher, student):
    """The four `(teacher, student)` pairs of tensors."""
    for features in (teacher, student):
        if not isinstance(features, (tuple, list)) or len(features) != 4:
            count = len(features) if isinstance(features, (tuple, list)) else "one tensor"
            raise ValueError(
                f"Expected four tensors of each network: {PARTS}. Received: {count}. Give the "
                "Term four paths of layers on each side."
            )
    pairs = [_logits.matched_pair(*pair) for pair in zip(teacher, student)]
    for side, name in enumerate(("teacher", "student")):
        tensors = [pair[side] for pair in pairs]
        if [len(x.shape) for x in tensors] != [4, 4, 2, 2]:
            raise ValueError(
                f"Expected {PARTS} of ranks 4, 4, 2 and 2. Received: "
                f"{name}_features of shapes {[tuple(x.shape) for x in tensors]}."
            )
    _logits.check_same_shape(*pairs[3], "logits")
    return pairs


def _edges(x, gather):
    """Squared distances of this replica's samples to all, over the largest."""
    x = flatten_samples(x)
    everyone = _relation.from_all_replicas(x, gather)
    distances = ops.maximum(_relation.squared_distances(x, everyone), LEAST_DISTANCE)
    itself = _relation.same_sample(x, ops.shape(everyone)[0], gather)
    distances = ops.where(itself, ops.zeros_like(distances), distances)
    return _over_largest(distances, ops.max(distances, axis=-1), gather)


def _change(earlier, later, gather):
    """Of each sample, the squared distance between its two maps, over the largest."""
    _check_maps(earlier, later)
    for axis in (1, 2):
        size, target = earlier.shape[axis], later.shape[axis]
        if size > target:
            matrix = ops.cast(adaptive_average_matrix(size, target).T, earlier.dtype)
            moved = ops.matmul(ops.moveaxis(earlier, axis, -1), matrix)
            earlier = ops.moveaxis(moved, -1, axis)
    if later.shape[-1] > earlier.shape[-1]:
        later = 0.5 * (later[..., 0::2] + later[..., 1::2])
    squares = ops.sum(ops.square(flatten_samples(earlier - later)), axis=-1)
    squares = ops.maximum(squares, LEAST_DISTANCE)
    return _over_largest(squares, squares, gather)


def _over_largest(x, own_largest, gather):
    largest = ops.max(_relation.from_all_replicas(own_largest, gather))
    return x / ops.where(largest > 0, largest, ops.ones_like(largest))


def _maps_fit(earlier, later):
    """Whether maps of these shapes can be one network's f1 and f2."""
    known = None not in (*earlier[1:], *later[1:])
    sizes = known and all(earlier[axis] >= later[axis] for axis in (1, 2))
    return sizes and later[-1] in (earlier[-1], 2 * earlier[-1])


def _check_maps(earlier, later):
    if not _maps_fit(earlier.shape, later.shape):
        raise ValueError(
            f"Expected {FITTING_MAPS}. Received: earlier map of shape "
            f"{tuple(earlier.shape)}, later map of shape {tuple(later.shape)}. Tap layers that "
            "fit, or put a connector on the student's."
        )


@keras.saving.register_keras_serializable(package="keras_distill")
class InstanceGraph(RelationLoss):
    """Instance relationship graphs, IRG (Liu et al. 2019): see `instance_graph`.

    In a `Term`, `teacher` and `student` name four layers each: an earlier map, a later map, a
    pooled vector and the logits.

    Args:
        vertex_weight: Weight of the vertices, 0 or more.
        edge_weight: Weight of the edges, 0 or more.
        transformation_weight: Weight of the transformation, 0 or more.
        gather: With several replicas, whether the graph is of all their samples.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(
        self,
        vertex_weight: float = 0.1,
        edge_weight: float = 5.0,
        transformation_weight: float = 5.0,
        gather: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(gather, **kwargs)
        self.vertex_weight = _checks.non_negative("vertex_weight", vertex_weight)
        self.edge_weight = _checks.non_negative("edge_weight", edge_weight)
        self.transformation_weight = _checks.non_negative(
            "transformation_weight", transformation_weight
        )

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        for shapes in (teacher_shapes, student_shapes):
            several = isinstance(shapes, list)
            if not several or [len(shape) for shape in shapes] != [4, 4, 2, 2]:
                return f"four features from both, {PARTS}"
        if teacher_shapes[3][-1] != student_shapes[3][-1]:
            return "logits of as many classes from both"
        fit = all(_maps_fit(*shapes[:2]) for shapes in (teacher_shapes, student_shapes))
        return None if fit else f"of each network {FITTING_MAPS}"

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        weights = self.vertex_weight, self.edge_weight, self.transformation_weight
        return instance_graph(y_true, y_pred, *weights, self.gather)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "vertex_weight": self.vertex_weight,
            "edge_weight": self.edge_weight,
            "transformation_weight": self.transformation_weight,
        }
