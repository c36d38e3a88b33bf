"""Runs a program whose process is killed at the end of an epoch, before the backup of it.

    python killed.py TRAINING EPOCH PROGRAM [ARGUMENT ...]

TRAINING is the last folder of its `Backup`, EPOCH counts from 1.
"""

import os
import runpy
import signal
import sys

import keras_distill as kd


def main(training, epoch, program, *arguments):
    backs_up = kd.callbacks.Backup.on_epoch_end

    def on_epoch_end(self, done, logs=None):
        if self.folder.name == training and done + 1 == int(epoch):
            os.kill(os.getpid(), signal.SIGKILL)
        backs_up(self, done, logs)

    kd.callbacks.Backup.on_epoch_end = on_epoch_end
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
