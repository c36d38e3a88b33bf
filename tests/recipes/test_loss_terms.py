"""The losses by name: listed with their papers, wired to the layers that they compare."""

import inspect

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import losses
from keras_distill.recipes import distillation
from keras_distill.recipes import loss_layers
from keras_distill.recipes import loss_names
from keras_distill.recipes import loss_terms
from keras_distill.recipes import networks

IMAGES = kd.data.ImageData(
    np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype="uint8"),
    np.arange(24) % 4,
    tuple("abcd"),
    "noise",
)
USABLE = [name for name in loss_names.names() if not loss_names.unknown_arguments(name)]
ON_LAYERS = [
    name
    for name in USABLE
    if not (getattr(losses, name).on_logits or getattr(losses, name).on_inputs)
]


def network(name, seed=0, classes=4):
    return networks.get(name, (8, 8, 1), classes, seed)


def wired(loss, teacher="small-3", student="small-2", **options):
    options = {"dataset": "digits", "teacher": "t", "student": "s", "loss": loss, **options}
    pair = [network(n) if isinstance(n, str) else n for n in (teacher, student)]
    return loss_terms.wired(distillation.Settings(**options), *pair, IMAGES)


# By name.


def test_every_loss_class_is_there_once_in_its_family():
    classes = {n for n in losses.__all__ if inspect.isclass(getattr(losses, n))}
    assert set(loss_names.names()) == classes - {"DistillationLoss"}
    families = {name: loss_names.family(name) for name in loss_names.names()}
    assert families["SoftTargets"] == families["DIST"] == "response"
    assert families["Hint"] == families["AttentionTransfer"] == "feature"
    assert families["GradientAttention"] == "feature"
    assert families["InstanceGraph"] == families["RelationalAngle"] == "relation"
    assert families["ContrastiveRepresentation"] == "contrastive and boundary"
    assert families["BoundarySupport"] == "contrastive and boundary"
    order = [loss_names.FAMILIES.index(family) for family in families.values()]
    assert order == sorted(order)
    for name in loss_names.names():
        if issubclass(getattr(losses, name), losses.DistillationLoss):
            assert getattr(losses, name).on_logits == (families[name] == "response")


WITHOUT_PAPER = {"AlphaDivergence", "FactorReconstruction", "JensenShannon"}  # not one paper's own


@pytest.mark.parametrize("name", loss_names.names())
def test_a_line_says_what_a_loss_is_and_whose(name):
    line, address = loss_names.summary(name)
    assert line[0].isupper() and "`" not in line
    if name not in WITHOUT_PAPER:
        assert line.endswith(")") and line[-5:-1].isdigit()  # (Authors year)
    assert address is None or address.startswith("https://") and address[-1].isalnum()


def test_lines_of_the_list():
    lines = loss_names.listed()
    assert [line for line in lines if not line.startswith(" ")] == [
        f"{family}:" for family in loss_names.FAMILIES
    ]
    assert len(lines) == len(loss_names.FAMILIES) + len(loss_names.names())
    (line,) = (line for line in lines if "AlphaDivergence  " in line and "Adaptive" not in line)
    assert line.endswith("(in Python: it needs alpha)")


@pytest.mark.parametrize(
    ("name", "temperature", "said"),
    [
        ("SoftTarget", None, "Nearest: SoftTargets"),
        ("AlphaDivergence", None, "no alpha.*in Python"),
        ("DistillationLoss", None, "losses` lists"),
        ("soft_targets", None, "losses` lists"),
        ("__all__", None, "losses` lists"),
        ("keras", None, "losses` lists"),
        ("LogitMSE", 3.0, "It has none"),
    ],
)
def test_bad_names(name, temperature, said):
    with pytest.raises(ValueError, match=said):
        loss_names.check(name, temperature)


# Wired.


@pytest.mark.parametrize("name", sorted(loss_terms.USES))
def test_a_use_is_that_of_a_loss(name):
    assert name in loss_names.names()
    use = loss_terms.USES[name]
    assert (use.layers in loss_layers.KINDS) == (name in ON_LAYERS)


