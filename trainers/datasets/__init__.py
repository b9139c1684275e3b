"""Image data sets by name, through TensorFlow Datasets."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core.download import download_manager

from trainers.datasets import digits, rotated_mnist

# The largest value of a pixel, by which images are scaled to [0, 1].
LARGEST_PIXEL = {
    "digits": 16,
    "mnist": 255,
    "fashion_mnist": 255,
    "cifar10": 255,
    "cifar100": 255,
    "rotated_mnist": 255,
    "svhn_cropped": 255,
}
_BUILDERS = {"digits": digits.Digits, "rotated_mnist": rotated_mnist.RotatedMnist}
# Where the papers train on more than the split "train".
_TRAIN_SPLITS = {"svhn_cropped": "train+extra"}


class Data(NamedTuple):
    """A classification data set.

    Attributes:
        train, test: unbatched, cached datasets of (image float32 in [0, 1], label int32).
        num_train: number of training examples.
        image_shape: (height, width, channels).
        num_classes: number of labels.
    """

    train: tf.data.Dataset
    test: tf.data.Dataset
    num_train: int
    image_shape: tuple[int, int, int]
    num_classes: int


def load(name: str, data_dir: str | None = None) -> Data:
    """Load a data set; prepare it first where that has not been done.

    Args:
        name: a key of LARGEST_PIXEL.
        data_dir: where TFDS keeps prepared data; by default $TFDS_DATA_DIR, then
            ~/tensorflow_datasets.
    Returns:
        The data.
    Raises:
        ValueError: unknown name.
        RuntimeError: TFDS could not download the data.
    """
    if name not in LARGEST_PIXEL:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(LARGEST_PIXEL)}.")
    builder = (
        _BUILDERS[name](data_dir=data_dir)
        if name in _BUILDERS
        else tfds.builder(name, data_dir=data_dir)
    )
    if not builder.data_path.exists():
        _prepare(builder)
    largest = LARGEST_PIXEL[name]

    def scaled(image, label):
        return tf.cast(image, tf.float32) / largest, tf.cast(label, tf.int32)

    def split(part: str) -> tf.data.Dataset:
        examples = builder.as_dataset(split=part, as_supervised=True)
        return examples.map(scaled, num_parallel_calls=tf.data.AUTOTUNE).cache()

    train = _TRAIN_SPLITS.get(name, "train")
    return Data(
        train=split(train),
        test=split("test"),
        num_train=builder.info.splits[train].num_examples,
        image_shape=builder.info.features["image"].shape,
        num_classes=builder.info.features["label"].num_classes,
    )


def fixed_subset(data: Data, size: int) -> tf.data.Dataset:
    """The same uniform subset of the training examples in every run.

    Every k-th example: TFDS writes examples in the order of a hash, which is as good as random.

    Args:
        data: a data set.
        size: the number of examples is this or a little less, so that k is whole.
    Raises:
        ValueError: size is not positive.
    """
    if size < 1:
        raise ValueError(f"--train_examples must be positive; got {size}.")
    return data.train.shard(-(-data.num_train // size), 0)


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    logging.warning("Preparing %s in %s.", builder.name, builder.data_path)
    tfds.disable_progress_bar()
    try:
        builder.download_and_prepare()
    # Failures of requests and of urllib are OSErrors.
    except (
        OSError,
        tfds.download.DownloadError,
        download_manager.NonMatchingChecksumError,
    ) as error:
        raise RuntimeError(
            f"TFDS could not download {builder.name!r} to {builder.data_path}: {error}\n"
            "Without a network, put the original archives into TFDS's download cache, prepare "
            "the data set there, and set TFDS_DATA_DIR (or --data_dir) to the directory that "
            "has it prepared. --dataset=digits needs no download."
        ) from error
