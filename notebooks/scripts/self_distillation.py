# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Can a network be its own teacher?
#
# No teacher, no peer, one network. There is still somebody to learn from: the same network a
# moment ago, or its own deeper layers. In this notebook we try both,
#
# 1. **DLB**: each image comes twice, and what the network said the first time is the target for
#    the second (Shen et al., 2022);
# 2. **Be Your Own Teacher**: early exits learn from the last one (Zhang et al., 2019), and then
#    let easy images leave early,
#
# beside an honest baseline that costs nothing, **label smoothing**, and then with a third of the
# labels *wrong*, where DLB's authors report its largest gains. Two minutes, without a GPU.

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
EPOCHS = 2 if QUICK else 40
SEEDS = range(2 if QUICK else 4)
BATCH = 40  # images that a step forwards
CHANNELS = 8
NOISE = 0.33  # share of wrong labels in the last part

# %%
digits = kd.data.load("digits", limit=40 if QUICK else None, test_limit=100 if QUICK else None)
x_train, y_train = digits.train.images.astype("float32") / 255, digits.train.labels
x_test, y_test = digits.test.images.astype("float32") / 255, digits.test.labels
print(f"{len(x_train)} training images, {len(x_test)} test images")

# %% [markdown]
# ## Batches that overlap
#
# DLB needs a second look at each image, soon after the first. So each batch repeats half of the
# one before. `kd.data.overlap_batches` makes such batches; here are the labels of the first five.
# The lower half of each column comes again as the upper half of the next, in the same colour.
# (On plain arrays `DLBModel.fit` makes them by itself.)

# %%
batches = kd.data.overlap_batches((x_train, y_train), half_batch_size=4, seed=0)
figure, axis = plt.subplots(figsize=(6.4, 3.4), layout="constrained", facecolor="white")
for column, (_, (y_last, y_new), (w_last, _)) in enumerate(batches.take(5).as_numpy_iterator()):
    for half, labels, number in ((0, y_last, column), (1, y_new, column + 1)):
        absent = half == 0 and not w_last.any()
        colour = "white" if absent else plt.cm.Set2(number % 8)
        for row, label in enumerate(labels):
            corner = 1.25 * column, 4 * half + row + 0.2 * half
            axis.add_patch(plt.Rectangle(corner, 1, 1, facecolor=colour, edgecolor="#666666"))
            text = "" if absent else str(label)
            axis.text(corner[0] + 0.5, corner[1] + 0.5, text, ha="center", va="center")
axis.set(xlim=(-0.2, 6.3), ylim=(8.4, -0.2), yticks=[2, 6.2], xticks=0.5 + 1.25 * np.arange(5))
axis.set_yticklabels(["seen in the\nlast step", "new"])
axis.set_xticklabels([f"step {i + 1}" for i in range(5)])
axis.tick_params(length=0)
axis.spines[:].set_visible(False)

# %% [markdown]
# In the first step there is nothing to repeat: that half is empty, and counts for nothing. From
# then on the loss has two parts:
#
# > label loss of both halves + T² · KL(what was said of this half a step ago ‖ what is said now)
#
# Only the logits of the last step are kept, so it costs no memory worth speaking of.
#
# Each image is forwarded *twice* an epoch. A fair comparison holds the number of forwarded images
# equal: DLB gets half the epochs, which are as many steps of as many images.


# %%
def accuracy(model, x=x_test, y=y_test):
    """The share of images that `model` gets right."""
    return float((keras.ops.convert_to_numpy(model(x, training=False)).argmax(-1) == y).mean())


def new_student(seed):
    """An untrained network."""
    keras.utils.set_random_seed(seed)
    return small_cnn(channels=CHANNELS, name="student")


def train(model, labels, epochs=EPOCHS, loss=None):
    """Trains a network or a wrapper; the recipe is the same for all."""
    model.compile(
        optimizer=keras.optimizers.Adam(5e-3),
        loss=loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=5,  # several steps in one call: less overhead for tiny networks
    )
    model.fit(x_train, labels, batch_size=BATCH, epochs=epochs, verbose=0)
    return model


def alone(student, labels):
    """The labels, and nothing else."""
    train(student, labels)


def smoothed(student, labels):
    """A tenth of each label is spread over all classes."""
    train(student, labels, loss=kd.LabelSmoothing(0.1))


