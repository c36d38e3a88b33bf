# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What changes when a student trains on several GPUs, and what must not?
#
# Several devices should give the same student sooner. Much can go wrong on the way: a loss that is
# averaged twice, a batch that is not the batch, statistics of half the images. In this notebook we
#
# 1. split this computer's processor into two devices, so that nobody needs a GPU to follow,
# 2. train one student on one device and its twin on both, and compare every weight,
# 3. find the one layer that makes a difference, and mend it,
# 4. put *two* students on two devices,
# 5. and see what there is to do on a machine with GPUs, on Slurm, on Kubernetes, and on JAX.
#
# One minute.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["retina"]
import os

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill.backbones import small_cnn

# Before anything runs on TensorFlow: two devices out of one processor.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
tf.get_logger().setLevel("ERROR")

# %% tags=["parameters"]
QUICK = "KERAS_DISTILL_QUICK" in os.environ  # a short run that only shows that all works
EPOCHS = 2 if QUICK else 15
PER_DEVICE = 20  # images of a batch on each device

# %% [markdown]
# ## The strategy
#
# `kd.distribution.choose_strategy()` looks at the machine: several GPUs give a
# `tf.distribute.MirroredStrategy` (a copy of the networks on each, gradients summed), several
# machines a `MultiWorkerMirroredStrategy`, one device TensorFlow's default. We name our two.

# %%
strategy = kd.distribution.choose_strategy(devices=["CPU:0", "CPU:1"])
batch_size = kd.distribution.global_batch_size(PER_DEVICE, strategy)
print(f"{type(strategy).__name__}: {strategy.num_replicas_in_sync} replicas")
print(f"{PER_DEVICE} images on each device, a global batch of {batch_size}")

# %% [markdown]
# A data set is batched with the **global** batch, and the strategy cuts each batch up. So the
# number of steps, the learning rate and the schedules stay what they are for that batch; more
# devices with the same number of images *each* is a larger batch, which is another training.
#
# A batch that does not divide is cut unevenly; `drop_remainder=True` avoids it.

# %%
digits = kd.data.load("digits", limit=80 if QUICK else None, test_limit=100 if QUICK else None)
images, labels = digits.train.images, digits.train.labels
steps = kd.data.steps_per_epoch(len(labels), batch_size, drop_remainder=True)


def batches():
    """The same batches in the same order each time."""
    return kd.data.batches(images, labels, batch_size, epochs=EPOCHS, seed=0, drop_remainder=True)


# %% [markdown]
# ## One student, on one device and on two
#
# Inside `strategy.scope()` networks and wrapper are made and compiled; `fit` is the same as ever.
# The network is ours, so that we can choose how it normalises: each layer over its own device's
# part of the batch, as is usual, or over the whole batch (`synchronized=True`).


