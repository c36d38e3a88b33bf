"""The networks of a cohort: one forward of each, their log-probabilities, their ensemble."""

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._graph import has_graph
from keras_distill._ops import at_least_float32
from keras_distill.models import labels as label_rules
from keras_distill.models import mimicry
from keras_distill.models.network import LOGITS
from keras_distill.models.network import OPEN
from keras_distill.models.network import PROBABILITIES
from keras_distill.models.network import SIGMOID
from keras_distill.models.network import SOFTMAX
from keras_distill.models.network import Network
from keras_distill.models.network import keep_mask
from keras_distill.models.network import logits_from
from keras_distill.models.placement import on_device
from keras_distill.models.wiring import check_inputs
from keras_distill.models.wiring import dtype_policy_of
from keras_distill.models.wiring import unique_names

ENSEMBLE = "ensemble"
LABEL = "label"  # "label_loss" is a log of every wrapper.


class Cohort:
    """The students as networks. A plain object, which Keras neither tracks nor saves.

    Args:
        students: The models.
        names: Their names, all different.
        from_logits: Whether they return logits, where their graphs do not tell.
        devices: `None`, or a device for each.
    """

    def __init__(self, students, names, from_logits=None, devices=None):
        self.students = list(students)
        self.names = list(names)
        self.devices = devices
        self.networks = [
            Network(student, f"student {name}", from_logits=from_logits)
            for student, name in zip(students, names)
        ]
        self._check_heads()

    def __len__(self):
        return len(self.students)

    def on(self, index):
        """A context that places operations on the device of student `index`."""
        return on_device(self.devices[index] if self.devices is not None else None)

    # Heads.

    def _check_heads(self):
        shapes = self.networks[0].output_shapes
        for i, (shape, *heads) in enumerate(zip(shapes or [], *(n.heads for n in self.networks))):
            if {SOFTMAX, SIGMOID} <= set(heads) and shape[-1] != 1:
                raise ValueError(
                    f"Expected `students` with heads of one kind. Received: for output {i}, "
                    f"{', '.join(heads)}. A softmax holds classes, a sigmoid independent labels: "
                    "end all students alike."
                )

    def activation_of(self, index, units):
        """What output `index` holds: "softmax" classes, or "sigmoid" (independent) labels."""
        sigmoid = any(network.heads[index] == SIGMOID for network in self.networks)
        return SIGMOID if sigmoid or units == 1 else SOFTMAX

    def gives_probabilities(self, index):
        """Whether loss and metrics see probabilities: whether all students return them."""
        kinds = (SOFTMAX, SIGMOID, PROBABILITIES)
        return all(network.heads[index] in kinds for network in self.networks)

    @property
    def heads(self):
        """The head that loss and metrics see, for each output."""
        if any(network.is_open for network in self.networks):
            return [OPEN] * len(self.networks[0].heads)
        own = self.networks[0].heads
        return [head if self.gives_probabilities(i) else LOGITS for i, head in enumerate(own)]

    @property
    def output_names(self):
        """Names of a student's output layers."""
        return getattr(self.students[0], "output_names", None)

    @property
    def output_keys(self):
        """Names of a student's outputs in flat order; `None` where there is one."""
        outputs = getattr(self.students[0], "output", None)
        return label_rules.output_keys(outputs, self.output_names)

    @property
    def is_open(self):
        """Whether it is still unknown what some students return."""
        return any(network.is_open for network in self.networks)

    def settle(self, inputs):
        """Learns from one batch what students without a graph return."""
        if not self.is_open:
            return
        if inputs is None:
            raise ValueError(
                "Expected to know whether the students return logits. Received: models without a "
                "graph and no data to look at. Pass students_from_logits=True or False."
            )
        for network in self.networks:
            network.settle(inputs)
        self._check_heads()

    def check_inputs(self, shapes):
        """Raises where data of these shapes does not fit a student."""
        for student, name in zip(self.students, self.names):
            check_inputs(student, f"student {name}", shapes)

    # Forward.

    def run(self, index, inputs, training):
        """One forward of one student, on its device.

        Returns:
            `(prediction, logits)`: what loss and metrics see, in the structure of the outputs,
            and a list with the logits of each output, float32. A student whose head is not
            that of all shows its logits to both.
        """
        network = self.networks[index]
        with self.on(index):
            outputs = network(inputs, training=training)
            flat = keras.tree.flatten(outputs.prediction)
            logits, seen = [], []
            for i, (score, head) in enumerate(zip(outputs.scores, network.heads)):
                activation = self.activation_of(i, score.shape[-1])
                # A copy, for a mask of its own: the score may be the prediction itself.
                value = ops.copy(at_least_float32(logits_from(score, head, activation)))
                logits.append(keep_mask(value, flat[i]))
                as_it_is = head == LOGITS or self.gives_probabilities(i)
                seen.append(flat[i] if as_it_is else logits[i])
        return keras.tree.pack_sequence_as(outputs.prediction, seen), logits

    def run_all(self, inputs, training):
        """One forward of each student.

        Returns:
            `(predictions, logits)`: a dict by student's name, with the ensemble's under
            "ensemble", and a list of `run`'s logits by student.
        """
        self.settle(None)
        runs = [self.run(k, inputs, training) for k in range(len(self))]
        logits = [own for _, own in runs]
        shapes = [[tuple(value.shape) for value in own] for own in logits]
        check_same_outputs(dict(zip(self.names, shapes)))
        predictions = {name: prediction for name, (prediction, _) in zip(self.names, runs)}
        log_probs = [self.log_probabilities(k, own) for k, own in enumerate(logits)]
        scores = [
            keep_mask(
                mimicry.ensemble_scores(
                    of_output,
                    self.activation_of(i, shapes[0][i][-1]),
                    self.gives_probabilities(i),
                ),
                of_output[0],
            )
            for i, of_output in enumerate(zip(*log_probs))
        ]
        predictions[ENSEMBLE] = keras.tree.pack_sequence_as(runs[0][0], scores)
        return predictions, logits

    def log_probabilities(self, index, logits, temperature=1.0):
        """Log-probabilities of each output of one student, on its device."""
        with self.on(index):
            return [
                keep_mask(
                    mimicry.log_probabilities(
                        value, self.activation_of(i, value.shape[-1]), temperature
                    ),
                    value,
                )
                for i, value in enumerate(logits)
            ]

    def as_peer(self, index, log_probs):
        """A `mimicry.Peer` for each output of one student, on its device."""
        with self.on(index):
            return [mimicry.as_peer(value) for value in log_probs]


