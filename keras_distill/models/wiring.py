"""How networks, terms and label sets fit together: the checks and the class map."""

import keras
from keras import ops

from keras_distill import _checks
from keras_distill import _keras
from keras_distill._graph import has_graph
from keras_distill.models.function_loss import expects_probabilities
from keras_distill.models.function_loss import is_of_keras
from keras_distill.models.network import LOGITS
from keras_distill.models.network import OPEN
from keras_distill.models.network import PROBABILITIES
from keras_distill.models.network import SIGMOID
from keras_distill.models.network import SOFTMAX
from keras_distill.models.terms import Term


def as_terms(losses):
    """A list of `Term`s from a loss, a Term, or a list of them."""
    losses = list(losses) if isinstance(losses, (list, tuple)) else [losses]
    if not losses or any(loss is None for loss in losses):
        raise ValueError(
            _checks.message(
                "at least one loss or Term",
                "distillation_losses",
                losses,
                "Pass e.g. keras_distill.losses.SoftTargets(temperature=4.0).",
            )
        )
    return [loss if isinstance(loss, Term) else Term(loss) for loss in losses]


def unique_names(names, taken=()):
    """The names, each made unique by a number where it comes again."""
    seen, unique = set(taken), []
    for name in names:
        candidate, i = name, 1
        while candidate in seen:
            candidate, i = f"{name}_{i}", i + 1
        seen.add(candidate)
        unique.append(candidate)
    return unique


def dtype_policy_of(model):
    """The policy that a wrapper of `model` takes: any mixed one among its layers, else its own."""
    for layer in _keras.flatten_layers(model):
        if layer.dtype_policy.name in ("mixed_float16", "mixed_bfloat16"):
            return layer.dtype_policy
    return model.dtype_policy


def check_separate(teacher, student):
    """Raises where the teacher is the student or shares variables with it."""
    if teacher is student:
        raise ValueError(
            "Expected `teacher` and `student` to be two models. Received: the same model twice. "
            "Clone it: keras.models.clone_model(model)."
        )
    own = {id(variable) for variable in student.variables}
    shared = [variable.path for variable in teacher.variables if id(variable) in own]
    if shared:
        raise ValueError(
            "Expected `teacher` and `student` to share no variables. Received: both hold "
            f"{', '.join(shared[:3])}{' ...' if len(shared) > 3 else ''}. Clone the shared layers."
        )


def check_inputs(model, role, inputs):
    """Raises where data of these shapes does not fit the inputs of a model with a graph.

    Args:
        model: The model.
        role: The network's name in the message.
        inputs: Arrays or tensor specs, batch first. What has no shape is passed over.
    """
    if inputs is None or not has_graph(model):
        return
    structure = model.inputs if isinstance(model, keras.Sequential) else model.input
    given, wanted = keras.tree.flatten(inputs), keras.tree.flatten(structure)
    if isinstance(inputs, dict) or isinstance(structure, dict) or len(given) != len(wanted):
        return  # By name, or wrong: Keras sorts these out.
    for tensor, expected in zip(given, wanted):
        shape = getattr(tensor, "shape", None)
        if shape is None or getattr(shape, "rank", 0) is None:
            continue
        if not _fits(tuple(shape), tuple(expected.shape)):
            raise ValueError(
                f"Expected `x` to fit the {role}, whose input has the shape "
                f"{tuple(expected.shape)}. Received: {tuple(shape)}. Put an adapter in front of "
                'the model, or give x = {"teacher": ..., "student": ...}.'
            )


def _fits(shape, expected):
    if len(shape) == len(expected) + 1 and shape[-1] == 1:
        shape = shape[:-1]
    elif len(shape) == len(expected) - 1 and expected[-1] == 1:
        expected = expected[:-1]
    return len(shape) == len(expected) and all(
        size is None or wanted is None or size == wanted
        for size, wanted in zip(shape[1:], expected[1:])
    )


def shapes_of_inputs(x):
    """The part of `fit`'s `x` that is the inputs, as arrays or specs; `None` if unknown."""
    if hasattr(x, "element_spec"):
        return _keras.unpack_x_y_sample_weight(x.element_spec)[0]
    leaves = keras.tree.flatten(x)
    return x if leaves and all(hasattr(leaf, "shape") for leaf in leaves) else None


def check_predictions(term, teacher, student, class_map=None):
    """Raises where a term on predictions cannot compare those of two networks.

    Args:
        term: A `BoundTerm`.
        teacher, student: Their `Network`s.
        class_map: See `Distiller`.
    """
    if term.on_inputs and class_map is not None:
        raise ValueError(
            f"Expected one set of classes for the term {term.name!r}, which looks at the inputs. "
            "Received: a `class_map`. Leave it out."
        )
    if term.on_inputs or not getattr(term.loss, "on_logits", False):
        check_scales(term, teacher.heads, student.heads)
    else:
        activation = getattr(term.loss, "activation", SOFTMAX)
        for role, network in (("teacher", teacher), ("student", student)):
            for i, head in enumerate(network.heads):
                units = None if network.output_shapes is None else network.output_shapes[i][-1]
                check_activation(term, role, head, units, activation)
    if teacher.output_shapes is None or student.output_shapes is None:
        return
    if len(teacher.output_shapes) != len(student.output_shapes):
        raise ValueError(
            f"Expected teacher and student to have the same number of outputs for the term "
            f"{term.name!r}. Received: teacher {len(teacher.output_shapes)}, student "
            f"{len(student.output_shapes)}."
        )
    if len(student.output_shapes) > 1 and has_graph(teacher.model):
        check_structures(term, teacher.model.output, student.model.output)
    for t, s in zip(teacher.output_shapes, student.output_shapes):
        if class_map is not None:
            check_class_map(class_map, t[-1], s[-1])
        elif t[-1] != s[-1] and t[-1] is not None and s[-1] is not None:
            raise ValueError(
                f"Expected teacher and student to have the same number of classes. Received: "
                f"teacher {t[-1]}, student {s[-1]}. Pass `class_map`, for each of the "
                "student's classes the teacher's, or -1."
            )


