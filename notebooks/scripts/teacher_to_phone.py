# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How does what a large model knows get onto a phone, and what is lost on the way?
#
# A model that is good in a notebook is not yet one that runs on a phone. It has to be small, in a
# format that the phone's interpreter takes, and best in whole numbers instead of floats. In this
# notebook we go the whole way,
#
# 1. train a teacher, and store what it says (a *teacher cache*),
# 2. distil a student from the cache, without the teacher,
# 3. write it as TF Lite in four kinds of numbers, and check and time each file,
# 4. train it once more *as the phone computes*, in simulated int8,
# 5. and draw size and accuracy of all of them in one picture.
#
# Two minutes, without a GPU and without a phone.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["retina"]
import os

import keras
import matplotlib.pyplot as plt
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from IPython.display import Markdown

import keras_distill as kd
from keras_distill import reporting
from keras_distill.backbones import small_cnn

tf.config.experimental.enable_op_determinism()  # the same numbers in every run
tf.get_logger().setLevel("ERROR")

# %% tags=["parameters"]
QUICK = "KERAS_DISTILL_QUICK" in os.environ  # a short run that only shows that all works
EPOCHS = 2 if QUICK else 40
MORE_EPOCHS = 1 if QUICK else 10  # in simulated int8
SEEDS = range(1 if QUICK else 3)
MEMBERS = 2 if QUICK else 4
CHANNELS = 4 if QUICK else 6
KINDS = (None, "int8") if QUICK else (None, "float16", "dynamic", "int8")  # of numbers
FOLDER = "runs/phone"

# %%
digits = kd.data.load("digits", limit=50 if QUICK else None, test_limit=50 if QUICK else None)
x_train, y_train = digits.train.images.astype("float32") / 255, digits.train.labels
x_test, y_test = digits.test.images.astype("float32") / 255, digits.test.labels
label_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def train(model, x, y=None, epochs=EPOCHS, learning_rate=5e-3, **options):
    """Trains any model; the recipe is the same for all but in the learning rate."""
    model.compile(keras.optimizers.Adam(learning_rate), label_loss, steps_per_execution=16)
    model.fit(x, y, epochs=epochs, verbose=0, **options)
    return model


def accuracy(model):
    """The share of the test images that `model` gets right."""
    answers = keras.ops.convert_to_numpy(model(x_test, training=False)).argmax(-1)
    return float((answers == y_test).mean())


# %% [markdown]
# ## The teacher, asked once
#
# Four networks of 32 channels that answer as one. A large teacher beside the student costs time
# and memory in every step, for every student and every setting that one tries. It gives the same
# answer to the same image each time, so we ask it once and keep the answers: `TeacherCache` is a
# folder that holds them. It knows its teacher, its data and its augmentation, and refuses others.

# %%
keras.utils.set_random_seed(0)
members = [small_cnn(channels=8 if QUICK else 32, name=f"member{i}") for i in range(MEMBERS)]
teacher = train(kd.EnsembleTeacher(members), x_train, y_train, learning_rate=1e-3, batch_size=25)
print(f"teacher: {teacher.count_params():,} numbers, {100 * accuracy(teacher):.1f} % right")

cache = kd.data.TeacherCache.build(f"{FOLDER}/cache", teacher, x_train, y_train, temperatures=4.0)
size = sum(file.stat().st_size for file in cache.path.rglob("*") if file.is_file())
print(f"cache: {size / 1000:.0f} kB for {len(x_train)} images")

# %% [markdown]
# ## The student
#
# A single network of 6 channels, small enough for anything. The cache stands where the teacher
# stood; its `dataset` hands out images, labels and stored answers together. For comparison, the
# same student learns from the labels alone: the same first weights, the same number of steps.

# %%
soft_targets = kd.Term(kd.losses.SoftTargets(temperature=4.0), weight=0.9)
steps = cache.steps_per_epoch(25)
alone, distilled = [], []
for seed in SEEDS:
    keras.utils.set_random_seed(seed)
    alone.append(train(small_cnn(channels=CHANNELS), x_train, y_train, batch_size=25))

    keras.utils.set_random_seed(seed)
    student = small_cnn(channels=CHANNELS, name="student")
    distiller = kd.Distiller(cache, student, soft_targets, student_loss_weight=0.1)
    data = cache.dataset(25, epochs=EPOCHS, seed=seed)
    train(distiller, data, steps_per_epoch=steps, shuffle=False)
    distilled.append(student)