# Checks.


def checked_students(students):
    """`(students, names)`; raises where they cannot learn from each other."""
    _checks.instance("students", students, (list, tuple), "a list of keras.Model")
    students = list(students)
    if len(students) < 2:
        raise ValueError(_checks.message("at least two `students`", "students", students))
    for student in students:
        _checks.instance("students", student, keras.Model, "a list of keras.Model")
    names = unique_names([student.name for student in students], taken=(ENSEMBLE, LABEL))
    owners = {}
    for student, name in zip(students, names):
        for part in [student, *student.variables]:
            owner = owners.setdefault(id(part), name)
            if owner != name:
                what = "the same model" if part is student else f"both hold {part.path}"
                raise ValueError(
                    "Expected `students` to be different models that share no variables. "
                    f"Received: {owner} and {name}: {what}. Make one anew: "
                    "keras.models.clone_model(model)."
                )
    known = {
        name: [tuple(tensor.shape) for tensor in keras.tree.flatten(student.outputs)]
        for student, name in zip(students, names)
        if has_graph(student)
    }
    check_same_outputs(known)
    return students, names


def policy_of_students(students):
    """The policy of any student that computes in half precision, else the first's."""
    policies = [dtype_policy_of(student) for student in students]
    mixed = [policy for policy in policies if policy.name.startswith("mixed_")]
    return (mixed or policies)[0]


def check_same_outputs(shapes):
    """Raises unless all students have the same outputs.

    Args:
        shapes: By student's name, the shapes of its outputs in flat order.
    """
    first = next(iter(shapes.values()), None)
    if all(_alike(first, other) for other in shapes.values()):
        return
    listed = ", ".join(
        f"{name}: {own[0] if len(own) == 1 else own}" for name, own in shapes.items()
    )
    raise ValueError(
        "Expected `students` with the same outputs, as many classes each. Received: outputs of "
        f"the shapes {listed}."
    )


def _alike(shapes, others):
    return len(shapes) == len(others) and all(
        len(shape) == len(other)
        and all(a is None or b is None or a == b for a, b in zip(shape[1:], other[1:]))
        for shape, other in zip(shapes, others)
    )
