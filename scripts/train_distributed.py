r"""Distils on one device, on several GPUs of a machine, or on several machines.

The strategy is chosen from what is there: `TF_CONFIG` with several workers gives
`MultiWorkerMirroredStrategy`, several GPUs `MirroredStrategy`, else one device. Start the same
command on every machine, each with its own `TF_CONFIG`; only the chief writes files.

One machine, all its GPUs:

    python scripts/train_distributed.py --dataset cifar10 --data-dir DATA --out runs/cifar

Two machines (on the second, "index" is 1):

    TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]},
                "task": {"type": "worker", "index": 0}}' \\
        python scripts/train_distributed.py --dataset cifar10 --data-dir DATA --out runs/cifar

`--batch-size` is the global batch: the same number gives the same training on any number of
devices, but for batch normalization, whose statistics are each replica's own.
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="digits", help="as in `keras-distill train`")
    parser.add_argument("--data-dir", help="prepared TFDS data")
    parser.add_argument("--limit", type=int, help="use only so many training images")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64, help="of all replicas together")
    parser.add_argument("--members", type=int, default=3, help="networks in the teacher")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/distributed"))
    return parser.parse_args(arguments)


def train(arguments, strategy):
    """Trains teacher and student under `strategy`. Returns the wrapper and its history."""
    import keras

    import keras_distill as kd
    from keras_distill.backbones import small_cnn

    keras.utils.set_random_seed(arguments.seed)
    split = kd.data.load(arguments.dataset, data_dir=arguments.data_dir, limit=arguments.limit)
    shape, classes = split.train.images.shape[1:], len(split.train.class_names)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def data():
        return kd.data.batches(
            split.train.images,
            split.train.labels,
            arguments.batch_size,
            epochs=arguments.epochs,
            seed=arguments.seed,
            drop_remainder=True,
        )

    steps = kd.data.steps_per_epoch(len(split.train.labels), arguments.batch_size, True)
    fitting = {
        "epochs": arguments.epochs,
        "steps_per_epoch": steps,
        "shuffle": False,
        "verbose": 2 if kd.distribution.is_chief() else 0,
    }
    with strategy.scope():
        members = [
            small_cnn(shape, classes, channels=16, name=f"member_{i}")
            for i in range(arguments.members)
        ]
        teacher = kd.EnsembleTeacher(members)
        teacher.compile(keras.optimizers.Adam(arguments.learning_rate), loss)
        student = small_cnn(shape, classes, channels=4, name="student")
        distiller = kd.Distiller(
            teacher,
            student,
            kd.Term(kd.losses.SoftTargets(4.0), weight=0.9),
            student_loss_weight=0.1,
        )
        distiller.compile(
            keras.optimizers.Adam(arguments.learning_rate), loss, metrics=["accuracy"]
        )
    teacher.fit(data(), **fitting)
    history = distiller.fit(data(), **fitting).history
    return distiller, history


def main():
    arguments = parse()
    from keras_distill import distribution

    strategy = distribution.choose_strategy()
    print(f"{strategy.num_replicas_in_sync} replicas ({type(strategy).__name__})", flush=True)
    distiller, history = train(arguments, strategy)
    if distribution.is_chief():
        arguments.out.mkdir(parents=True, exist_ok=True)
        distiller.student.save(arguments.out / "student.keras")
        (arguments.out / "history.json").write_text(json.dumps(history, indent=2))
        print(f"student and history in {arguments.out}")


if __name__ == "__main__":
    main()
