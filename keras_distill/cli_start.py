"""What every command of `keras_distill.cli` does first."""


def start(deterministic=False):
    """Quiets TensorFlow; with `deterministic`, the same seed gives the same weights."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    from keras_distill import _terminal
    from keras_distill.recipes import training

    tf.get_logger().setLevel("ERROR")
    with _terminal.native_output_held_back():  # a machine without GPU is told so at every start
        tf.config.list_physical_devices()
        tf.constant(0)
    if deterministic:
        training.make_deterministic()