models = [
    {"name": name, "accuracy": [accuracy(m) for m in some], "parameters": some[0].count_params()}
    for name, some in (
        ("teacher", [teacher]),
        ("student alone", alone),
        ("student distilled", distilled),
    )
]
pair = {"baseline": "student alone", "model": "student distilled"}
print(reporting.gain_sentence({"models": models, "gain": pair}))
Markdown(reporting.models_table({"models": models}).markdown())

# %% [markdown]
# ## Four files of one network
#
# `kd.export.tflite` writes the network, and nothing of teacher, cache or training. In which
# numbers is a choice:
#
# | | weights | computes in | |
# | --- | --- | --- | --- |
# | float32 | 4 bytes | floats | the reference |
# | float16 | 2 bytes | floats | half the size, nearly the same answers |
# | dynamic | 1 byte where large | both | needs no data |
# | int8 | 1 byte | whole numbers | for integer chips; needs some *training* images |
#
# For int8 the converter has to know how large the activations get: it looks at representative
# images. `check_parity` then runs each file in the phone's interpreter (LiteRT) on all test
# images, compares it with the Keras model, and raises an error if it strays too far.

# %%
student = distilled[0]
reports = {}
for quantize in KINDS:
    name = quantize or "float32"
    path = f"{FOLDER}/student_{name}.tflite"
    kd.export.tflite(student, path, quantize, representative_data=x_train)
    loose = {"min_agreement": 0.5, "max_accuracy_loss": 0.5} if QUICK else {}
    reports[name] = kd.export.check_parity(student, path, x_test, labels=y_test, **loose)

exports = [{**report.to_dict(), "file": name} for name, report in reports.items()]
for export in exports:
    export["accuracy"] = export["accuracy_file"]
Markdown(reporting.exports_table({"exports": exports}).markdown())

# %% [markdown]
# *Agrees* is the share of test images on which file and Keras model give the same answer. The
# time is the median for one image, on one core of the machine that ran this notebook: it orders
# files, but a phone has to be measured on the phone.
#
# These files are small for their frame: the description of a graph this size takes more bytes
# than its weights. So let us look at how sizes go with a larger network. It is untrained, for the
# size of a file does not depend on what is in it.

# %%
wide = small_cnn(channels=64)
for quantize in KINDS:
    name = quantize or "float32"
    path = kd.export.tflite(wide, f"{FOLDER}/wide_{name}.tflite", quantize, x_train)
    print(f"{name:8} {path.stat().st_size / 1000:6.0f} kB ({wide.count_params():,} parameters)")

# %% [markdown]
# ## Train as the phone computes
#
# Rounding to 256 steps costs something, and a tiny network has little to spare. With
# `quantization_aware` the student is copied into one whose weights and activations are rounded
# where the int8 file rounds them, while the gradient passes through as if they were not. It is
# trained a little more, at a tenth of the learning rate, by the same stored answers; the ranges
# that it was trained with go into the file.
#
# For an honest comparison the float students are trained on for as many steps as well, and each
# is then quantised in the plain way.


# %%
def trained_on(student, seed):
    """The student after some more epochs by the cache."""
    keras.utils.set_random_seed(seed)
    distiller = kd.Distiller(cache, student, soft_targets, student_loss_weight=0.1)
    data = cache.dataset(25, epochs=MORE_EPOCHS, seed=seed)
    train(
        distiller, data, epochs=MORE_EPOCHS, learning_rate=5e-4, steps_per_epoch=steps,
        shuffle=False,
    )  # fmt: skip
    return student


def in_the_file(student, name):
    """The accuracy of a student's int8 file, run in the interpreter, and the file's report."""
    path = kd.export.tflite(student, f"{FOLDER}/{name}.tflite", "int8", x_train)
    report = kd.export.check_parity(
        student, path, x_test, labels=y_test, min_agreement=0.5, max_accuracy_loss=0.5
    )
    return report.accuracy_file


rows = {"float32": [], "int8, quantised afterwards": [], "int8, trained in int8": []}
for seed, student in zip(SEEDS, distilled):
    aware = kd.export.quantization_aware(student, x_train)
    rows["int8, trained in int8"].append(in_the_file(trained_on(aware, seed), f"aware_{seed}"))
    longer = keras.models.clone_model(student)
    longer.set_weights(student.get_weights())
    longer = trained_on(longer, seed)
    rows["float32"].append(accuracy(longer))
    rows["int8, quantised afterwards"].append(in_the_file(longer, f"plain_{seed}"))

