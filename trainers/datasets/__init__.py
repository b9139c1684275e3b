"""Data sets by name, through TensorFlow Datasets."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core.download import download_manager

from tf_importance.arguments import meant
from trainers.datasets import augmented, digits, mit67, permuted, preparation, rotated_mnist

_BUILDERS = {
    "digits": digits.Digits,
    "cifar10_augmented": augmented.Cifar10Augmented,
    "cifar100_augmented": augmented.Cifar100Augmented,
    "mit67": mit67.Mit67,
    "rotated_mnist": rotated_mnist.RotatedMnist,
}
# Examples that a shuffle of streamed data holds.
_BUFFER = 10_000


class Source(NamedTuple):
    """Where a data set comes from.

    Attributes:
        builder: name of a class above, or of one of TFDS's own data sets.
        largest: the largest value of a pixel, by which images are scaled to [0, 1].
        to_input: from a scaled image to the net's input.
        half: 0 or 1 for the examples of the first or second half of the classes, else None.
        streamed: too large for the memory: read from disk in every pass.
        train: the split to train on.
    """

    builder: str
    largest: int = 255
    to_input: Callable[[tf.Tensor], tf.Tensor] = tf.identity
    half: int | None = None
    streamed: bool = False
    train: str = "train"


def _sequence(builder: str, largest: int = 255, pool: int = 1) -> Source:
    return Source(builder, largest, functools.partial(permuted.as_sequence, pool=pool))


SOURCES = {
    "digits": Source("digits", 16),
    "mnist": Source("mnist"),
    "fashion_mnist": Source("fashion_mnist"),
    "cifar10": Source("cifar10"),
    "cifar100": Source("cifar100"),
    "rotated_mnist": Source("rotated_mnist"),
    # What the oracle, which passes all examples at each step, gets through on a CPU.
    "mnist_1500": Source("mnist", train="train[:1500]"),
    # RAIS trains on the extra images too.
    "svhn_cropped": Source("svhn_cropped", train="train+extra"),
    # ISSGD sets 5% of the training examples aside, to choose hyper-parameters by.
    "svhn_cropped_95": Source("svhn_cropped", train="train[:95%]+extra[:95%]"),
    "cifar10_augmented": Source("cifar10_augmented", streamed=True),
    "cifar100_augmented": Source("cifar100_augmented", streamed=True),
    "mit67": Source("mit67", to_input=mit67.resized, streamed=True),
    "permuted_digits": _sequence("digits", 16),
    "permuted_mnist": _sequence("mnist"),
    # 196 and 49 pixels, each the mean of a square of four or sixteen.
    "permuted_mnist_196": _sequence("mnist", pool=2),
    "permuted_mnist_49": _sequence("mnist", pool=4),
    # To pretrain on, and to fine-tune to.
    "digits_first_half": Source("digits", 16, half=0),
    "digits_second_half": Source("digits", 16, half=1),
    "cifar10_first_half": Source("cifar10", half=0),
    "cifar10_second_half": Source("cifar10", half=1),
}


class Data(NamedTuple):
    """A classification data set.

    Attributes:
        train, test: unbatched datasets of (input float32 in [0, 1], label int32), cached but
            for those that are streamed.
        num_train: number of training examples.
        image_shape: (height, width, channels), or (steps, channels) of a sequence.
        num_classes: number of labels.
        buffer: examples that a shuffle holds: all of them, or as many as fit into memory.
    """

    train: tf.data.Dataset
    test: tf.data.Dataset
    num_train: int
    image_shape: tuple[int, ...]
    num_classes: int
    buffer: int


def source(name: str) -> Source:
    """A data set's source by its name.

    Raises:
        ValueError: unknown name.
    """
    if name not in SOURCES:
        raise ValueError(
            f"unknown data set {name!r}; known are {', '.join(SOURCES)}.{meant(name, SOURCES)}"
        )
    return SOURCES[name]


def builder(chosen: Source, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """What prepares and reads a source's data."""
    if chosen.builder in _BUILDERS:
        return _BUILDERS[chosen.builder](data_dir=data_dir)
    return tfds.builder(chosen.builder, data_dir=data_dir)