STAGES = "stage1,stage2,stage3"
WIRED = {
    "ActivationBoundary": (3e-3, "stage1_pre,stage2_pre,stage3_pre"),
    "AttentionTransfer": (1000.0, STAGES),
    "ContrastiveRepresentation": (0.8, "pool"),
    "CorrelationCongruence": (100.0, "pool"),
    "FlowOfSolution": (1.0, f"stem,{STAGES}"),
    "Hint": (100.0, "stage2"),
    "InstanceGraph": (1.0, "stage2,stage3,pool,head"),
    "KernelAlignment": (1.0, "pool"),
    "NeuronSelectivity": (50.0, STAGES),
    "ProbabilisticTransfer": (30000.0, "pool"),
    "RelationalAngle": (50.0, "pool"),
    "RelationalDistance": (25.0, "pool"),
    "SimilarityPreserving": (3000.0, "stage3"),
    "VariationalInformation": (1.0, STAGES),
}


@pytest.mark.parametrize("name", WIRED)
def test_weights_and_layers_are_those_of_the_papers_codes(name):
    found = wired(name, "wrn-10-1", "resnet8").settings()
    weight, layers = WIRED[name]
    expected = {"temperature": None, "weight": weight, "label_weight": 1.0}
    assert found == {**expected, "teacher_layer": layers, "student_layer": layers}


def test_review_reads_the_teacher_before_its_activations():
    found = wired("ReviewKD", "resnet8", "resnet8").settings()
    assert found["teacher_layer"] == "stage1_pre,stage2_pre,stage3_pre,pool"
    assert found["student_layer"] == f"{STAGES},pool"
    # A small network has no "_pre": what its activation reads.
    assert wired("ReviewKD").settings()["teacher_layer"] == "stage1_bn,stage2_bn,pool"


def test_the_deepest_stages_are_compared_where_one_network_has_more():
    found = wired("AttentionTransfer", "resnet8", "small-2").settings()
    assert found["teacher_layer"] == "stage2,stage3"
    assert found["student_layer"] == "stage1,stage2"


def one_step(wiring, teacher, student, epochs=1):
    """Logs of a step of a Distiller, and whether the student and the teacher moved."""
    distiller = wiring.distiller(teacher, student, epochs, 3)
    distiller.compile("sgd", networks.label_loss(student))
    before = [[v.numpy() for v in n.trainable_variables] for n in (teacher, student)]
    data = kd.data.batches(IMAGES.images, IMAGES.labels, 8, ids=wiring.needs_ids)
    logs = distiller.fit(data.take(1), shuffle=False, verbose=0).history
    moved = [
        any((v.numpy() != b).any() for v, b in zip(n.trainable_variables, own))
        for n, own in zip((teacher, student), before)
    ]
    return logs, moved


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["BoundarySupport", "GradientAttention", *ON_LAYERS, "DIST"])
def test_one_step_of_each_loss(name):
    """Other widths, so that connectors are needed where a loss asks for one shape."""
    teacher, student = network("small-3"), network("small-2", 1)
    wiring = wired(name, teacher, student, weight=0.5)
    logs, (of_teacher, of_student) = one_step(wiring, teacher, student)
    assert all(np.isfinite(values).all() for values in logs.values())
    assert of_student and not of_teacher


def test_terms_of_a_loss_of_one_layer_are_one_each_with_layers_of_their_own():
    wiring = wired("VariationalInformation", "resnet8", "resnet8", weight=2.0)
    teacher, student = network("resnet8"), network("resnet8", 1)
    terms = wiring.distiller(teacher, student, 1, 1).terms
    assert [term.teacher_paths for term in terms] == [["stage1"], ["stage2"], ["stage3"]]
    assert len({id(term.loss) for term in terms}) == 3
    assert all(float(term.weight) == 2.0 for term in terms)
    # A loss of several maps gets them together.
    wiring = wired("AttentionTransfer")
    (term,) = wiring.distiller(network("small-3"), network("small-2"), 1, 1).terms
    assert term.teacher_paths == ["stage1", "stage2"]


