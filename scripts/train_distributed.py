r"""Distils on one device, on all GPUs of a machine, or on several machines.

TensorFlow's engine does the work: `MultiWorkerMirroredStrategy` in a cluster of several workers,
else `MirroredStrategy` on several GPUs, else one device. `--batch-size` is the global batch: the
same number gives the same training on any number of devices, but for batch normalization, whose
statistics are each replica's own.

One machine, all its GPUs (`--gpus 2`: the first two):

    python scripts/train_distributed.py --dataset cifar10 --data-dir DATA --out runs/cifar

Several machines: the same command on each, with `TF_CONFIG` (on the second, "index" is 1):

    TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]},
                "task": {"type": "worker", "index": 0}}' \
        python scripts/train_distributed.py --dataset cifar10 --data-dir DATA --out runs/cifar

Slurm: one task a node, which has all GPUs of the node. `srun` sets what is read in the place of
`TF_CONFIG`; --slurm-port is the port on each node (several tasks a node take those that follow,
and need `--gpus-per-task`):

    #SBATCH --nodes=4 --ntasks-per-node=1 --gres=gpu:8 --requeue
    srun python scripts/train_distributed.py --dataset cifar10 --data-dir DATA --out runs/cifar

Kubernetes: an Indexed Job with a headless service, whose pods differ by their index. A pod that
ends with an error starts again in its place:

    apiVersion: v1
    kind: Service
    metadata: {name: train}
    spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {job-name: train}}
    ---
    apiVersion: batch/v1
    kind: Job
    metadata: {name: train}
    spec:
      completionMode: Indexed
      completions: 2
      parallelism: 2
      backoffLimit: 20
      template:
        spec:
          subdomain: train
          restartPolicy: OnFailure
          volumes: [{name: runs, persistentVolumeClaim: {claimName: runs}}]
          containers:
          - name: train
            image: IMAGE
            command: [python, scripts/train_distributed.py, --out, /runs/digits]
            volumeMounts: [{name: runs, mountPath: /runs}]
            resources: {limits: {nvidia.com/gpu: 8}}
            env:
            - name: INDEX
              valueFrom:
                fieldRef:
                  fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
            - name: TF_CONFIG
              value: '{"cluster": {"worker": ["train-0.train:2222", "train-1.train:2222"]},
                       "task": {"type": "worker", "index": $(INDEX)}}'

Only the chief (worker 0) writes files, and reads them for all: --out need not be shared. Where a
worker is lost the others end within a minute, with one line and exit status 75; the same command
on all of them goes on after the last whole epoch, and ends as if nothing had happened.

Exit status: 0 done, 2 for what an argument or `TF_CONFIG` gets wrong, a loss that is no number
or too little memory, 75 where a worker is lost or does not come: try again, 130 after Ctrl-C,
1 with a traceback for anything else.
"""

import argparse
import os
import pathlib
import sys
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

UNKNOWN = 1
USAGE_ERROR = 2
TRY_AGAIN = 75
INTERRUPTED = 130
MOST_OF_A_REASON = 200


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
    parser.add_argument("--gpus", type=int, help="use the first so many GPUs of this machine")
    parser.add_argument(
        "--wait-seconds", type=float, default=600, help="for the other workers at the start"
    )
    parser.add_argument("--slurm-port", type=int, default=8888, help="of each node's first task")
    return parser.parse_args(arguments)


def settings(arguments):
    """What makes one training another."""
    names = ("dataset", "limit", "epochs", "batch_size", "members", "learning_rate", "seed")
    return {name: getattr(arguments, name) for name in names}


def build(arguments, split, strategy):
    """Teacher and distiller, compiled, under `strategy`."""
    import keras

    import keras_distill as kd
    from keras_distill.backbones import small_cnn

    keras.utils.set_random_seed(arguments.seed)
    shape, classes = split.train.images.shape[1:], len(split.train.class_names)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
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
    return teacher, distiller


def fit(name, model, arguments, split, run):
    """Trains one of the two, from its last backup on. `run` is the chief's alone."""
    import keras_distill as kd

    images, labels = split.train.images, split.train.labels
    backups = arguments.out / "backups" / name
    start = kd.callbacks.restore(model, backups)
    if start == arguments.epochs:
        return
    if run and start:
        print(f"{name}: goes on after epoch {start}", flush=True)
    logger = [kd.callbacks.MetricsLogger(run, model=name)] if run else []
    model.fit(
        kd.data.batches(
            images,
            labels,
            arguments.batch_size,
            epochs=arguments.epochs,
            start_epoch=start,
            seed=arguments.seed,
            drop_remainder=True,
        ),
        epochs=arguments.epochs,
        initial_epoch=start,
        steps_per_epoch=kd.data.steps_per_epoch(len(labels), arguments.batch_size, True),
        shuffle=False,
        verbose=2 if run else 0,
        callbacks=[kd.callbacks.TerminateOnNonFinite(), *logger, kd.callbacks.Backup(backups)],
    )
    # Batch statistics are each replica's own: from here on all have the chief's, as they would
    # if this process had to start again.
    kd.callbacks.restore(model, backups)


def train(arguments, strategy):
    """Trains teacher and student, or goes on with them."""
    import keras_distill as kd
    from keras_distill.recipes import networks

    run = None
    if kd.distribution.is_chief():
        run = kd.reporting.RunFolder(arguments.out)
        run.hold()
        run.start(settings(arguments))
    split = kd.data.load(arguments.dataset, data_dir=arguments.data_dir, limit=arguments.limit)
    teacher, distiller = build(arguments, split, strategy)
    fit("teacher", teacher, arguments, split, run)
    fit("distilled", distiller, arguments, split, run)
    if run:
        networks.save(distiller.student, arguments.out / "student.keras")
        print(f"student and metrics in {arguments.out}", flush=True)


def main(arguments=None):
    arguments = parse(arguments)
    try:
        from keras_distill import distribution

        strategy = distribution.choose_strategy(
            gpus=arguments.gpus,
            wait_seconds=arguments.wait_seconds,
            slurm_port=arguments.slurm_port,
        )
        print(f"{strategy.num_replicas_in_sync} replicas ({type(strategy).__name__})", flush=True)
        with distribution.failures_told():
            train(arguments, strategy)
    except SystemExit:
        raise
    except BaseException as error:
        status = told(error)
        sys.stdout.flush()
        sys.stderr.flush()
        # At once: a broken cluster's threads would add lines of their own, or wait for others.
        os._exit(status)


def told(error):
    """Says in a line what ended the training, after a traceback where it is unknown: the status."""
    if isinstance(error, KeyboardInterrupt):  # perhaps in an import
        again = "The same command on all workers goes on after the last whole epoch."
        print(f"train_distributed: Interrupted. {again}", file=sys.stderr, flush=True)
        return INTERRUPTED
    import keras_distill as kd
    from keras_distill import _memory

    message, status = " ".join(str(error).split()), USAGE_ERROR
    if isinstance(error, kd.distribution.ClusterError):
        status = TRY_AGAIN
    elif _memory.is_out_of_memory(error):
        message = f"{_memory.ADVICE} Received: {message[:MOST_OF_A_REASON]}"
    elif not isinstance(error, (ValueError, OSError, ImportError, kd.callbacks.NonFiniteLoss)):
        status = UNKNOWN
        traceback.print_exception(error)
        message = f"{type(error).__name__}: {message[:MOST_OF_A_REASON]}"
    print(f"train_distributed: {message}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    main()
