# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Can two students who know nothing teach each other?
#
# Distillation needs a teacher, and a teacher has to be trained first. Deep mutual learning does
# without: two or more students start together from nothing, and each learns from the labels and
# from what the others say at that moment. In this notebook we
#
# 1. train two small networks alone, and then as a pair,
# 2. look at what passes between them while they learn,
# 3. train a cohort of four, in the two forms of the article,
# 4. take the cohort as an ensemble,
# 5. and put a student beside a larger one.
#
# The article is Zhang, Xiang, Hospedales and Lu, "Deep Mutual Learning" (CVPR 2018). Two minutes,
# without a GPU.

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
SEEDS = range(2 if QUICK else 4)
COHORT = 2 if QUICK else 4  # students in the larger cohort
CHANNELS = 4
LARGE = 8 if QUICK else 32  # channels of the larger peer

# %% [markdown]
# ## The data
#
# 400 handwritten digits to learn from, 1,397 to test on, as scikit-learn ships them.

# %%
digits = kd.data.load("digits", limit=50 if QUICK else None, test_limit=100 if QUICK else None)
x_train, y_train = digits.train.images.astype("float32") / 255, digits.train.labels
x_test, y_test = digits.test.images.astype("float32") / 255, digits.test.labels


def train(model, **options):
    """Trains a network or a cohort; the recipe and the number of epochs are the same for all."""
    model.compile(
        optimizer=keras.optimizers.Adam(5e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=16,  # an epoch in one call: less overhead for tiny networks
    )
    return model.fit(x_train, y_train, batch_size=25, epochs=EPOCHS, verbose=0, **options)


def probabilities(model):
    """What `model` says of the test images: a row an image, a column a class."""
    return keras.ops.convert_to_numpy(keras.ops.softmax(model(x_test, training=False)))


def accuracy(model):
    """The share of the test images that `model` gets right."""
    return float((probabilities(model).argmax(-1) == y_test).mean())


def new_students(seed, count, channels=CHANNELS):
    """Untrained students; the same seed gives the same ones, each with weights of its own."""
    keras.utils.set_random_seed(seed)
    return [small_cnn(channels=channels, name=f"student{i + 1}") for i in range(count)]


# %% [markdown]
# ## Two students, alone and as a pair
#
# A cohort is one Keras model. It is compiled as for *one* student: optimizer, loss and metrics
# are copied for each. In a step each student sees the same batch and minimises
#
# > its own label loss + KL(what the peer says ‖ what it says itself)
#
# where the peer's answer counts as given. The students differ in their random start alone, and
# that is enough: they become sure of different things first.
#
# For a fair comparison the students alone are the same ones: the same first weights, the same
# order of batches, the same number of epochs.

# %%
alone, pairs, histories = [], [], []
for seed in SEEDS:
    students = new_students(seed, 2)
    keras.utils.set_random_seed(seed)
    # Nothing passes between the members of an ensemble while it trains: both alone, in one fit.
    train(kd.EnsembleTeacher(students))
    alone.append(students)

    students = new_students(seed, 2)
    keras.utils.set_random_seed(seed)
    cohort = kd.MutualLearner(students)
    history = train(cohort, validation_data=(x_test, y_test), validation_batch_size=1397)
    pairs.append(cohort)
    histories.append(history.history)

    before, after = (
        " and ".join(f"{100 * accuracy(student):.1f}" for student in pair)
        for pair in (alone[-1], students)
    )
    print(f"seed {seed}: alone {before} %, as a pair {after} %")


# %% [markdown]
# ## Did it help?
#
# One value a seed, the mean of the two students. The number after ± is the standard error of the
# mean over the seeds. We call a difference a gain only if it is larger than twice its error.


# %%
def entry(name, cohorts):
    """A row of the table: students of each seed, of which we take the mean."""
    accuracies = [float(np.mean([accuracy(student) for student in some])) for some in cohorts]
    return {"name": name, "accuracy": accuracies, "parameters": cohorts[0][0].count_params()}


def compare(models, baseline, model):
    """Says what the second of two rows gains over the first."""
    pair = {"baseline": baseline, "model": model}
    print(reporting.gain_sentence({"models": models, "gain": pair}))


models = [entry("alone", alone), entry("one of a pair", [pair.students for pair in pairs])]
compare(models, "alone", "one of a pair")

# %% [markdown]
# ## What passes between them
#
# On the left the divergence from the peer's answers, which is what each student learns from it.
# It rises at first, when both begin to have opinions, and falls as they come to agree. On the
# right the accuracy of both students of a pair and of their mean, on the test images (we look at
# them here, but choose nothing by them). A thin line is one student of one pair.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", facecolor="white")
epochs = np.arange(1, EPOCHS + 1)
for history in histories:
    for name in ("student1", "student2"):
        axes[0].plot(epochs, history[f"{name}_mimicry"], color="#0072B2", lw=0.6, alpha=0.5)
        shares = 100 * np.array(history[f"val_{name}_accuracy"])
        axes[1].plot(epochs, shares, color="#E69F00", lw=0.6, alpha=0.5)
shares = 100 * np.mean([history["val_ensemble_accuracy"] for history in histories], axis=0)
axes[1].plot(epochs, shares, color="#009E73", lw=1.6, label="both together, mean")
axes[0].set(xlabel="epoch", ylabel="divergence from the peer")
axes[1].set(xlabel="epoch", ylabel="test accuracy in %", ylim=(60, 100))
axes[1].legend(frameon=False, loc="lower right")
for axis in axes:
    axis.grid(alpha=0.3)

# %% [markdown]
# A student that learns from a peer is also less sure of itself where the peer disagrees. The
# mean entropy of the answers says how much probability a network leaves to the other classes;
# the article finds that mutual learning raises it, and takes that as a sign of a wider minimum.


# %%
def entropy(model):
    """The mean entropy of a network's answers, in bits."""
    said = probabilities(model)
    return float(-(said * np.log2(np.maximum(said, 1e-12))).sum(-1).mean())


for name, cohorts in (("alone", alone), ("one of a pair", [pair.students for pair in pairs])):
    values = [np.mean([entropy(student) for student in some]) for some in cohorts]
    mean, error = reporting.mean_and_error(values)
    print(f"{name}: {mean:.3f} ± {error:.3f} bits")

# %% [markdown]
# ## A cohort of four
#
# With more peers there are two forms. **DML** compares a student with each peer and takes the
# mean of the divergences. **DML_e** compares it once, with the peers' mean answer. In the
# library's units the two have the *same gradient*: a KL divergence is linear in its target, but
# for the target's own entropy, which no student can change. So only the logged losses differ. We
# check it rather than believe it: one seed, both forms, and the largest difference of any weight.

# %%
cohorts = []
for seed in SEEDS:
    students = new_students(seed, COHORT)
    keras.utils.set_random_seed(seed)
    cohort = kd.MutualLearner(students)
    train(cohort)
    cohorts.append(cohort)


# %%
def after_two_epochs(peers):
    """All weights of a cohort after two epochs, and the last divergence that it logged."""
    students = new_students(0, 3)
    keras.utils.set_random_seed(0)
    cohort = kd.MutualLearner(students, peers=peers)
    cohort.compile(
        keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    logs = cohort.fit(x_train, y_train, batch_size=25, epochs=2, verbose=0).history
    weights = [keras.ops.convert_to_numpy(w) for student in students for w in student.weights]
    return weights, logs["student1_mimicry"][-1]


(each, divergence), (mean, divergence_of_mean) = after_two_epochs("each"), after_two_epochs("mean")
largest = max(np.abs(one - other).max() for one, other in zip(each, mean))
print(f"largest difference of a weight: {largest:.1e}")
print(f"logged divergence of student 1: DML {divergence:.4f}, DML_e {divergence_of_mean:.4f}")

# %% [markdown]
# DML_e is the cheaper form where there are many peers. In other codes the terms are summed rather
# than averaged (`reduce="sum"` here), and then the two differ by the factor K - 1 in weight, which
# is a difference of setting and not of method.
#
# ## The cohort as an ensemble
#
# Nothing forces us to keep only one student. The cohort's mean answer is an ensemble, and
# `cohort.predict`, `evaluate` and every export give it. But students that agree more gain less
# from being averaged; so we set it beside the mean of two that were trained alone.

# %%
models += [
    entry("one of four", [cohort.students for cohort in cohorts]),
    entry("both of a pair, averaged", [[pair.cohort_as_ensemble()] for pair in pairs]),
    entry("two trained alone, averaged", [[kd.EnsembleTeacher(pair)] for pair in alone]),
    entry("all of four, averaged", [[cohort.cohort_as_ensemble()] for cohort in cohorts]),
]
Markdown(reporting.models_table({"models": models}).markdown())

# %%
compare(models, "alone", "one of four")
compare(models, "one of a pair", "both of a pair, averaged")
compare(models, "two trained alone, averaged", "both of a pair, averaged")

# %%
plots.accuracies(models, colours=plots.colours([model["name"] for model in models]))

# %% [markdown]
# ## A student beside a larger one
#
# Peers need not be equal. Here the student of 4 channels learns beside a network of 32, which is
# untrained as well. In the article even the larger one gains; whether it does here is for the
# table to say. The larger one alone is trained with the same recipe.

# %%
unequal, large_alone = [], []
for seed in SEEDS:
    [small] = new_students(seed, 1)
    [large] = new_students(1000 + seed, 1, LARGE)
    keras.utils.set_random_seed(seed)
    train(kd.MutualLearner([small, large]))
    unequal.append((small, large))

    [large] = new_students(1000 + seed, 1, LARGE)
    keras.utils.set_random_seed(seed)
    train(large)
    large_alone.append(large)

models += [
    entry("beside a larger peer", [[small] for small, _ in unequal]),
    entry("larger, alone", [[large] for large in large_alone]),
    entry("larger, beside a small peer", [[large] for _, large in unequal]),
]
kept = {"alone", "one of a pair"} | {model["name"] for model in models[-3:]}
shown = [model for model in models if model["name"] in kept]
Markdown(reporting.models_table({"models": shown}).markdown())

# %%
compare(models, "alone", "beside a larger peer")
compare(models, "one of a pair", "beside a larger peer")
compare(models, "larger, alone", "larger, beside a small peer")

# %% [markdown]
# What this does not show: a few seeds on one tiny data set leave wide errors, and a comparison
# at equal *epochs* is kind to the cohort, which does the work of several networks in them. What
# is fair is what one student costs when it is used: the same in every row but the larger ones'.
#
# ## What to try
#
# - **A static teacher.** Train the large network first, then `kd.Distiller(large, small, ...)`.
#   Does a teacher that is finished teach better than one that is learning too?
# - **No labels.** `compile(loss=None)`: students that only imitate each other. What do they agree
#   on?
# - **One after the other.** `kd.MutualLearner(students, update="sequential")` is the article's
#   Algorithm 1: each student steps against the others' newest answers.
# - **Different kinds.** Any two Keras models with the same classes: `kd.backbones.resnet(8)`
#   beside a `small_cnn`.
# - **Take the best.** `cohort.best_student("val_accuracy")` is a plain `keras.Model`. By which
#   images should one choose it?
