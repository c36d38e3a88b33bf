# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Can a student learn from what its teacher sees, and not only from what it answers?
#
# A teacher's answer is ten numbers. On the way to it, it makes thousands: maps of where something
# is, layer by layer. *Feature distillation* lets the student learn from these. In this notebook
# we take two networks of keras-cv that have little in common, a ResNet and a MobileNet, and
#
# 1. find the layers that can be compared, and look into them,
# 2. wire three losses to them: a hint, attention, and similarity,
# 3. let the library build what fits one width to another,
# 4. and see what each is worth beside plain soft targets.
#
# keras-cv's *presets* are downloaded by name; here everything is built by configuration, so no
# network connection is needed. Two or three minutes, without a GPU.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["retina"]
import os

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from IPython.display import Markdown

import keras_distill as kd
from keras_distill import backbones
from keras_distill import reporting
from keras_distill.reporting import plots

tf.config.experimental.enable_op_determinism()  # the same numbers in every run
tf.get_logger().setLevel("ERROR")

# %% tags=["parameters"]
QUICK = "KERAS_DISTILL_QUICK" in os.environ  # a short run that only shows that all works
EPOCHS = 1 if QUICK else 20
SEEDS = range(2 if QUICK else 3)

# %% [markdown]
# ## The data
#
# Handwritten digits, 400 to learn from. keras-cv's backbones want images of at least 32 pixels
# and three channels, so the pictures are enlarged and their grey is repeated. (With
# tensorflow-datasets at hand, `kd.data.load("cifar10", limit=...)` needs neither.)

# %%
digits = kd.data.load(
    "digits", image_size=32, limit=50 if QUICK else None, test_limit=50 if QUICK else None
)
x_train, y_train = (
    np.repeat(digits.train.images, 3, -1).astype("float32") / 255,
    digits.train.labels,
)
x_test, y_test = np.repeat(digits.test.images, 3, -1).astype("float32") / 255, digits.test.labels
print(f"{len(x_train)} training images of shape {x_train.shape[1:]}, {len(x_test)} test images")

# %% [markdown]
# ## Two backbones by configuration
#
# The teacher is a ResNet v2 of two stages of two blocks (with one block a stage keras-cv gives two
# layers the same name; two are the least). The student is a MobileNetV3 of four small blocks:
# another kind of network, much smaller.
#
# One thing has to be changed for so short a training. keras-cv's batch normalizations average
# their statistics over hundreds or thousands of steps; ours has 160. With `momentum` 0.9 they
# follow within tens.

# %%
BLOCKS = (  # expansion, filters, kernel, stride, squeeze-and-excite, activation
    (1, 8, 3, 2, None, "relu"),
    (3, 12, 3, 1, None, "relu"),
    (3, 16, 3, 2, None, "hard_swish"),
    (3, 16, 3, 1, None, "hard_swish"),
)


def with_fast_statistics(model):
    """The same model; its batch statistics follow a short training."""
    for layer in model.get_layer("backbone").layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    return model


def new_teacher():
    """An untrained ResNet v2."""
    return with_fast_statistics(
        backbones.cv_resnet_v2(
            10, (32, 32, 3), filters=(24, 48), blocks=(2, 2), strides=(1, 2), name="teacher"
        )
    )


def new_student(seed):
    """An untrained MobileNetV3."""
    keras.utils.set_random_seed(seed)
    return with_fast_statistics(
        backbones.cv_mobilenet_v3(10, (32, 32, 3), blocks=BLOCKS, name="student")
    )


keras.utils.set_random_seed(0)
teacher = new_teacher()
for model in (teacher, new_student(0)):
    print(f"{model.name}: {model.count_params():,} parameters")


# %%
def train(model, epochs=EPOCHS, **options):
    """Trains any model; the recipe is the same for all."""
    model.compile(
        optimizer=keras.optimizers.Adam(5e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=8,  # an epoch in one call
    )
    return model.fit(x_train, y_train, batch_size=50, epochs=epochs, verbose=0, **options)


def accuracy(model):
    """The share of the test images that `model` gets right."""
    return float((model.predict(x_test, batch_size=256, verbose=0).argmax(-1) == y_test).mean())


train(teacher)
print(f"teacher: {100 * accuracy(teacher):.1f} % of the test images")

# %% [markdown]
# ## Which layers can be compared?
#
# `backbones.stages` lists the layers that end a level of the pyramid, "P2" at a quarter of the
# image's height and width, "P3" at an eighth. Any other layer can be taken by its path as well;
# `kd.taps.list_taps(model)` has them all, also those inside the nested backbone.

# %%
student = new_student(0)
levels = {}
for model in (teacher, student):
    levels[model.name] = backbones.stages(model)
    shapes = kd.taps.list_taps(model)
    for level, path in levels[model.name].items():
        print(f"{model.name:8} {level}  {str(shapes[path][1:]):14} {path}")

P2, P3 = ((levels["teacher"][level], levels["student"][level]) for level in ("P2", "P3"))

# %% [markdown]
# On each level the maps have the same height and width, and differ in the number of channels.
#
# `kd.tap` gives a twin of a model that returns such layers beside the prediction. It shares the
# weights; nothing is copied. With it, here is *where* the teacher looks: for each place the sum
# of squares over the channels, which is what attention transfer compares.


# %%
def attention(model, path, images):
    """For each image the map of squares, summed over the channels, from 0 to 1."""
    features = kd.tap(model, path)(images, training=False)["features"][path]
    maps = (keras.ops.convert_to_numpy(features).astype("float64") ** 2).sum(-1)
    return maps / maps.max(axis=(1, 2), keepdims=True)


def show_attention(rows):
    """A row of maps a model, below the images."""
    figure, axes = plt.subplots(
        1 + len(rows), 8, figsize=(7.4, 1.0 * (1 + len(rows))), layout="constrained",
        facecolor="white",
    )  # fmt: skip
    pictures = {"image": x_test[:8, ..., 0], **rows}
    for row, (name, maps) in zip(axes, pictures.items()):
        for axis, values in zip(row, maps):
            axis.imshow(values, cmap="gray" if name == "image" else "magma")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=8)


