"""Networks to teach and to learn: for CIFAR, for small images, on keras-cv and keras-hub."""

# For small images, named stages.
from keras_distill.backbones.cifar import resnet
from keras_distill.backbones.cifar import resnet_x4
from keras_distill.backbones.cifar import wide_resnet
from keras_distill.backbones.classifier import stages
from keras_distill.backbones.cv import MOBILENET_V3_LARGE
from keras_distill.backbones.cv import MOBILENET_V3_SMALL
from keras_distill.backbones.cv import cv_classifier
from keras_distill.backbones.cv import cv_mobilenet_v3
from keras_distill.backbones.cv import cv_resnet
from keras_distill.backbones.cv import cv_resnet_v2
from keras_distill.backbones.deit import hub_deit
from keras_distill.backbones.deit import hub_distilled
from keras_distill.backbones.hub import hub_classifier
from keras_distill.backbones.hub import hub_resnet
from keras_distill.backbones.hub import hub_vit
from keras_distill.backbones.multi_view import multi_view_cnn
from keras_distill.backbones.random_features import linearized
from keras_distill.backbones.random_features import random_features
from keras_distill.backbones.small import small_cnn

__all__ = [
    "MOBILENET_V3_LARGE",
    "MOBILENET_V3_SMALL",
    "cv_classifier",
    "cv_mobilenet_v3",
    "cv_resnet",
    "cv_resnet_v2",
    "hub_classifier",
    "hub_deit",
    "hub_distilled",
    "hub_resnet",
    "hub_vit",
    "linearized",
    "multi_view_cnn",
    "random_features",
    "resnet",
    "resnet_x4",
    "small_cnn",
    "stages",
    "wide_resnet",
]
