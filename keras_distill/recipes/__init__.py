"""Recipes: whole settings, from data to a run's folder, as the command line calls them.

`demo.demo` is the demo, `distillation.distil` what `keras-distill train` does with a teacher,
`running.train_recipe` what it does with `--recipe`, `compare_recipes` and `evaluation.compare`
what `keras-distill compare` does, and `exporting.write` what `export` does. `schemes.RECIPES`
lists the published schemes by name, `paper` holds the function of each. `training.carry_out` is
one training of a run, taken up where a kill left it.
"""

from keras_distill.recipes import commands
from keras_distill.recipes import comparing
from keras_distill.recipes import demo
from keras_distill.recipes import distillation
from keras_distill.recipes import evaluation
from keras_distill.recipes import exporting
from keras_distill.recipes import networks
from keras_distill.recipes import paper
from keras_distill.recipes import running
from keras_distill.recipes import schemes
from keras_distill.recipes import training
from keras_distill.recipes.comparing import compare_recipes

__all__ = [
    "commands",
    "compare_recipes",
    "comparing",
    "demo",
    "distillation",
    "evaluation",
    "exporting",
    "networks",
    "paper",
    "running",
    "schemes",
    "training",
]
