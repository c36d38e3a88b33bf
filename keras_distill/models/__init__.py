"""The wrappers: `keras.Model`s that `fit` trains with a teacher, with peers, or with themselves."""

from keras_distill.models.base import DistillationModel
from keras_distill.models.born_again import BornAgain
from keras_distill.models.class_wise import ClassWiseDistiller
from keras_distill.models.distiller import Distiller
from keras_distill.models.distortion import DistortionDistiller
from keras_distill.models.dlb import DLBModel
from keras_distill.models.early_exit import EarlyExit
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.models.mean_teacher import MeanTeacher
from keras_distill.models.mutual import MutualLearner
from keras_distill.models.native_ensemble import NativeEnsemble
from keras_distill.models.progressive import ProgressiveDistiller
from keras_distill.models.reused_classifier import ReusedClassifierDistiller
from keras_distill.models.self_distiller import SelfDistiller
from keras_distill.models.stages import Stage
from keras_distill.models.teacher_free import TeacherFreeDistiller
from keras_distill.models.terms import Term
from keras_distill.models.two_heads import TwoHeadDistiller

__all__ = [
    "BornAgain",
    "ClassWiseDistiller",
    "DLBModel",
    "DistillationModel",
    "Distiller",
    "DistortionDistiller",
    "EarlyExit",
    "EnsembleTeacher",
    "MeanTeacher",
    "MutualLearner",
    "NativeEnsemble",
    "ProgressiveDistiller",
    "ReusedClassifierDistiller",
    "SelfDistiller",
    "Stage",
    "TeacherFreeDistiller",
    "Term",
    "TwoHeadDistiller",
]
