"""What all tests share: two CPU devices, a seed, and global settings put back after each test."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

LOGICAL_CPU_DEVICES = 2
SEED = 1234

if os.environ.get("KERAS_BACKEND") == "jax":  # which reads it when it is imported
    devices = f"--xla_force_host_platform_device_count={LOGICAL_CPU_DEVICES}"
    os.environ.setdefault("XLA_FLAGS", devices)

import keras  # noqa: E402
import pytest  # noqa: E402

on_tensorflow = keras.backend.backend() == "tensorflow"

if on_tensorflow:
    import tensorflow as tf

    # Two replicas on one CPU, for MirroredStrategy. It has to happen before the first op runs.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration() for _ in range(LOGICAL_CPU_DEVICES)],
    )


def pytest_collection_modifyitems(items):
    """Skips what is marked `tensorflow` on the other backends."""
    if on_tensorflow:
        return
    skip = pytest.mark.skip(reason=f"needs TensorFlow; runs on {keras.backend.backend()}")
    for item in items:
        if item.get_closest_marker("tensorflow"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed_and_settings():
    """Seeds Python, NumPy and the backend; puts back what a test set in Keras or for a cluster."""
    cluster = os.environ.get("TF_CONFIG")
    policy = keras.config.dtype_policy()
    floatx = keras.config.floatx()
    image_data_format = keras.config.image_data_format()
    keras.utils.set_random_seed(SEED)
    yield
    if cluster is None:
        os.environ.pop("TF_CONFIG", None)  # what Slurm says is written there
    else:
        os.environ["TF_CONFIG"] = cluster
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
    keras.config.set_image_data_format(image_data_format)
    if on_tensorflow and tf.config.functions_run_eagerly():
        tf.config.run_functions_eagerly(False)


@pytest.fixture(autouse=True, scope="module")
def _free_memory():
    """Drops a module's models and traces before the next module starts."""
    yield
    keras.backend.clear_session(free_memory=False)
    gc.collect()


@pytest.fixture(scope="session")
def data_dir():
    """The folder of prepared TFDS data sets, from `TFDS_DATA_DIR`; skips where there is none."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder:
        pytest.skip("TFDS_DATA_DIR is not set: no prepared data sets (mnist, cifar10, ...) here")
    if not os.path.isdir(folder):
        pytest.skip(f"TFDS_DATA_DIR={folder!r} is not a folder")
    return folder


@pytest.fixture(scope="session")
def two_replicas():
    """The one `MirroredStrategy` of this process: Keras itself fails under a second one."""
    if not on_tensorflow:
        pytest.skip("tf.distribute needs TensorFlow")
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture
def two_devices(request):
    """What trains on two devices inside its `scope()`: `two_replicas`, or JAX's `DataParallel`."""
    if keras.backend.backend() != "jax":
        return request.getfixturevalue("two_replicas")
    return keras.distribution.DataParallel(devices=["cpu:0", "cpu:1"])
