"""Recipes: whole settings, from data to a run's folder, as the command line calls them."""

from keras_distill.recipes.demo import demo

__all__ = ["demo"]