show_attention({"teacher, P2": attention(teacher, P2[0], x_test[:8])})

# %% [markdown]
# ## Three losses
#
# A `kd.Term` wires a loss to a layer of each network, with a weight.
#
# - **Hint** (FitNets): be equal, number by number. The widths differ, so something has to stand in
#   between: `connector="auto"` builds a 1 x 1 convolution on the student's side, trains it along
#   and throws it away at the end. The student gives in one step what the teacher knows, but it is
#   bound to the teacher's way.
# - **Attention transfer**: be strong in the same *places*, whatever the channels mean. Nothing has
#   to fit but height and width.
# - **Similarity preserving**: find the same *images* alike. It compares tables of a batch by
#   itself, so any two layers will do.
#
# The weights are those of the articles' codes.

# %%
hint = kd.Term(kd.losses.Hint(), *P2, weight=100.0, connector="auto")
attention_terms = [
    kd.Term(kd.losses.AttentionTransfer(), *level, weight=1000.0) for level in (P2, P3)
]
similarity = kd.Term(kd.losses.SimilarityPreserving(), *P3, weight=3000.0)
soft_targets = kd.Term(kd.losses.SoftTargets(temperature=4.0), weight=1.0)

METHODS = {
    "labels alone": None,
    "soft targets": soft_targets,
    "hint": hint,
    "attention": attention_terms,
    "similarity": similarity,
}

distiller = kd.Distiller(teacher, new_student(0), hint)
[connector] = distiller.terms[0].connectors
print("what stands between the two:", [layer.name for layer in connector.layers])
print(f"its input {connector.input_shape[1:]}, its output {connector.output_shape[1:]}")

# %% [markdown]
# ## What are they worth?
#
# Each is added to the label loss; nothing else changes. Students of the same seed begin with the
# same weights and see the same batches, for the same number of steps.

# %%
students = {name: [] for name in METHODS}
for name, terms in METHODS.items():
    for seed in SEEDS:
        student = new_student(seed)
        model = student if terms is None else kd.Distiller(teacher, student, terms)
        train(model)
        students[name].append(student)
    print(name, " ".join(f"{100 * accuracy(student):.1f}" for student in students[name]))

# %%
models = [
    {
        "name": name,
        "accuracy": [accuracy(student) for student in some],
        "parameters": some[0].count_params(),
    }
    for name, some in {"teacher": [teacher], **students}.items()
]
Markdown(reporting.models_table({"models": models}).markdown())

# %%
for model in models[2:]:
    pair = {"baseline": "labels alone", "model": model["name"]}
    print(reporting.gain_sentence({"models": models, "gain": pair}))

# %%
plots.accuracies(models, colours=plots.colours([model["name"] for model in models]))

# %% [markdown]
# The number after ± is the standard error over three seeds. Here no teacher's help is worth
# anything, and features do harm. That is no rare outcome: 160 steps are few, the labels of these
# digits say nearly all there is to learn, and what goes into copying is missing elsewhere. (A tenth
# and a hundredth of the weights, tried on held-out training images, did no better than labels
# alone.) The articles train for hundreds of epochs on harder images; what all the losses are worth
# in a longer training, with seeds and errors, stands on the pages of results in the documentation.
# A loss between layers has to be *measured* on one's own task, against labels alone and against
# soft targets, before it is believed.
#
# ## Did the student learn to look?
#
# The same images, and the maps of the teacher, of a student that learnt from labels alone, and of
# the one that learnt from the teacher's attention.

# %%
show_attention(
    {
        "teacher": attention(teacher, P2[0], x_test[:8]),
        "alone": attention(students["labels alone"][0], P2[1], x_test[:8]),
        "attention": attention(students["attention"][0], P2[1], x_test[:8]),
    }
)


# %%
def distance(student):
    """The attention loss at P2 between the teacher and a student, on the test images."""
    maps = [
        kd.tap(model, path)(x_test, training=False)["features"][path]
        for model, path in zip((teacher, student), P2)
    ]
    return float(kd.losses.AttentionTransfer()(*maps))


for name in ("labels alone", "soft targets", "attention"):
    mean, error = reporting.mean_and_error([1000 * distance(s) for s in students[name]])
    print(f"{name}: {mean:.2f} ± {error:.2f} thousandths from the teacher's attention")

# %% [markdown]
# So it did learn what it was taught: its maps are close to the teacher's. To look where the teacher
# looks and to answer as well as the teacher are two things.
#
# ## What to try
#
# - **Both at once.** A list: `kd.Distiller(teacher, student, [soft_targets, hint])`. Features say
#   what to see, soft targets what to answer.
# - **The hint first.** `kd.Stage("hint", 10, hint, student_loss_weight=0.0)` and then
#   `kd.Stage("labels", 10, soft_targets)`, as in FitNets: `kd.Distiller(teacher, student,
#   stages=[...])`.
# - **Another layer.** Where in the two networks does a hint help the most? `kd.taps.list_taps` has
#   the candidates.
# - **A falling weight.** `weight=kd.schedules.Linear(100.0, 0.0, 100)`: a hint that is taken away.
# - **Ready-made backbones.** `backbones.cv_classifier(backbone, classes)` puts a head on any
#   keras-cv backbone, also on a preset with weights; `backbones.hub_classifier` does so for
#   keras-hub.