def check_directory(data_dir: str | None) -> None:
    """Refuse a directory that is mistyped, which TFDS would make and prepare all data in.

    Raises:
        ValueError: data_dir is not there.
    """
    there = data_dir is None or "://" in data_dir or pathlib.Path(data_dir).expanduser().is_dir()
    if not there:
        raise ValueError(f"--data_dir={data_dir} is no directory; make it first, or leave it out.")


def load(name: str, data_dir: str | None = None) -> Data:
    """Load a data set; prepare it first where that has not been done.

    Args:
        name: a key of SOURCES.
        data_dir: where TFDS keeps prepared data; by default $TFDS_DATA_DIR, then
            ~/tensorflow_datasets.
    Returns:
        The data.
    Raises:
        ValueError: unknown name, or data_dir is not there.
        RuntimeError: TFDS could not download the data, or files that only you can get are not
            there.
    """
    chosen = source(name)
    check_directory(data_dir)
    prepared = builder(chosen, data_dir)
    if not prepared.data_path.exists():
        _prepare(prepared)
    train, test = _split(prepared, chosen, chosen.train), _split(prepared, chosen, "test")
    num_train = _number(prepared, chosen)
    num_classes = prepared.info.features["label"].num_classes
    return Data(
        train=train,
        test=test,
        num_train=num_train,
        image_shape=tuple(train.element_spec[0].shape),
        num_classes=num_classes if chosen.half is None else _in_half(chosen.half, num_classes),
        buffer=min(num_train, _BUFFER) if chosen.streamed else num_train,
    )


def shuffled(data: Data, seed: int) -> tf.data.Dataset:
    """The training examples without an end, in another random order in every pass."""
    return data.train.shuffle(data.buffer, seed).repeat()


def _split(builder: tfds.core.DatasetBuilder, source: Source, part: str) -> tf.data.Dataset:
    """A part of a data set, as `Data` has it."""
    # A buffer that holds a part of the data mixes better where the files come in a random order.
    mixed = source.streamed and part == source.train
    examples = builder.as_dataset(split=part, as_supervised=True, shuffle_files=mixed)
    classes = builder.info.features["label"].num_classes

    def prepared(image, label):
        scaled = tf.cast(image, tf.float32) / source.largest
        return source.to_input(scaled), tf.cast(label, tf.int32)

    if source.half is not None:
        first = source.half * (classes // 2)
        examples = examples.filter(lambda image, label: _is_in(source.half, classes, label))
        examples = examples.map(lambda image, label: (image, label - first))
    examples = examples.map(prepared, num_parallel_calls=tf.data.AUTOTUNE)
    return examples if source.streamed else examples.cache()


def _number(builder: tfds.core.DatasetBuilder, source: Source) -> int:
    """How many training examples there are."""
    if source.half is None:
        return builder.info.splits[source.train].num_examples
    labels = builder.as_dataset(split=source.train, decoders={"image": tfds.decode.SkipDecoding()})
    classes = builder.info.features["label"].num_classes
    inside = labels.filter(lambda example: _is_in(source.half, classes, example["label"]))
    return int(inside.reduce(0, lambda count, _: count + 1))


def _is_in(half: int, classes: int, label: tf.Tensor) -> tf.Tensor:
    return (label >= classes // 2) == bool(half)


def _in_half(half: int, classes: int) -> int:
    """The number of classes in a half."""
    return classes - classes // 2 if half else classes // 2


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
        preparation.prepare(builder)
    # Failures of requests and of urllib are OSErrors; TFDS asserts that manual files are there.
    except (
        AssertionError,
        OSError,
        tfds.download.DownloadError,
        download_manager.NonMatchingChecksumError,
    ) as error:
        if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise RuntimeError(
                f"{builder.name!r} cannot be prepared: {error}\n"
                f"{builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            ) from error
        raise RuntimeError(
            f"TFDS could not download {builder.name!r} to {builder.data_path}: {error}\n"
            "Without a network, put the original archives into TFDS's download cache, prepare "
            "the data set there, and set TFDS_DATA_DIR (or --data_dir) to the directory that "
            "has it prepared. --dataset=digits needs no download."
        ) from error
