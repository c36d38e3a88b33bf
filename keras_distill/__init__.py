"""Knowledge distillation for Keras 3.

Wrap models, call `compile` and `fit`, and walk away with a better small model.

| where | what |
| --- | --- |
| `Distiller`, `Term`, `Stage`, `EnsembleTeacher` | distillation from a teacher, in stages too |
| `ReusedClassifierDistiller` | SimKD: the student takes over its teacher's classifier |
| `TwoHeadDistiller` | DeiT: labels teach one head of the student, the teacher another |
| `BornAgain` | generations of one network, each taught by the one before it |
| `ClassWiseDistiller` | CS-KD: two images of a class are predicted alike |
| `DistortionDistiller` | DDGSD: two views of an image teach each other |
| `DLBModel` | DLB: half of each batch is the last one's, and its predictions the targets |
| `ProgressiveDistiller` | PS-KD: the predictions of the epoch before soften the labels |
| `TeacherFreeDistiller` | Tf-KD: an earlier training of the student, or a virtual teacher |
| `MeanTeacher` | the target is the moving average of the student's weights |
| `NativeEnsemble` | ONE: branches on a shared stem, and the gate that teaches them |
| `LabelSmoothing` | the label loss of the baseline, for class ids |
| `MutualLearner` | students that teach each other |
| `SelfDistiller` | Be Your Own Teacher: exits inside a network, and early exit |
| `losses` | every distillation loss, a function and its `keras.losses.Loss` twin |
| `schedules` | weights and temperatures that change with the step |
| `tap` | a twin of a model that also returns the outputs of named layers |
| `connectors` | layers that fit a student's feature to a teacher's |
| `regressors` | the papers' own: FitNet's, RepDistiller's, ActivationBoundary's |
| `backbones` | CIFAR ResNets and WRNs, small CNNs, builders for keras-cv and keras-hub |
| `data` | sources, reproducible batches, `Targets` |
| `metrics`, `callbacks` | agreement, calibration; logs and backups |
| `export` | SavedModel, TF Lite, parity, latency |
| `recipes` | whole settings, as the command line runs them |
| `experiments` | what papers claim, carried out; `scripts/reproduce.py` |
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
from keras_distill import experiments
from keras_distill import export
from keras_distill import losses
from keras_distill import metrics
from keras_distill import recipes
from keras_distill import regressors
from keras_distill import reporting
from keras_distill import schedules
from keras_distill._version import __version__
from keras_distill.losses.label_smoothing import LabelSmoothing
from keras_distill.models import BornAgain
from keras_distill.models import ClassWiseDistiller
from keras_distill.models import Distiller
from keras_distill.models import DistortionDistiller
from keras_distill.models import DLBModel
from keras_distill.models import EnsembleTeacher
from keras_distill.models import MeanTeacher
from keras_distill.models import MutualLearner
from keras_distill.models import NativeEnsemble
from keras_distill.models import ProgressiveDistiller
from keras_distill.models import ReusedClassifierDistiller
from keras_distill.models import SelfDistiller
from keras_distill.models import Stage
from keras_distill.models import TeacherFreeDistiller
from keras_distill.models import Term
from keras_distill.models import TwoHeadDistiller
from keras_distill.taps import tap

__all__ = [
    "BornAgain",
    "ClassWiseDistiller",
    "DLBModel",
    "Distiller",
    "DistortionDistiller",
    "EnsembleTeacher",
    "LabelSmoothing",
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
    "__version__",
    "backbones",
    "callbacks",
    "connectors",
    "data",
    "distribution",
    "experiments",
    "export",
    "losses",
    "metrics",
    "recipes",
    "regressors",
    "reporting",
    "schedules",
    "tap",
]
