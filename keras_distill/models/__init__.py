"""The wrappers: `keras.Model`s that `fit` trains with a teacher, with peers, or with themselves."""

from keras_distill.models.base import DistillationModel
from keras_distill.models.distiller import Distiller
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.models.terms import Term

__all__ = ["DistillationModel", "Distiller", "EnsembleTeacher", "Term"]
