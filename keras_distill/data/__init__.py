"""Data: image sets in memory, batches that a resumed run repeats exactly, `Targets`."""

from keras_distill.data.augment import crop_and_flip
from keras_distill.data.augment import random_uniform
from keras_distill.data.batches import batches
from keras_distill.data.batches import steps_per_epoch
from keras_distill.data.images import ImageData
from keras_distill.data.images import Split
from keras_distill.data.sources import load
from keras_distill.data.targets import Targets
from keras_distill.data.targets import with_ids

__all__ = [
    "ImageData",
    "Split",
    "Targets",
    "batches",
    "crop_and_flip",
    "load",
    "random_uniform",
    "steps_per_epoch",
    "with_ids",
]
