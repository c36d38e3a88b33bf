"""Recipes: whole settings, from data to a run's folder, as the command line calls them.

`demo.demo` is the demo, `distillation.distil` what `keras-distill train` does,
`evaluation.compare` and `exporting.write` what the other commands do; `training.train` is one
training of a run, taken up where a kill left it.
"""

from keras_distill.recipes import demo
from keras_distill.recipes import distillation
from keras_distill.recipes import evaluation
from keras_distill.recipes import exporting
from keras_distill.recipes import networks
from keras_distill.recipes import training

__all__ = ["demo", "distillation", "evaluation", "exporting", "networks", "training"]
