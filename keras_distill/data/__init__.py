"""Data: image sets in memory, batches that a resumed run repeats exactly, `Targets`."""

from keras_distill.data.augment import crop_and_flip
from keras_distill.data.augment import random_uniform
from keras_distill.data.balanced import balanced_batches
from keras_distill.data.balanced import superclass_batches
from keras_distill.data.batches import batches
from keras_distill.data.images import ImageData
from keras_distill.data.images import Split
from keras_distill.data.mixing import keras_augment
from keras_distill.data.noise import NoisyImageData
from keras_distill.data.noise import label_noise
from keras_distill.data.overlap import overlap_batches
from keras_distill.data.pairs import class_pairs
from keras_distill.data.pipeline import steps_per_epoch
from keras_distill.data.sources import load
from keras_distill.data.synthetic import MultiViewData
from keras_distill.data.synthetic import MultiViewSplit
from keras_distill.data.synthetic import gaussian_images
from keras_distill.data.synthetic import gaussian_mixture
from keras_distill.data.synthetic import multi_view
from keras_distill.data.targets import Targets
from keras_distill.data.targets import with_ids
from keras_distill.data.teacher_cache import TeacherCache
from keras_distill.data.views import two_views

__all__ = [
    "ImageData",
    "MultiViewData",
    "MultiViewSplit",
    "NoisyImageData",
    "Split",
    "Targets",
    "TeacherCache",
    "balanced_batches",
    "batches",
    "class_pairs",
    "crop_and_flip",
    "gaussian_images",
    "gaussian_mixture",
    "keras_augment",
    "label_noise",
    "load",
    "multi_view",
    "overlap_batches",
    "random_uniform",
    "steps_per_epoch",
    "superclass_batches",
    "two_views",
    "with_ids",
]
