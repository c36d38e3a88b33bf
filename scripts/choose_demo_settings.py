"""Chooses the learning rate of the demo's students, without the test images.

The demo's 400 training images are split, stratified by class, into 300 to train on and 100 to
choose by, once a seed. The student alone chooses: the smallest rate within one standard error of
its best held-out accuracy. The outcome is written down in `keras_distill/recipes/demo.py`.

    python scripts/choose_demo_settings.py --seeds 10
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_distill as kd  # noqa: E402
from keras_distill.backbones import small_cnn  # noqa: E402
from keras_distill.recipes import demo  # noqa: E402

RATES = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2)


def split(images, seed):
    """Indices of 300 images to train on and 100 to choose by, the classes shared alike."""
    from sklearn.model_selection import train_test_split

    index = np.arange(len(images.labels))
    return train_test_split(index, test_size=0.25, stratify=images.labels, random_state=seed)


def fit(model, images, index, rate, epochs, seed):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    batches = kd.data.batches(
        images.images[index], images.labels[index], demo.BATCH_SIZE, epochs=epochs, seed=seed
    )
    steps = kd.data.steps_per_epoch(len(index), demo.BATCH_SIZE)
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
        fit(teacher, images, train, demo.TEACHER_RATE, arguments.epochs, seed)
        print(f"seed {seed}: teacher {accuracy(teacher, images, held_out):.3f}", flush=True)
        for rate in RATES:
            for kind in ("alone", "distilled"):
                keras.utils.set_random_seed(seed)
                model = student = small_cnn(channels=demo.STUDENT_CHANNELS, name="student")
                if kind == "distilled":
                    term = kd.Term(kd.losses.SoftTargets(demo.TEMPERATURE), weight=demo.SOFT_WEIGHT)
                    model = kd.Distiller(
                        teacher, student, term, student_loss_weight=demo.LABEL_WEIGHT
                    )
                fit(model, images, train, rate, arguments.epochs, seed)
                found.setdefault((kind, rate), []).append(accuracy(student, images, held_out))
                keras.backend.clear_session(free_memory=False)
    print(f"\n{'student':10} {'rate':>7}  held-out accuracy")
    for (kind, rate), values in sorted(found.items()):
        mean, error = kd.reporting.mean_and_error(values)
        print(f"{kind:10} {rate:7.3f}  {mean:.3f} +- {error:.3f}")


if __name__ == "__main__":
    main()