def check_activation(term, role, head, units, activation):
    """Raises where a loss over classes meets independent labels, or the reverse."""
    if activation == SIGMOID and head == SOFTMAX:
        raise ValueError(
            f"Expected a sigmoid or linear head on the {role} for the term {term.name!r} with "
            "activation='sigmoid' (independent labels). Received: a softmax head. Use "
            "activation='softmax'."
        )
    if activation != SIGMOID and head == SIGMOID and units not in (None, 1):
        raise ValueError(
            f"Expected a softmax or linear head on the {role} for the term {term.name!r}, which "
            f"compares classes. Received: a sigmoid head of {units} units (independent labels). "
            "Use keras_distill.losses.SoftTargets(activation='sigmoid')."
        )
    if head == PROBABILITIES and not term.loss.shift_invariant and activation != SIGMOID:
        raise ValueError(
            f"Expected logits from the {role} for {type(term.loss).__name__}, which is not "
            "invariant to a shift of the logits. Received: probabilities from a model without a "
            "graph. Return logits, or use a loss such as SoftTargets."
        )


def check_scales(term, teacher_heads, student_heads):
    """Raises where a loss of Keras would compare probabilities with logits.

    A function or loss of the user's sees the predictions as they are.
    """
    if not is_of_keras(term.loss):
        return
    of_probabilities = expects_probabilities(term.loss)
    from_logits = bool(term.loss.get_config().get("from_logits", False))
    for teacher, student in zip(teacher_heads, student_heads):
        if OPEN in (teacher, student):
            continue
        if of_probabilities:
            wrong = "teacher" if teacher == LOGITS else None
            if (student == LOGITS) != from_logits:
                wrong = wrong or "student"
            if wrong is not None:
                wanted = "logits" if wrong == "student" and from_logits else "probabilities"
                received = "probabilities" if wanted == "logits" else "logits"
                raise ValueError(
                    f"Expected {wanted} from the {wrong} for the term {term.name!r}, a loss of "
                    f"Keras that reads them. Received: a {wrong} that returns {received}. Use "
                    "keras_distill.losses.SoftTargets(temperature), which finds the logits."
                )
        elif (teacher == LOGITS) != (student == LOGITS):
            raise ValueError(
                f"Expected logits from both or probabilities from both for the term "
                f"{term.name!r}. Received: teacher {teacher}, student {student}. Use "
                "keras_distill.losses.LogitMSE or SoftTargets, which find the logits."
            )


def check_structures(term, teacher_outputs, student_outputs):
    """Raises where outputs by name would be compared with outputs by position."""
    names = [sorted(o) if isinstance(o, dict) else None for o in (teacher_outputs, student_outputs)]
    if names[0] != names[1]:
        raise ValueError(
            f"Expected teacher and student to name their outputs alike for the term {term.name!r}. "
            f"Received: teacher {names[0] or 'a list'}, student {names[1] or 'a list'}. Give both "
            "a dict of outputs with the same keys, or both a list."
        )


def normalized_class_map(class_map):
    """`class_map` as a list (teacher's class or -1 for each student's class) or `None`."""
    if class_map is None:
        return None
    if isinstance(class_map, dict):
        entries = {int(student): int(teacher) for student, teacher in class_map.items()}
        class_map = [entries.get(i, -1) for i in range(max(entries, default=-1) + 1)]
    class_map = [int(teacher) for teacher in class_map]
    known = [teacher for teacher in class_map if teacher >= 0]
    if len(known) < 2 or len(set(known)) != len(known) or min(class_map) < -1:
        raise ValueError(
            _checks.message(
                "`class_map` to name a different teacher's class for at least two of the "
                "student's, and -1 elsewhere",
                "class_map",
                class_map,
            )
        )
    return class_map


def check_class_map(class_map, teacher_classes, student_classes):
    """Raises where the map's classes do not exist."""
    if teacher_classes is not None and max(class_map) >= teacher_classes:
        raise ValueError(
            f"Expected `class_map` to name classes below the teacher's {teacher_classes}. "
            f"Received: {max(class_map)}."
        )
    if student_classes is not None and len(class_map) > student_classes:
        raise ValueError(
            f"Expected `class_map` to have at most the student's {student_classes} entries. "
            f"Received: {len(class_map)}."
        )


def shared_classes(class_map, pair, labels, weights, loss):
    """Logits of the classes that both know, and labels among them."""
    student_index = [i for i, teacher in enumerate(class_map) if teacher >= 0]
    teacher_index = [class_map[i] for i in student_index]
    pair = (
        ops.take(pair[0], teacher_index, axis=-1),
        ops.take(pair[1], student_index, axis=-1),
    )
    if not loss.needs_labels or labels is None:
        return pair, labels, weights
    if len(labels.shape) == len(pair[1].shape) and labels.shape[-1] != 1:
        labels = ops.argmax(labels, axis=-1)  # one-hot
    classes = max(len(class_map), 1)
    table = [student_index.index(i) if i in student_index else -1 for i in range(classes)]
    labels = ops.cast(labels, "int32")
    inside = ops.logical_and(labels >= 0, labels < classes)
    mapped = ops.take(ops.convert_to_tensor(table, dtype="int32"), ops.clip(labels, 0, classes - 1))
    return pair, ops.where(inside, mapped, -1), weights
