"""Distillation losses: each a pure function and its `keras.losses.Loss` twin.

The functions take the teacher's tensor first, then the student's, and return one value a
prediction; the classes reduce, weigh and mask it by Keras's own rules.
"""

from keras_distill.losses.alpha_divergence import AdaptiveAlphaDivergence
from keras_distill.losses.alpha_divergence import AlphaDivergence
from keras_distill.losses.alpha_divergence import adaptive_alpha_divergence
from keras_distill.losses.alpha_divergence import alpha_divergence
from keras_distill.losses.base import DistillationLoss
from keras_distill.losses.decoupled_kd import DecoupledKD
from keras_distill.losses.decoupled_kd import NormalizedKD
from keras_distill.losses.decoupled_kd import decoupled_kd
from keras_distill.losses.decoupled_kd import normalized_kd
from keras_distill.losses.dist import DIST
from keras_distill.losses.dist import dist
from keras_distill.losses.feature import Hint
from keras_distill.losses.feature import hint
from keras_distill.losses.multi_level_kd import MultiLevelKD
from keras_distill.losses.multi_level_kd import multi_level_kd
from keras_distill.losses.response import JensenShannon
from keras_distill.losses.response import LogitMSE
from keras_distill.losses.response import SoftTargets
from keras_distill.losses.response import jensen_shannon
from keras_distill.losses.response import logit_mse
from keras_distill.losses.response import soft_targets

__all__ = [
    "AdaptiveAlphaDivergence",
    "AlphaDivergence",
    "DIST",
    "DecoupledKD",
    "DistillationLoss",
    "Hint",
    "JensenShannon",
    "LogitMSE",
    "MultiLevelKD",
    "NormalizedKD",
    "SoftTargets",
    "adaptive_alpha_divergence",
    "alpha_divergence",
    "decoupled_kd",
    "dist",
    "hint",
    "jensen_shannon",
    "logit_mse",
    "multi_level_kd",
    "normalized_kd",
    "soft_targets",
]
