"""An `EnsembleTeacher` as the frozen network of a Distiller."""

import keras
from keras import ops

from keras_distill.models.network import LOGITS
from keras_distill.models.network import SIGMOID
from keras_distill.models.network import Network
from keras_distill.models.network import NetworkOutputs


class EnsembleNetwork:
    """An `EnsembleTeacher` as a frozen network of a Distiller: members folded, run once.

    Paths of taps begin with a member's name: "NAME/stage2".
    """

    def __init__(self, model, role, paths=(), from_logits=None, frozen=True, compute_dtype=None):
        self.model = model
        self.role = role
        self.paths = list(dict.fromkeys(paths))
        by_member = {name: [] for name in model.member_names}
        for path in self.paths:
            name, _, rest = path.partition("/")
            if name not in by_member or not rest:
                raise ValueError(
                    f"Expected the path of a layer in the ensemble to begin with a member's name "
                    f"({', '.join(by_member)}). Received: {path!r}."
                )
            by_member[name].append(rest)
        given = model.members_from_logits if from_logits is None else from_logits
        self.members = {
            name: Network(member, role, by_member[name], given, frozen, compute_dtype)
            for name, member in zip(model.member_names, model.members)
        }
        self.output_shapes = next(iter(self.members.values())).output_shapes

    @property
    def heads(self):
        count = max(len(member.heads) for member in self.members.values())
        kinds = []
        for i in range(count):
            shape = self.output_shapes[i] if self.output_shapes else (None,)
            kinds.append(
                SIGMOID
                if shape[-1] != 1 and self.model.activation_of(i, shape[-1]) == SIGMOID
                else LOGITS
            )
        return kinds

    @property
    def is_open(self):
        return any(member.is_open for member in self.members.values())

    def settle(self, inputs):
        """See `Network.settle`."""
        for member in self.members.values():
            member.settle(inputs)

    def feature_shape(self, path):
        """See `Network.feature_shape`."""
        name, _, rest = path.partition("/")
        return self.members[name].feature_shape(rest)

    def __call__(self, inputs, training=False):
        outputs = {name: member(inputs) for name, member in self.members.items()}
        scores, structure, log_weights = self.model.gathered(
            inputs, list(outputs.values()), [member.heads for member in self.members.values()]
        )
        prediction = self.model._packed(scores, structure, log_weights)
        features = []
        for path in self.paths:
            name, _, rest = path.partition("/")
            features.append(outputs[name].features[self.members[name].paths.index(rest)])
        frozen = keras.tree.map_structure(
            ops.stop_gradient, ([(logits, log_weights) for logits in scores], prediction)
        )
        return NetworkOutputs(frozen[1], frozen[0], features)

    def class_scores(self, inputs):
        """See `Network.class_scores`."""
        if len(self.heads) != 1:
            raise ValueError(
                f"Expected a {self.role} with one output. Received: {len(self.heads)} outputs."
            )
        return self.model(inputs, training=False)

    def logits(self, outputs, index, loss, temperature):
        """The ensemble's values at the temperature of the loss."""
        member_logits, log_weights = outputs.scores[index]
        activation = self.model.activation_of(index, member_logits[0].shape[-1])
        return self.model.combine(
            member_logits, log_weights, 1.0 if temperature is None else temperature, activation
        )
