"""What each method computes, in NumPy and float64, written from the papers' equations.

Nothing here imports `keras_distill` or Keras: the tests compare two independent writings.
"""
