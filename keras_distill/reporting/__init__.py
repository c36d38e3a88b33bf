"""Reporting: the run's folder, tables with their errors, pictures, and one page of it all."""

from keras_distill.reporting import plots
from keras_distill.reporting.report import report
from keras_distill.reporting.runs import RunFolder
from keras_distill.reporting.tables import Gain
from keras_distill.reporting.tables import Table
from keras_distill.reporting.tables import exports_table
from keras_distill.reporting.tables import gain_sentence
from keras_distill.reporting.tables import mean_and_error
from keras_distill.reporting.tables import models_table
from keras_distill.reporting.tables import paired_gain

__all__ = [
    "Gain",
    "RunFolder",
    "Table",
    "exports_table",
    "gain_sentence",
    "mean_and_error",
    "models_table",
    "paired_gain",
    "plots",
    "report",
]
