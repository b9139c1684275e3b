"""Preparing a data set while others may prepare it, too."""

from __future__ import annotations

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Download and prepare, or wait for another process that does and take what it has prepared.

    TFDS would have each of several processes download all, such as ISSGD's master and workers on a
    fresh machine, and fail in all but the first.
    """
    with _alone(pathlib.Path(builder.data_path).parents[1], builder.name):
        try:
            if not builder.data_path.exists():
                builder.download_and_prepare()
                return
        except FileExistsError:  # Another machine's, which sees no lock of this one.
            pass
        builder.info.read_from_directory(builder.data_path)


@contextlib.contextmanager
def _alone(folder: pathlib.Path, name: str) -> Iterator[None]:
    """No other process of this machine is here for this data set; who dies leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
