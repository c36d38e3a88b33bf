"""Knowledge distillation for Keras 3.

Wrap models, call `compile` and `fit`, and walk away with a better small model.

| where | what |
| --- | --- |
| `Distiller`, `Term`, `EnsembleTeacher` | the wrappers and the wiring of losses |
| `losses` | every distillation loss, a function and its `keras.losses.Loss` twin |
| `schedules` | weights and temperatures that change with the step |
| `tap` | a twin of a model that also returns the outputs of named layers |
| `connectors` | layers that fit a student's feature to a teacher's |
| `backbones` | CIFAR ResNets and WRNs, small CNNs, builders for keras-cv and keras-hub |
| `data` | sources, reproducible batches, `Targets` |
| `metrics`, `callbacks` | agreement, calibration; logs and backups |
| `export` | SavedModel, TF Lite, parity, latency |
| `recipes` | whole settings, as the command line runs them |
| `reporting` | tables, pictures, the report of a run |
| `distribution` | the strategy for this machine, or for several |
"""

from keras_distill import _terminal

if _terminal.is_the_command():
    _terminal.import_keras_quietly()

from keras_distill import backbones
from keras_distill import callbacks
from keras_distill import connectors
from keras_distill import data
from keras_distill import distribution
from keras_distill import export
from keras_distill import losses
from keras_distill import metrics
from keras_distill import recipes
from keras_distill import reporting
from keras_distill import schedules
from keras_distill._version import __version__
from keras_distill.models import Distiller
from keras_distill.models import EnsembleTeacher
from keras_distill.models import Term
from keras_distill.taps import tap

__all__ = [
    "Distiller",
    "EnsembleTeacher",
    "Term",
    "__version__",
    "backbones",
    "callbacks",
    "connectors",
    "data",
    "distribution",
    "export",
    "losses",
    "metrics",
    "recipes",
    "reporting",
    "schedules",
    "tap",
]
