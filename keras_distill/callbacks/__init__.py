"""Callbacks, one class a file."""

from keras_distill.callbacks.backup import Backup
from keras_distill.callbacks.backup import restore
from keras_distill.callbacks.metrics_logger import MetricsLogger

__all__ = ["Backup", "MetricsLogger", "restore"]
