"""Recipes: whole settings, from data to a run's folder, as the command line calls them.

`demo.demo` is the demo, `distillation.distil` what `keras-distill train` does,
`evaluation.compare` and `exporting.write` what the other commands do; `training.train` is one
training of a run, taken up where a kill left it.
"""