# %%
def network(channels, synchronized, name):
    """A small convolutional network that returns logits."""
    inputs = keras.Input((8, 8, 1))
    x = inputs
    for factor in (1, 2):
        x = layers.Conv2D(factor * channels, 3, strides=factor, padding="same")(x)
        x = layers.BatchNormalization(momentum=0.9, synchronized=synchronized)(x)
        x = layers.Activation("relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x), name=name)


def build(synchronized):
    """Teacher and student in a compiled distiller; the same weights each time."""
    keras.utils.set_random_seed(0)
    teacher = network(16, synchronized, "teacher")
    student = network(8, synchronized, "student")
    distiller = kd.Distiller(
        teacher,
        student,
        kd.Term(kd.losses.SoftTargets(temperature=4.0), weight=0.9),
        student_loss_weight=0.1,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
    return distiller


class Weights(keras.callbacks.Callback):
    """Keeps the student's weights after each epoch."""

    def __init__(self):
        super().__init__()
        self.by_epoch = []

    def on_epoch_end(self, epoch, logs=None):
        student = self.model.student
        self.by_epoch.append([keras.ops.convert_to_numpy(w) for w in student.trainable_variables])


def train(distiller):
    """Trains it; returns the logs and the student's weights of each epoch."""
    weights = Weights()
    history = distiller.fit(
        batches(), epochs=EPOCHS, steps_per_epoch=steps, shuffle=False, verbose=0,
        callbacks=[weights],
    )  # fmt: skip
    return history.history, weights.by_epoch


one_device = {kind: train(build(synchronized=kind)) for kind in (True, False)}
with strategy.scope():
    twins = {kind: build(synchronized=kind) for kind in (True, False)}
two_devices = {kind: train(twin) for kind, twin in twins.items()}

# %% [markdown]
# The teacher is untrained here, for we ask only whether both trainings are the *same*. Here are all
# weights of the students, epoch by epoch, and the largest difference between the one that was
# trained on one device and its twin on two.


# %%
def largest_difference(one, other):
    """The largest difference of a weight, for each epoch."""
    return [
        max(float(np.abs(a - b).max()) for a, b in zip(*weights)) for weights in zip(one, other)
    ]


kinds = {True: "whole batch", False: "images of each device"}
differences = {
    kind: largest_difference(one_device[kind][1], two_devices[kind][1]) for kind in kinds
}
for kind, name in kinds.items():
    losses = [run[kind][0]["loss"][-1] for run in (one_device, two_devices)]
    print(f"normalised over the {name}: largest difference {differences[kind][-1]:.1e}")
    print(f"    last loss on one device {losses[0]:.5f}, on two {losses[1]:.5f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained", facecolor="white")
epochs = np.arange(1, EPOCHS + 1)
axes[0].plot(epochs, one_device[True][0]["loss"], color="#0072B2", lw=4, alpha=0.4, label="one")
axes[0].plot(epochs, two_devices[True][0]["loss"], "k--", lw=1.2, label="two devices")
axes[0].set(xlabel="epoch", ylabel="loss, synchronized")
for kind, colour in ((False, "#D55E00"), (True, "#009E73")):
    axes[1].semilogy(epochs, differences[kind], "o-", ms=4, color=colour, label=kinds[kind])
axes[1].set(xlabel="epoch", ylabel="largest difference of a weight")
for axis in axes:
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.3)

# %% [markdown]
# With statistics of the whole batch, what is left is rounding: sums in another order, which grow a
# little from step to step. With each device's own statistics the students are different ones.
# Neither is wrong. But on many devices with few images each, the usual layer normalises over few
# images, and then the synchronized one is the safer.
#
# What is the same by itself, whatever you wire in a `Term`: label loss, terms, regularisers, sample
# weights, schedules and the logs. Losses that compare the images of a batch with *each other*
# (similarity, relations) see a device's part, and with `gather=True` the whole batch.
#
# ## Two students on two devices
#
# A cohort needs no copies. `devices` puts each student with its optimizer on a device of its own,
# and only probabilities cross.

# %%
keras.utils.set_random_seed(0)
cohort = kd.MutualLearner(
    [small_cnn(channels=4, name="first"), small_cnn(channels=8, name="second")],
    devices=["CPU:0", "CPU:1"],
)
cohort.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
cohort.fit(images / 255.0, labels, batch_size=batch_size, epochs=1, verbose=0)
for student in cohort.students:
    device = tf.DeviceSpec.from_string(student.trainable_variables[0].value.device)
    print(f"{student.name}: {device.device_type}:{device.device_index}")

# %% [markdown]
# ## On real machines
#
# **Several GPUs in one machine.** `kd.distribution.choose_strategy()` without arguments takes them
# all. `scripts/train_distributed.py` does the whole job, teacher and student, with backups:
#
# ```sh
# python scripts/train_distributed.py --dataset cifar10 --data-dir DATA --out runs/cifar
# ```
#
# **Several machines.** The same command on each, with a `TF_CONFIG` that names all of them and says
# which one this is. Only the chief writes files.
#
# **Slurm.** One task a node; `srun` sets what is read in the place of `TF_CONFIG`:
#
# ```sh
# srun --nodes=4 --ntasks-per-node=1 --gres=gpu:8 \
#   python scripts/train_distributed.py --dataset cifar10 --data-dir DATA --out runs/cifar
# ```
#
# **Kubernetes.** An Indexed Job with a headless service, whose pods differ by their index; the
# script's `--help` has the manifest, ready to be copied.

# %% [markdown]
# **Where a worker is lost**, the others end within a minute, with one line and exit status 75. The
# same command on all of them goes on after the last whole epoch. In your own code that line comes
# from `with kd.distribution.failures_told():` around `fit`.
#
# **On JAX** none of this is needed. `keras.distribution.set_distribution(
# keras.distribution.DataParallel())` before the models are made: arrays are then cut over the
# devices, and the compiler sees the whole batch, so that batch normalization is of the whole batch
# as well. The wrappers train there as they are.
#
# **The teacher** runs on each device for its part of the images. If it is large, ask it once:
# several processes can build one `kd.data.TeacherCache` together (`worker=i, workers=n`).

# %% [markdown]
# ## What to try
#
# - **Count.** Time `fit` on one device and on two. Two halves of one processor are no faster; from
#   which size of network on are two GPUs?
# - **A batch that does not divide.** Leave `drop_remainder` off and take a batch of 31.
# - **A relation between images.** Add `kd.losses.SimilarityPreserving()` with and without
#   `gather=True`, and compare the weights again.
# - **Four devices.** Two lines above make four out of this processor. Does the rounding grow?
# - **DLB on two devices.** `kd.DLBModel` keeps the last batch's answers on each device: does every
#   image come back to the device that saw it?