compared = [{"name": name, "accuracy": values} for name, values in rows.items()]
for baseline, model in (
    ("float32", "int8, quantised afterwards"),
    ("int8, quantised afterwards", "int8, trained in int8"),
):
    pair = {"baseline": baseline, "model": model}
    print(reporting.gain_sentence({"models": compared, "gain": pair}))
Markdown(reporting.models_table({"models": compared}).markdown())

# %% [markdown]
# Where plain int8 loses next to nothing, training in int8 has next to nothing to win back. Then
# the simpler way is the better one. Nets that are thinner, deeper or made of depthwise
# convolutions lose more; that is where to try it.
#
# ## Size and accuracy in one picture
#
# Files of the first seed's student, at their bytes on disk; for the teacher and the student alone
# the bytes are those of their float32 file.

# %%
teacher_file = kd.export.tflite(teacher, f"{FOLDER}/teacher.tflite")
alone_file = kd.export.tflite(alone[0], f"{FOLDER}/alone.tflite")
points = [
    ("teacher", teacher_file.stat().st_size, accuracy(teacher), "s", "#0072B2"),
    ("student alone", alone_file.stat().st_size, accuracy(alone[0]), "D", "#E69F00"),
]
for name, marker in zip(reports, "ov^P"):
    report = reports[name]
    points.append((f"distilled, {name}", report.bytes, report.accuracy_file, marker, "#009E73"))

figure, axis = plt.subplots(figsize=(5.6, 3.4), layout="constrained", facecolor="white")
for name, size, share, marker, colour in points:
    axis.plot(size / 1000, 100 * share, marker, ms=9, color=colour, alpha=0.75, label=name)
axis.set_xscale("log")
axis.set(xlabel="kB on disk (logarithmic)", ylabel="test accuracy in %")
axis.grid(alpha=0.3, which="both")
figure.legend(loc="outside right center", frameon=False, fontsize=8)
smallest = min(report.bytes for report in reports.values())
print(f"The teacher's file is {points[0][1] / smallest:.0f} times as large as the smallest.")

# %% [markdown]
# ## What to put into the app
#
# The file, and three facts about it: what goes in, what comes out, and what the classes are
# called. This is all that the app has to do, here in Python; LiteRT's `Interpreter` in Kotlin and
# Swift has the same calls.

# %%
interpreter = Interpreter(model_path=f"{FOLDER}/student_int8.tflite", num_threads=1)
interpreter.allocate_tensors()
[given], [returned] = interpreter.get_input_details(), interpreter.get_output_details()
print("in: ", given["shape"], given["dtype"].__name__)
print("out:", returned["shape"], returned["dtype"].__name__)

interpreter.set_tensor(given["index"], x_test[:1])  # one image, 0 to 1, as in training
interpreter.invoke()
logits = interpreter.get_tensor(returned["index"])[0]
print("answer:", digits.test.class_names[logits.argmax()], "- label:", y_test[0])

# %% [markdown]
# - **In**: one image of 8 x 8 x 1 floats from 0 to 1. Give it 0 to 255, and it still answers, but
#   nonsense. (`io="int8"` at the export makes both ends whole numbers, for microcontrollers.)
# - **Out**: logits. The largest is the answer; a softmax is only needed to show a confidence.
# - **Threads**: one is often the fastest for a network this small.
#
# Keep the parity report beside the file. It says what the file could do on the day it was written.
#
# ## What to try
#
# - **Lose more.** `CHANNELS = 3`: does int8 cost more there, and does simulated int8 win it back?
# - **Bad ranges.** Give `kd.export.tflite` images of a single class as `representative_data`. Does
#   `check_parity` notice?
# - **Views.** `TeacherCache.build(..., views=10, augment=kd.data.crop_and_flip(1, flip=False))`
#   stores what the teacher says of ten shifted views of each image, and replays the same views.
# - **Your data, from the command line.** `keras-distill cache`, `train`, `export` and `quantize`
#   do these steps; each has `--help`.
# - **On the phone.** TensorFlow's `benchmark_model` times the file there, and
#   `kd.backbones.cv_mobilenet_v3` is made for it.