def test_connectors_stand_only_where_shapes_differ():
    unlike = wired("Hint")
    assert unlike.pairs == [(["stage1"], ["stage1"], ["auto"])] and "connectors" in str(unlike)
    alike = wired("Hint", "small-2", "small-2")
    assert alike.pairs == [(["stage1"], ["stage1"], None)] and "connectors" not in str(alike)
    assert wired("RelationalDistance").pairs == [(["pool"], ["pool"], None)]


def test_named_layers_are_taken():
    wiring = wired("Hint", teacher_layer=" stage2", student_layer="stem", weight=1.0)
    assert wiring.pairs == [(["stage2"], ["stem"], ["auto"])]
    both = wired("AttentionTransfer", teacher_layer="stem,stage2", student_layer="stage1,stage2")
    assert both.pairs == [(["stem", "stage2"], ["stage1", "stage2"], None)]
    each = wired("Hint", teacher_layer="stem,stage2", student_layer="stem,stage2")
    assert each.pairs == [([name], [name], ["auto"]) for name in ("stem", "stage2")]
    # One side alone: the other side's default.
    assert wired("RelationalAngle", student_layer="head").pairs == [(["pool"], ["head"], None)]
    # A map for a loss of vectors is pooled by the connector.
    assert wired("RelationalAngle", student_layer="stage2").pairs[0][2] == ["auto"]


def test_weights_that_are_given_stay_as_they_are():
    wiring = wired("BoundarySupport")
    assert wiring.use.falls == 0.75 and wiring.arguments["bounds"] == (0.0, 1.0)
    assert "weight 2, falling to 0 in the first 75% of the steps; label loss" in str(wiring)
    wiring = wired("BoundarySupport", weight=1.5, label_weight=0.25)
    assert str(wiring) == "Loss: BoundarySupport, weight 1.5; label loss: weight 0.25"
    assert wired("SoftTargets", temperature=2.0).loss().temperature == 2.0
    assert str(wired("SoftTargets")) == "Loss: SoftTargets, weight 0.9; label loss: weight 0.1"
    assert "weight 1, from 0 in the first 8% of the steps" in str(wired("DecoupledKD"))


def test_temperatures_that_belong_to_the_weights():
    """DIST's code has weight 2 at temperature 4 (CIFAR); JensenShannon is used as KD is."""
    for name in ("DIST", "JensenShannon"):
        wiring = wired(name)
        assert wiring.loss().temperature == wiring.settings()["temperature"] == 4.0
        assert wired(name, temperature=1.5).loss().temperature == 1.5
        assert type(wiring.loss())().temperature == 1.0
    assert str(wired("DIST")) == "Loss: DIST, temperature 4, weight 2; label loss: weight 1"
    assert "temperature" not in wired("NormalizedKD").arguments


def test_what_the_command_knows_reaches_the_loss():
    loss = wired("ContrastiveRepresentation", seed=7).loss()
    assert (loss.samples, loss.negatives, loss.seed) == (24, 24, 7)
    np.testing.assert_array_equal(loss.labels, IMAGES.labels)
    assert wired("ContrastiveRepresentation").needs_ids and not wired("Hint").needs_ids


def test_the_paraphraser_has_a_stage_of_its_own():
    wiring = wired("FactorTransfer")
    assert wiring.epochs(40) == (6, 40) and "after 6 epochs of its paraphraser" in str(wiring)
    distiller = wiring.distiller(network("small-3"), network("small-2"), 2, 3)
    first, second = distiller.terms
    assert first.loss.paraphraser is second.loss.paraphraser


@pytest.mark.parametrize("name", ["ActivationBoundary", "FlowOfSolution"])
def test_what_is_an_initialisation_has_a_first_stage(name):
    """As published: the loss alone, then the labels alone, in as many epochs as other losses."""
    with pytest.raises(ValueError, match="terms or a label loss in the stage 'transfer'"):
        wired(name, label_weight=0.0).distiller(network("small-3"), network("small-2"), 9, 3)
    wiring = wired(name, label_weight=0.5)
    assert [wiring.epochs(count) for count in (1, 2, 40, 270)] == [
        (1, 1),
        (1, 1),
        (4, 36),
        (30, 240),
    ]
    assert wired("Hint").epochs(40) == (0, 40)
    assert "alone in the first 11% of the epochs, then none; label loss: weight 0.5" in str(wiring)
    asked = []

    def optimizer(epochs):
        asked.append(epochs)
        return keras.optimizers.SGD(1.0 / epochs)

    student = network("small-2")
    distiller = wiring.distiller(network("small-3"), student, 9, 3, optimizer)
    first, then = distiller.stages
    assert (first.epochs, first.student_loss_weight, len(then.terms)) == (1, 0, 0)
    assert (then.epochs, then.student_loss_weight) == (8, 0.5)
    assert asked == [1, 8] and len(distiller.terms) == len(first.terms) > 0
    assert then.optimizer.learning_rate == 1.0 / 8


