# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Why do several small networks know more than one, and can one network learn it from them?
#
# Take one architecture and one set of images, and train it several times. The trainings differ
# in nothing but the random start, and each network is about as good as the next. Yet their
# average is better than each of them. In this notebook we
#
# 1. train such networks, and look at their average by its size,
# 2. compare two ways to average,
# 3. teach a single network what the average knows,
# 4. train the average *directly*, the control experiment, and see what differs,
# 5. and look at what a teacher says beside its answer.
#
# The questions are those of Allen-Zhu and Li, "Towards Understanding Ensemble, Knowledge
# Distillation and Self-Distillation in Deep Learning" (2020). Two minutes, without a GPU.

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
from keras_distill import reporting
from keras_distill.backbones import small_cnn
from keras_distill.reporting import plots

tf.config.experimental.enable_op_determinism()  # the same numbers in every run
tf.get_logger().setLevel("ERROR")

# %% tags=["parameters"]
QUICK = "KERAS_DISTILL_QUICK" in os.environ  # a short run that only shows that all works
EPOCHS = 1 if QUICK else 40
GROUPS = 2 if QUICK else 4  # everything is done so many times, with other random starts
MEMBERS = 2 if QUICK else 4  # networks in an ensemble
CHANNELS = 8
TEMPERATURE = 4.0

# %% [markdown]
# ## The data and the networks
#
# Real handwriting, shipped with scikit-learn: 400 pictures to learn from, 1,397 to test on. All
# networks here are of one kind, with 8 channels, so that nothing but their training differs.

# %%
digits = kd.data.load("digits", limit=50 if QUICK else None, test_limit=100 if QUICK else None)
x_train, y_train = digits.train.images.astype("float32") / 255, digits.train.labels
x_test, y_test = digits.test.images.astype("float32") / 255, digits.test.labels


def new_network(name):
    """An untrained network; each call takes new random weights."""
    return small_cnn(channels=CHANNELS, name=name)


