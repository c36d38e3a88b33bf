# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Can a network small enough for a phone learn more from a teacher than from labels alone?
#
# We have only 400 labelled pictures of handwritten digits. A large model does well on them; a
# tiny one, trained on the same labels, does not. In this notebook we
#
# 1. train a **teacher**: five networks that answer as one,
# 2. train a tiny **student** on the labels alone,
# 3. train the same student again with the teacher beside the labels,
# 4. look at what the teacher told it,
# 5. and write the student to a file that runs on a phone.
#
# It takes a minute or two, without a GPU.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["retina"]
import os

import keras
import tensorflow as tf
from IPython.display import Markdown

import keras_distill as kd
from keras_distill import reporting
from keras_distill.backbones import small_cnn
from keras_distill.reporting import plots

tf.config.experimental.enable_op_determinism()  # the same numbers in every run
tf.get_logger().setLevel("ERROR")  # no notes on how it works inside

# %% tags=["parameters"]
QUICK = "KERAS_DISTILL_QUICK" in os.environ  # a short run that only shows that all works
EPOCHS = 12 if QUICK else 40
SEEDS = range(2 if QUICK else 5)
MEMBERS = 2 if QUICK else 5
TEMPERATURE = 4.0

# %% [markdown]
# ## The data
#
# Real handwriting, 8 x 8 pixels, shipped with scikit-learn: 400 pictures to learn from and 1,397
# that no network here ever learns from. Networks get numbers from 0 to 1.

# %%
digits = kd.data.load("digits")
names = digits.test.class_names
x_train, y_train = digits.train.images.astype("float32") / 255, digits.train.labels
x_test, y_test = digits.test.images.astype("float32") / 255, digits.test.labels
print(f"{len(x_train)} training images of shape {x_train.shape[1:]}, {len(x_test)} test images")

# %% [markdown]
# One recipe for every training: Adam, the usual cross-entropy, 40 epochs. The networks return
# *logits*, the numbers before the softmax, so the loss is told so.


# %%
def train(model, learning_rate, **options):
    """Trains `model` on the 400 digits."""
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=16,  # an epoch in one call: less overhead for tiny networks
    )
    return model.fit(x_train, y_train, batch_size=25, epochs=EPOCHS, verbose=0, **options)


def test_logits(model):
    """What `model` says of the test images: a row an image, a column a class."""
    return keras.ops.convert_to_numpy(model(x_test, training=False))


def test_accuracy(model):
    """The share of the test images that `model` gets right."""
    return float((test_logits(model).argmax(-1) == y_test).mean())


def softmax(logits):
    """Logits as probabilities."""
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))


# %% [markdown]
# ## The teacher
#
# An ensemble of five small convolutional networks, each with weights of its own from the start.
# One `fit` trains them all, each as if it were alone; together they answer with the mean of their
# probabilities. They err on different images, so the mean is right more often than most of them,
# and nobody has to know beforehand which of them is the best.

# %%
keras.utils.set_random_seed(0)
members = [small_cnn(channels=32, name=f"member{i + 1}") for i in range(MEMBERS)]
teacher = kd.EnsembleTeacher(members)
train(teacher, learning_rate=1e-3)

for member in members:
    print(f"{member.name}: {100 * test_accuracy(member):.1f} % of the test images")
print(f"all together: {100 * test_accuracy(teacher):.1f} %")

# %% [markdown]
# ## The student, alone and with the teacher
#
# The student is the same kind of network with 4 channels in place of 32, and there is one of it
# rather than five.

# %%
student = small_cnn(channels=4, name="student")
ratio = teacher.count_params() / student.count_params()
print(f"teacher: {teacher.count_params():,} numbers, student: {student.count_params():,}")
print(f"The teacher is {ratio:.0f} times as large.")

# %% [markdown]
# Now the heart of it. `kd.Distiller` is a Keras model: it is compiled and fitted like any other.
# The student learns from two things at once:
#
# - the label, with weight 0.1: "this is a 3";
# - the teacher's *soft targets*, with weight 0.9: "a 3, but it has something of an 8". A
#   temperature of 4 makes both networks' answers milder, so that the small shares count too.
#
# A single training proves little: another start gives another accuracy. So we train each kind of
# student with several seeds. Students with the same seed start from the same weights and see the
# batches in the same order; the teacher is all that differs. The learning rate was chosen by the
# student *alone*, on images held out of the 400, so the test images had no say in it.

# %%
records = []  # what `fit` logged, for the curves below


def new_student(seed):
    """An untrained student."""
    keras.utils.set_random_seed(seed)
    return small_cnn(channels=4, name="student")


def trained(name, seed, model):
    """Trains `model` as a student, and keeps what it logged."""
    history = train(model, 5e-3, validation_data=(x_test, y_test), validation_batch_size=1397)
    for epoch in range(EPOCHS):
        logged = {key: float(values[epoch]) for key, values in history.history.items()}
        records.append({"model": name, "seed": seed, "epoch": epoch, **logged})


