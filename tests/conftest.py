"""Shared fixtures. Two logical CPUs stand for two replicas."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()],
)


def pytest_collection_finish() -> None:
    """Keep what the imports made, 400,000 objects, out of all further collections of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session()
    # Keras 3 collects all garbage in it, which took longer than the tests. What is there still,
    # such as TensorFlow's caches, outlives the test anyway: later collections may skip it.
    gc.collect()
    gc.freeze()


@pytest.fixture
def blobs():
    """Four classes of Gaussian points in the plane, one of them small: ([n, 2], [n])."""
    rng = np.random.default_rng(0)
    centers = np.array([[2, 0], [-2, 0], [0, 2], [0, 0.3]], np.float32)
    labels = rng.choice(4, size=512, p=[0.35, 0.3, 0.3, 0.05]).astype(np.int32)
    points = centers[labels] + rng.normal(scale=0.5, size=(512, 2)).astype(np.float32)
    return points.astype(np.float32), labels