def dlb(student, labels):
    """The last mini-batch: half the epochs, each image twice in an epoch."""
    train(kd.DLBModel(student, temperature=3.0, weight=1.0), labels, epochs=EPOCHS // 2)


def own_teacher(student, labels):
    """Exits behind the stem and the first stage, taught by the last one."""
    return train(kd.SelfDistiller(student, exits=["stem", "stage1"]), labels)


METHODS = {
    "alone": alone,
    "label smoothing": smoothed,
    "DLB": dlb,
    "own teacher (exits)": own_teacher,
}

# %% [markdown]
# ## Four ways to train the same network
#
# Students with the same seed start from the same weights. What leaves each training is the same
# plain network, and costs the same to use: exits and caches stay behind.


# %%
def trained(methods, labels):
    """For each method the students of all seeds, and what its training returned."""
    students, wrappers = {name: [] for name in methods}, {name: [] for name in methods}
    for name, method in methods.items():
        for seed in SEEDS:
            student = new_student(seed)
            wrappers[name].append(method(student, labels))
            students[name].append(student)
    return students, wrappers


def logits(model):
    """What `model` says of the test images."""
    return keras.ops.convert_to_numpy(model(x_test, training=False))


def table_of(students):
    """The entries of the table: a value a seed."""
    return [
        {
            "name": name,
            "accuracy": [accuracy(student) for student in some],
            "calibration_error": [
                kd.metrics.expected_calibration_error(y_test, logits(student)) for student in some
            ],
        }
        for name, some in students.items()
    ]


def compare(models):
    """Says of each method what it gains over the first."""
    for model in models[1:]:
        pair = {"baseline": models[0]["name"], "model": model["name"]}
        print(reporting.gain_sentence({"models": models, "gain": pair}))


students, wrappers = trained(METHODS, y_train)
models = table_of(students)
Markdown(reporting.models_table({"models": models}).markdown())

# %% [markdown]
# The number after ± is the standard error of the mean over the seeds. *ECE*, the expected
# calibration error, is how far the network's confidence is from its accuracy. Differences are
# taken seed by seed, and we speak of a gain only above twice their error:

# %%
compare(models)

# %% [markdown]
# Label smoothing belongs into every such table. It costs one word, and what a scheme gains over
# the *labels* it may only gain by making them softer.
#
# ## Exits, and images that leave early
#
# `kd.SelfDistiller` put an exit behind the stem and one behind the first stage. Each learnt from
# the labels, from the last exit's answer, and from its feature. They are small networks of their
# own (`distiller.exit(0)`), and together they are an ensemble that costs one forward.

# %%
distillers = wrappers["own teacher (exits)"]
exits = [
    {"name": "first exit (stem)", "accuracy": [accuracy(d.exit(0)) for d in distillers]},
    {"name": "second exit (stage 1)", "accuracy": [accuracy(d.exit(1)) for d in distillers]},
    {"name": "last exit (the network)", "accuracy": [accuracy(d.student) for d in distillers]},
    {"name": "mean of all exits", "accuracy": [accuracy(d.ensemble()) for d in distillers]},
]
Markdown(reporting.models_table({"models": exits}).markdown())

# %% [markdown]
# Now *early exit*: an image leaves at the first exit that is sure enough of it, and the rest of
# the network never runs on it. The threshold chooses between accuracy and computation. Dots on
# the line are thresholds, of the first seed's network; squares are what it costs to send all
# images to one exit. 100 % is the network without any exits.

# %%
early = distillers[0].early_exit()
thresholds = [0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0]
curve = early.accuracy_compute_curve(x_test, y_test, thresholds, batch_size=256)
shares = [[100 * point[key] for point in curve] for key in ("compute", "accuracy")]
figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained", facecolor="white")
axis.plot(*shares, "o-", ms=4, color="#0072B2", label="each image at the first sure exit")
costs = [100 * cost for cost in early.compute]
points = [100 * accuracy(distillers[0].exit(i)) for i in range(3)]
axis.plot(costs, points, "s", ms=8, mfc="none", color="#D55E00", label="all images at one exit")
axis.axvline(100, color="#666666", linestyle=":", lw=1)
axis.set(xlabel="multiply-adds, % of the network without exits", ylabel="test accuracy in %")
axis.legend(frameon=False, loc="lower right", fontsize=8)
axis.grid(alpha=0.3)

# %%
predictions, used = early.predict(x_test, threshold=0.9, batch_size=256)
for i, share in enumerate(np.bincount(used, minlength=3) / len(used)):
    print(f"exit {i + 1}: {100 * share:.0f} % of the images leave here")
print(f"accuracy: {100 * float((predictions.argmax(-1) == y_test).mean()):.1f} %")

# %% [markdown]
# The heads of the exits cost something too: in a network as tiny as this one they are as large as
# its stages, and an image that goes all the way costs half as much again as without exits. The
# easy images, which are most, have to pay for that. In a large network the heads hardly count.
#
# ## Wrong labels
#
# `kd.data.label_noise` replaces a share of the labels by wrong ones, and keeps the true ones
# beside them. A network that trains long enough learns the wrong ones by heart. Does looking back
# a step hold it from that?

# %%
noisy = kd.data.label_noise(digits, NOISE).train
print(f"{100 * noisy.flipped.mean():.0f} % of the training labels are wrong")

noisy_methods = {name: METHODS[name] for name in ("alone", "label smoothing", "DLB")}
noisy_students, _ = trained(noisy_methods, noisy.labels)
noisy_models = table_of(noisy_students)
for model, some in zip(noisy_models, noisy_students.values()):
    learnt = [accuracy(s, x_train[noisy.flipped], noisy.labels[noisy.flipped]) for s in some]
    mean, error = reporting.mean_and_error([100 * share for share in learnt])
    print(f"{model['name']}: learnt {mean:.1f} ± {error:.1f} % of the wrong labels by heart")
Markdown(reporting.models_table({"models": noisy_models}).markdown())

# %%
compare(noisy_models)

# %%
plots.accuracies(noisy_models, colours=plots.colours(list(noisy_methods)))

# %% [markdown]
# The test labels are the true ones. What this does not show: DLB's results are for long trainings
# with augmentation, where the second look is at a *different* view of the image; here it is the
# same picture again. And four seeds on 400 images see large differences only.
#
# ## What to try
#
# - **Another view.** `DLBModel.fit(..., augment=kd.data.crop_and_flip(1, flip=False))` shifts each
#   appearance by up to a pixel. Give the student alone the same
#   (`kd.data.batches(..., augment=...)`).
# - **More noise.** `NOISE = 0.6`, or `kind="pairflip"`, where a 3 always becomes a 4.
# - **Equal epochs.** Leave DLB its 40 epochs. How much of a gain is only the longer training?
# - **The published exits.** `kd.SelfDistiller(..., preset="journal")`.
# - **The others of this kind.** `kd.ProgressiveDistiller` (the last epoch's answers),
#   `kd.TeacherFreeDistiller` (a virtual teacher), `kd.BornAgain` (generations), and
#   `kd.MeanTeacher`; the page "Choose a method" says when.
