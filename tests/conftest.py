"""Shared fixtures. Two logical CPUs stand for two replicas."""

import gc
import re
from collections import Counter

# First: it imports TensorFlow without its noise.
import trainers  # noqa: F401

# isort: split
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, settings

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()],
)

# The same examples in each run, however long a loaded machine takes to think of them.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def strategy():
    """One for all tests: TensorFlow's collectives on CPUs are the process's, not a strategy's."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def pytest_collection_finish() -> None:
    """Keep what the imports made, 400,000 objects, out of all further collections of garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    """Seeds do not depend on which fixtures, tests and plugins came before: pytest-randomly sets
    its own between the fixtures and the test."""
    keras.utils.set_random_seed(0)


# Why a test is left out, and how it would not be: "needs redis-server (apt-get install …)".
_NEEDS = re.compile(r"needs (?P<what>[^()]+) \((?P<command>[^()]+)\)$")


def left_out(reasons: list[str]) -> list[str]:
    """A line for each thing that tests lack and a command provides; other reasons have none."""
    found = Counter(match.groups() for reason in reasons if (match := _NEEDS.search(reason)))
    return [
        f"Left out for want of {what}: {count} tests. To run them: {command}"
        for (what, command), count in sorted(found.items())
    ]


def pytest_terminal_summary(terminalreporter) -> None:
    """Say once at the end what was not tested."""
    skipped = terminalreporter.stats.get("skipped", [])
    # (file, line, reason)
    reasons = [report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)]
    for line in left_out(reasons):
        terminalreporter.write_line(line, yellow=True)


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