def test_flows_are_compared_as_repdistiller_does():
    """The paper's sum over pairs of channels has a gradient of hundreds of times the labels'."""
    assert wired("FlowOfSolution").loss().mode == "mean"


def plain(classes=4, activation=None, width=5):
    """A network without a name of ours, as a file may hold."""
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(width, 3, activation="relu")(inputs)
    x = keras.layers.GlobalMaxPooling2D(name="vector")(x)
    x = keras.layers.Dense(classes, name="scores")(x)
    return keras.Model(inputs, keras.layers.Activation(activation or "linear", name="last")(x))


def test_the_vector_before_the_head_is_found_in_any_network():
    found = wired("RelationalDistance", plain(activation="softmax")).settings()
    assert found["teacher_layer"] == "vector" and found["student_layer"] == "pool"


def test_stages_of_nested_backbones_are_found():
    inner = network("small-3")
    backbone = keras.Model(inner.input, inner.get_layer("stage2").output, name="backbone")
    inputs = keras.Input((8, 8, 1))
    pooled = keras.layers.GlobalAveragePooling2D()(backbone(inputs))
    model = keras.Model(inputs, keras.layers.Dense(4)(pooled))
    found = wired("ActivationBoundary", model).settings()
    assert found["teacher_layer"] == "backbone/stage1_bn,backbone/stage2_bn"


@pytest.mark.parametrize(
    ("loss", "options", "said"),
    [
        ("AttentionTransfer", {"teacher": plain}, "stages that have names.*--teacher-layer"),
        ("InstanceGraph", {"student": lambda: plain(3)}, "stages that have names"),
        ("AttentionTransfer", {"teacher_layer": "pool,stage2"}, r"maps of .*pool \(None, 6\)"),
        ("RelationalAngle", {"teacher_layer": "stage2"}, r"one vector.*stage2 \(None, 2, 2, 6\)"),
        ("Hint", {"student_layer": "stage3"}, "`student_layer` to name a layer.*'stage2'"),
        ("Hint", {"student_layer": "stem,stage1"}, "as many layers.*teacher stage1; student stem"),
        ("DIST", {"student_layer": "pool"}, "no --teacher-layer.*compares predictions"),
        ("GradientAttention", {"teacher_layer": "pool"}, "compares slopes"),
        ("RelationalAngle", {"ensemble": 3}, "one teacher for RelationalAngle.*an ensemble"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(loss, options, said):
    made = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(ValueError, match=said) as error:
        wired(loss, **made)
    assert str(error.value).startswith("Expected") and "\n" not in str(error.value)


def test_an_ensemble_from_a_file_has_no_layers_to_compare():
    teacher = kd.EnsembleTeacher([network("small-2"), network("small-2", 1)])
    with pytest.raises(ValueError, match="one teacher for Hint.*an ensemble"):
        wired("Hint", teacher)
    assert wired("SoftTargets", teacher).pairs is None


def test_a_loss_that_is_not_in_the_table_finds_layers_by_itself(monkeypatch):
    for name in ("AttentionTransfer", "FlowOfSolution", "SimilarityPreserving", "InstanceGraph"):
        monkeypatch.delitem(loss_terms.USES, name)
    assert wired("SimilarityPreserving").settings()["teacher_layer"] == "pool"
    assert wired("AttentionTransfer").settings()["teacher_layer"] == "stage2"
    assert wired("FlowOfSolution").settings()["teacher_layer"] == "stage1,stage2"
    found = wired("InstanceGraph").settings()
    assert found["teacher_layer"] == "stage1,stage2,pool,head" and found["weight"] == 1.0
