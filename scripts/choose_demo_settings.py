"""Chooses the demo's batch size and learning rates, without the test images.

The demo's 400 training images are split, stratified by class, into 300 to train on and 100 to
choose by, once a seed. Each kind of student, alone and distilled, gets the settings under which
it does best on the held-out images, averaged over the seeds. The outcome is written down in
`keras_distill/recipes/demo.py`.

    python scripts/choose_demo_settings.py --seeds 4
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_distill as kd  # noqa: E402
from keras_distill.backbones import small_cnn  # noqa: E402
from keras_distill.recipes import demo  # noqa: E402

RATES = (2e-3, 5e-3, 1e-2, 2e-2, 4e-2)
BATCH_SIZES = (25, 50)


def split(images, seed):
    """Indices of 300 images to train on and 100 to choose by, the classes shared alike."""
    from sklearn.model_selection import train_test_split

    index = np.arange(len(images.labels))
    return train_test_split(index, test_size=0.25, stratify=images.labels, random_state=seed)


def fit(model, images, index, batch_size, rate, epochs, seed):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    batches = kd.data.batches(
        images.images[index], images.labels[index], batch_size, epochs=epochs, seed=seed
    )
    steps = kd.data.steps_per_epoch(len(index), batch_size)
    model.fit(batches, epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=0)


def accuracy(model, images, index):
    logits = model.predict(images.images[index].astype("float32") / 255.0, verbose=0)
    return float(np.mean(logits.argmax(-1) == images.labels[index]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    images = kd.data.load("digits").train
    found = {}
    for seed in range(arguments.seeds):
        train, held_out = split(images, seed)
        keras.utils.set_random_seed(1000 + seed)
        members = [
            small_cnn(channels=demo.TEACHER_CHANNELS, name=f"m{k}") for k in range(demo.MEMBERS)
        ]
        teacher = kd.EnsembleTeacher(members)
        fit(teacher, images, train, 25, demo.TEACHER_RATE, arguments.epochs, seed)
        print(f"seed {seed}: teacher {accuracy(teacher, images, held_out):.3f}", flush=True)
        for batch_size in BATCH_SIZES:
            for rate in RATES:
                for kind in ("alone", "distilled"):
                    keras.utils.set_random_seed(seed)
                    model = student = small_cnn(channels=demo.STUDENT_CHANNELS, name="student")
                    if kind == "distilled":
                        term = kd.Term(
                            kd.losses.SoftTargets(demo.TEMPERATURE), weight=demo.SOFT_WEIGHT
                        )
                        model = kd.Distiller(
                            teacher, student, term, student_loss_weight=demo.LABEL_WEIGHT
                        )
                    fit(model, images, train, batch_size, rate, arguments.epochs, seed)
                    key = (kind, batch_size, rate)
                    found.setdefault(key, []).append(accuracy(student, images, held_out))
                    keras.backend.clear_session(free_memory=False)
    print(f"\n{'student':10} {'batch':>5} {'rate':>7}  held-out accuracy")
    for (kind, batch_size, rate), values in sorted(found.items(), key=lambda item: str(item[0])):
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        print(f"{kind:10} {batch_size:5} {rate:7.3f}  {np.mean(values):.3f} +- {error:.3f}")


if __name__ == "__main__":
    main()
