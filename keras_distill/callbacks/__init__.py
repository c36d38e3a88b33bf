"""Callbacks, one class a file."""

from keras_distill.callbacks.backup import Backup
from keras_distill.callbacks.backup import restore
from keras_distill.callbacks.metrics_logger import MetricsLogger
from keras_distill.callbacks.non_finite import NonFiniteLoss
from keras_distill.callbacks.non_finite import TerminateOnNonFinite

__all__ = ["Backup", "MetricsLogger", "NonFiniteLoss", "TerminateOnNonFinite", "restore"]
