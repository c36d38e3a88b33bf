"""Experiments: what papers claim, carried out at a stated budget (`scripts/reproduce.py`).

`definitions` says what an experiment is and trains its rows, `claims` holds a claim against what
was measured, `reproducing` runs experiments by name and writes their results, `pages` makes table
and figure of them. `mutual`, `self_distillation`, `losses`, `compression`, `memory`, `mysteries`
and `synthetic` define the experiments, in settings that were fixed before the runs;
`mystery_runs` and `mystery_networks` train Allen-Zhu and Li's comparison.
"""

from keras_distill.experiments.reproducing import reproduce

__all__ = ["reproduce"]
