"""Out of Python: the inference model as SavedModel or TF Lite, checked and timed there.

`saved_model` and `tflite` write a file, `check_parity` runs the file beside the network and
raises where they differ, `latency` times it. All four need Keras on TensorFlow or a file that
was written there; the last two need `pip install "keras-distill[litert]"`. `quantization_aware`
makes a student train as its int8 file will compute.
"""

from keras_distill.export.latency import Latency
from keras_distill.export.latency import latency
from keras_distill.export.parity import ParityError
from keras_distill.export.parity import ParityReport
from keras_distill.export.parity import check_parity
from keras_distill.export.quantization import quantization_aware
from keras_distill.export.saved_model import saved_model
from keras_distill.export.tflite import tflite

__all__ = [
    "Latency",
    "ParityError",
    "ParityReport",
    "check_parity",
    "latency",
    "quantization_aware",
    "saved_model",
    "tflite",
]
