"""Preparing a data set while others may prepare it, too."""

from __future__ import annotations

import tensorflow_datasets as tfds


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Download and prepare, or take what another process has prepared meanwhile.

    TFDS writes to a folder of its own and renames it at the end, which fails for all but the first
    of several processes, such as ISSGD's master and workers on a fresh machine.
    """
    try:
        builder.download_and_prepare()
    except FileExistsError:
        builder.info.read_from_directory(builder.data_path)
