"""Callbacks, one class a file."""

from keras_distill.callbacks.metrics_logger import MetricsLogger

__all__ = ["MetricsLogger"]