alone, distilled = [], []
for seed in SEEDS:
    student = new_student(seed)
    trained("student alone", seed, student)
    alone.append(student)

    student = new_student(seed)
    soft_targets = kd.Term(kd.losses.SoftTargets(TEMPERATURE), weight=0.9)
    distiller = kd.Distiller(teacher, student, soft_targets, student_loss_weight=0.1)
    trained("student distilled", seed, distiller)
    distilled.append(student)

    print(
        f"seed {seed}: alone {100 * test_accuracy(alone[-1]):.1f} %, "
        f"distilled {100 * test_accuracy(distilled[-1]):.1f} %"
    )

# %% [markdown]
# ## Did it help?
#
# The number after ± is the standard error of the mean: how far the mean would stray if we did it
# all again with other seeds. *Agrees with teacher* is the share of the test images on which both
# give the same answer, right or wrong.

# %%
teacher_logits = test_logits(teacher)


def entry(name, models):
    """What the table says of models that differ in the seed alone."""
    return {
        "name": name,
        "accuracy": [test_accuracy(model) for model in models],
        "agreement": [
            kd.metrics.teacher_agreement(teacher_logits, test_logits(model)) for model in models
        ],
        "parameters": models[0].count_params(),
    }


results = {
    "models": [
        {**entry("teacher", [teacher]), "agreement": None},
        entry("student alone", alone),
        entry("student distilled", distilled),
    ],
    "gain": {"baseline": "student alone", "model": "student distilled"},
}
Markdown(reporting.models_table(results).markdown())

# %% [markdown]
# We call it a gain only if it is larger than twice its standard error. The differences are taken
# seed by seed:

# %%
print(reporting.gain_sentence(results))

# %%
plots.accuracies(results["models"])

# %% [markdown]
# What this does not show: all students had the same teacher, so the error tells nothing of how
# another teacher would do. These are 400 tiny pictures; with plenty of labels a student has less
# to gain. And the student stays well below its teacher: four channels hold only so much.
#
# ## What the teacher knows that the labels do not say
#
# Below are the teacher's soft targets, averaged over the test images of each class. A label would
# be a single 100 in each row. The teacher also says which other digits a 9 looks like, and
# which it does not. Geoffrey Hinton called this *dark knowledge*. For each class we show the test
# image whose soft target is most like the mean.

# %%
soft = softmax(teacher.soft_outputs(x_test, TEMPERATURE) / TEMPERATURE)
plots.dark_knowledge(digits.test.images, y_test, soft, names, TEMPERATURE)

# %% [markdown]
# ## How they learned
#
# Solid lines are the training images, dashed ones the test images (we look at them here, but
# choose nothing by them). Thin lines are seeds. Look at the accuracy: how far is each dashed line
# below its solid one? That gap is what a student only knows by heart.
#
# Of `loss`, only the dashed lines can be compared: on test images both kinds of student report
# the label loss alone, while the solid line of the distilled one adds the soft targets.

# %%
plots.training_curves(records)

# %% [markdown]
# ## Where teacher and student still disagree
#
# The first distilled student, and the images on which its answer is farthest from the teacher's.
# Who would you side with?

# %%
student = distilled[0]
says_teacher, says_student = softmax(teacher_logits), softmax(test_logits(student))
plots.disagreements(digits.test.images, y_test, says_teacher, says_student, names, most=9)

# %% [markdown]
# ## Onto the phone
#
# `kd.export.tflite` writes the student, and nothing of the teacher, as a TF Lite file. With
# `"int8"` weights and activations become whole numbers from -128 to 127; some training images
# show the converter how large the activations get. `check_parity` then runs the file in the
# phone's interpreter on all test images, compares it with the Keras model, and raises an error if
# it strays too far. (The time is that of one image on the machine that ran this notebook.)

# %%
folder = "runs/quickstart"
for quantize in (None, "int8"):
    path = f"{folder}/student_{quantize or 'float32'}.tflite"
    kd.export.tflite(student, path, quantize, representative_data=x_train)
    print(kd.export.check_parity(student, path, x_test, labels=y_test).summary())

# %% [markdown]
# At this size most of the file is not weights but its frame, so int8 saves little here; a larger
# network becomes nearly four times smaller.
#
# ## What to try
#
# - **The temperature.** `TEMPERATURE = 1.0` leaves the teacher's answers nearly as hard as labels;
#   20 makes them nearly flat. Where does the gain vanish?
# - **No labels at all.** Give `kd.Distiller` a `student_loss_weight` of 0, or compile it with
#   `loss=None` and call `fit(x_train)`. How much did the labels still add?
# - **Another teacher.** One member in place of all: `kd.Distiller(members[0], ...)`. Is a single
#   good network enough?
# - **A larger student.** At how many channels does the teacher stop helping?
# - **Your own pictures.** `kd.data.load("path/to/folder")` reads a folder with one sub-folder a
#   class; `keras-distill train --help` does the whole job from the command line.