def train(model):
    """Trains any model on the labels; the recipe is the same for all."""
    model.compile(
        optimizer=keras.optimizers.Adam(5e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=16,  # an epoch in one call: less overhead for tiny networks
    )
    model.fit(x_train, y_train, batch_size=25, epochs=EPOCHS, verbose=0)
    return model


def accuracy(model):
    """The share of the test images that `model` gets right."""
    answers = keras.ops.convert_to_numpy(model(x_test, training=False)).argmax(-1)
    return float((answers == y_test).mean())


# %% [markdown]
# ## The ensembles
#
# `kd.EnsembleTeacher` is several networks in the form of one Keras model. Its `fit` trains each
# member on its own loss, as if it were alone: nothing passes between them.
#
# We make four ensembles of four, so that every figure below has a standard error (the number
# after ±: how far the mean would stray if we did it all again with other random starts).

# %%
ensembles = []
for group in range(GROUPS):
    keras.utils.set_random_seed(group)
    members = [new_network(f"member{i + 1}") for i in range(MEMBERS)]
    ensembles.append(train(kd.EnsembleTeacher(members)))
    alone = " ".join(f"{100 * accuracy(member):.1f}" for member in members)
    print(f"group {group}: members {alone} %, together {100 * accuracy(ensembles[-1]):.1f} %")

# %% [markdown]
# Each member errs on other images. Where one is wrong, most of the others are usually right, and
# the average sides with them.
#
# ## How many are enough?
#
# The first member of each group, then the first two, and so on. There are two ways to average:
#
# - the **probabilities**, the default: a member that is unsure moves the mean a little;
# - the **logits**, as the article does: a member that is very sure moves it a lot.
#
# Members are shared between the two, so this costs no training.

# %%
sizes = range(1, MEMBERS + 1)
by_size = {"probabilities": [], "logits": []}
for average, accuracies in by_size.items():
    for size in sizes:
        some = [ensemble.members[:size] for ensemble in ensembles]
        if size > 1:
            found = [accuracy(kd.EnsembleTeacher(part, average=average)) for part in some]
        else:
            found = [accuracy(part[0]) for part in some]
        accuracies.append(reporting.mean_and_error([100 * share for share in found]))

figure, axis = plt.subplots(figsize=(4.6, 3.2), layout="constrained", facecolor="white")
for (average, accuracies), style in zip(by_size.items(), ("o-", "s--")):
    means, errors = zip(*accuracies)
    axis.errorbar(sizes, means, yerr=errors, fmt=style, capsize=3, label=f"mean of {average}")
axis.set(xlabel="networks in the ensemble", ylabel="test accuracy in %", xticks=sizes)
axis.legend(frameon=False)
axis.grid(alpha=0.3)

# %% [markdown]
# The first step, from one network to two, is worth the most; each further one adds less. The
# bars hold mostly what the groups differ by as a whole, so between the two ways of averaging we
# look at the differences group by group:

# %%
results = {
    "models": [
        {
            "name": f"mean of {average}",
            "accuracy": [
                accuracy(kd.EnsembleTeacher(ensemble.members, average=average))
                for ensemble in ensembles
            ],
        }
        for average in by_size
    ],
    "gain": {"baseline": "mean of logits", "model": "mean of probabilities"},
}
print(reporting.gain_sentence(results))

# %% [markdown]
# ## One network that learns from the average
#
# Now a single network of the same kind, with the ensemble as its teacher. It costs no more than a
# member when it is used. `kd.Distiller` adds the soft targets to the labels: a temperature of 4
# makes teacher and student milder, so that the small shares count too.

# %%
distilled = []
for group, ensemble in enumerate(ensembles):
    keras.utils.set_random_seed(1000 + group)
    student = new_network("student")
    soft_targets = kd.Term(kd.losses.SoftTargets(TEMPERATURE), weight=0.9)
    train(kd.Distiller(ensemble, student, soft_targets, student_loss_weight=0.1))
    distilled.append(student)

# %% [markdown]
# ## The control: train the average itself
#
# Is an ensemble good just because it has four times the weights? Then the same four networks,
# averaged *during* training and trained as one large network, should do as well or better.
# `objective="average"` does that: one loss, that of the average. Same networks, same number of
# steps.

# %%
direct = []
for group in range(GROUPS):
    keras.utils.set_random_seed(group)  # the weights that the ensembles began with
    members = [new_network(f"member{i + 1}") for i in range(MEMBERS)]
    direct.append(train(kd.EnsembleTeacher(members, average="logits", objective="average")))

# %% [markdown]
# ## All of them side by side
#
# A row holds one value for each of the four groups; for the members it is the mean of the group.
# *Parameters* are those needed to answer.

# %%
single = new_network("single").count_params()


def entry(name, accuracies, networks=1):
    """A row of the table."""
    return {"name": name, "accuracy": accuracies, "parameters": networks * single}


def mean_of_members(models):
    """The members' mean accuracy, for each of some ensembles."""
    return [float(np.mean([accuracy(member) for member in model.members])) for model in models]


models = [
    entry("a member alone", mean_of_members(ensembles)),
    entry("ensemble", [accuracy(ensemble) for ensemble in ensembles], MEMBERS),
    entry("average, trained directly", [accuracy(model) for model in direct], MEMBERS),
    entry("one of its members", mean_of_members(direct)),
    entry("distilled from the ensemble", [accuracy(student) for student in distilled]),
]
Markdown(reporting.models_table({"models": models}).markdown())

# %%
for baseline, model in (
    ("a member alone", "ensemble"),
    ("average, trained directly", "ensemble"),
    ("a member alone", "distilled from the ensemble"),
):
    pair = {"baseline": baseline, "model": model}
    print(reporting.gain_sentence({"models": models, "gain": pair}))

# %% [markdown]
# Look at *one of its members*: in the average that was trained directly, a network need not
# answer well by itself, since the others make up for it. The ensemble's members have to, each by
# whatever features its random start led it to.
#
# The article's claim is stronger: on CIFAR the average that is trained directly does no better
# than a single network, so that an ensemble is more than its size. Compare the two rows here. If
# they are as good as each other, then the claim did *not* show on these digits: ours are tiny
# networks that gain by being larger, and theirs were large enough before.
#
# ## What the teacher says beside the answer
#
# One test image, and the ensemble's answer at four temperatures. A temperature of 1 is what the
# networks say; a higher one brings out the classes that are *not* the answer. The ensemble
# softens each member first and averages then, so that even the first place may change hands.

# %%
ensemble = ensembles[0]


def soft_targets_at(temperature):
    """The ensemble's probabilities for the test images, at a temperature."""
    scores = ensemble.soft_outputs(x_test, temperature) / temperature
    return keras.ops.convert_to_numpy(keras.ops.softmax(scores))


said = soft_targets_at(1.0)
right = said.argmax(-1) == y_test
second = np.sort(said, axis=-1)[:, -2]
chosen = int(np.where(right, second, 0).argmax())  # right, and nearly something else

figure, axes = plt.subplots(1, 5, figsize=(9, 2), layout="constrained", facecolor="white")
axes[0].imshow(digits.test.images[chosen, ..., 0], cmap="gray")
axes[0].set_title(f"labelled {digits.test.class_names[y_test[chosen]]}", fontsize=9)
axes[0].axis("off")
for axis, temperature in zip(axes[1:], (1.0, 2.0, 4.0, 16.0)):
    axis.bar(range(10), 100 * soft_targets_at(temperature)[chosen], color="#0072B2")
    axis.set(ylim=(0, 100), xticks=range(10))
    axis.tick_params(labelsize=7)
    axis.set_title(f"temperature {temperature:g}", fontsize=9)
_ = axes[1].set_ylabel("%", fontsize=9)

# %% [markdown]
# Over all test images, the pairs of digits that the ensemble finds nearest, with the images that
# show it. No label says any of this, and all of it reaches the student.

# %%
soft = soft_targets_at(TEMPERATURE)
plots.confusions(digits.test.images, y_test, soft, digits.test.class_names, most=4)

# %% [markdown]
# ## What to try
#
# - **A larger ensemble.** Set `MEMBERS = 8`. Does the curve still rise, and does the student
#   follow it?
# - **One teacher.** `kd.Distiller(ensemble.members[0], ...)`: a network that learns from another
#   start of itself, which is self-distillation. How much of the gain remains?
# - **Weights.** `kd.EnsembleTeacher(members, weights=[0.4, 0.2, 0.2, 0.2])`, or a function of the
#   images: can you do better than equal ones, without looking at the test images?
# - **A mixed ensemble.** Members of 4, 8 and 16 channels: are they more different than four of
#   one kind?
# - **A second temperature.** A list of terms, one at 2 and one at 8: the members still run once.
