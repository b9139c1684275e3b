"""Classification with rare classes, as arrays: flights, and images with most of a class left out.

A class that was thinned in training is not thinned where it is validated and tested: there its
examples have weights that restore its share, which tells more than the few that thinning would
leave.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from tf_importance.arguments import meant
from trainers import datasets
from trainers.datasets import flights, preparation

FLIGHTS = {"flights_late": "late", "flights_cancelled": "cancelled"}
IMAGES = ("digits", "mnist", "fashion_mnist", "cifar10")
NAMES = (*FLIGHTS, *IMAGES)
# By whole days, or by rows: a flight of the test then has others of its day in the training data.
SPLITS = ("days", "rows")
_BY_ROWS = ("[:70%]", "[70%:80%]", "[80%:]")
# Of the training images, to validate by.
_VALIDATED = 6
_SEED = 7


class Part(NamedTuple):
    """Examples.

    Attributes:
        x: [n, …] float32. y: [n] int32.
        weights: [n] float32, of mean 1, which give the classes their shares of the training data.
    """

    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray


class Rare(NamedTuple):
    """A data set with rare classes."""

    train: Part
    validation: Part
    test: Part
    num_classes: int

    @property
    def prior(self) -> np.ndarray:
        """π: [K], the classes' shares of the training data."""
        return shares(self.train.y, self.num_classes)


def load(
    name: str,
    data_dir: str | None = None,
    *,
    rare_class: int = 8,
    share: float = 0.01,
    long_tail: float = 0.0,
    split: str = "days",
) -> Rare:
    """A data set of NAMES.

    Args:
        name: flights_late and flights_cancelled are as rare as they are; of images `rare_class`
            is told from all others.
        data_dir: as in `datasets.load`.
        rare_class: of images. share: its share of the training data.
        long_tail: in place of one rare class all classes of images, the last so many times rarer
            than the first, exponentially between them (Cui et al. 2019); 0 for none.
        split: of flights, of SPLITS.
    Raises:
        ValueError: an argument is unknown or out of range.
    """
    if name not in NAMES:
        raise ValueError(
            f"--dataset must be one of {', '.join(NAMES)}; got {name!r}.{meant(name, NAMES)}"
        )
    if name in FLIGHTS:
        if split not in SPLITS:
            raise ValueError(f"--split must be one of {', '.join(SPLITS)}; got {split!r}.")
        return _of_flights(FLIGHTS[name], data_dir, split)
    if long_tail and long_tail < 1:
        raise ValueError(f"--long_tail must be at least 1, or 0 for none; got {long_tail:g}.")
    if not 0 < share < 1:
        raise ValueError(f"--share must be between 0 and 1; got {share:g}.")
    whole, test, classes = _images(name, data_dir)
    if not 0 <= rare_class < classes:
        raise ValueError(f"--rare_class must be from 0 to {classes - 1}; got {rare_class}.")
    order = np.random.default_rng(_SEED).permutation(len(whole.y))
    held = len(order) // _VALIDATED
    validation, train = taken(whole, order[:held]), taken(whole, order[held:])
    parts = [train, validation, test]
    if long_tail:
        kept = long_tailed(train.y, classes, long_tail)
    else:
        parts = [part._replace(y=(part.y == rare_class).astype(np.int32)) for part in parts]
        classes, kept = 2, thinned(parts[0].y, share)
    parts[0] = taken(parts[0], kept)
    prior = shares(parts[0].y, classes)
    return Rare(*(weighted(part, prior) for part in parts), num_classes=classes)


def thinned(labels: np.ndarray, share: float) -> np.ndarray:
    """Positions of all examples of class 0, and of so many of class 1 that they have a share.

    Args:
        labels: [n] of 0 and 1. share: of class 1, at most what it has.
    Raises:
        ValueError: class 1 has less.
    """
    rare, common = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    count = round(share / (1 - share) * len(common))
    if not 0 < count <= len(rare):
        raise ValueError(
            f"--share must leave between 1 and {len(rare)} examples of the rare class; "
            f"{share:g} leaves {count}."
        )
    return np.sort(np.concatenate([rare[:count], common]))


def long_tailed(labels: np.ndarray, classes: int, ratio: float) -> np.ndarray:
    """Positions of n r^(−k/(K−1)) examples of class k (Cui et al. 2019), n those of the smallest.

    Args:
        labels: [n]. classes: K. ratio: r, of the first class to the last.
    """
    of_each = [np.flatnonzero(labels == one) for one in range(classes)]
    most = min(len(positions) for positions in of_each)
    counts = most * ratio ** (-np.arange(classes) / (classes - 1))
    kept = [positions[: max(1, round(n))] for positions, n in zip(of_each, counts)]
    return np.sort(np.concatenate(kept))


def shares(labels: np.ndarray, classes: int) -> np.ndarray:
    """[K], each class's share of the labels."""
    return np.bincount(labels, minlength=classes) / len(labels)


def taken(part: Part, positions: np.ndarray) -> Part:
    """The examples at these positions."""
    return Part(*(values[positions] for values in part))


def every(part: Part, size: int) -> Part:
    """Every k-th example, `size` or a little less, so that k is whole.

    Raises:
        ValueError: size is not positive.
    """
    if size < 1:
        raise ValueError(f"--train_examples must be positive; got {size}.")
    return taken(part, np.arange(0, len(part.y), -(-len(part.y) // size)))


def weighted(part: Part, prior: np.ndarray) -> Part:
    """The same examples with the weights that give classes their shares in `prior`: [K]."""
    there = shares(part.y, len(prior))
    of_class = np.divide(prior, there, out=np.zeros_like(prior), where=there > 0)
    return part._replace(weights=of_class[part.y].astype(np.float32))


@functools.cache
def _images(name: str, data_dir: str | None) -> tuple[Part, Part, int]:
    """Training and test images in [0, 1], and the number of their classes."""
    data = datasets.load(name, data_dir)
    found = []
    for part in (data.train, data.test):
        batches = list(part.batch(1024).as_numpy_iterator())
        x, y = (np.concatenate(arrays) for arrays in zip(*batches))
        found.append(Part(x, y, np.ones(len(y), np.float32)))
    return *found, data.num_classes


def _of_flights(label: str, data_dir: str | None, split: str) -> Rare:
    parts = ["train", "validation", "test"]
    if split == "rows":
        # TFDS writes the examples of a split in the order of a hash.
        parts = ["+".join(f"{part}{rows}" for part in parts) for rows in _BY_ROWS]
    found = [_flights(part, data_dir) for part in parts]
    mean, deviation = _moments(found[0]["numbers"])
    made = []
    for columns in found:
        numbers = np.nan_to_num((columns["numbers"] - mean) / deviation)
        x = np.concatenate([columns["categories"] + _offsets(), numbers], axis=1)
        y = columns[label].astype(np.int32)
        made.append(Part(x.astype(np.float32), y, np.ones(len(y), np.float32)))
    return Rare(*made, num_classes=2)


@functools.cache
def _flights(part: str, data_dir: str | None) -> dict[str, np.ndarray]:
    datasets.check_directory(data_dir)
    builder = flights.Flights(data_dir=data_dir)
    if not builder.data_path.exists():
        tfds.disable_progress_bar()
        preparation.prepare(builder)
    return tfds.as_numpy(builder.as_dataset(split=part, batch_size=-1))


def _moments(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    numbers = numbers.astype(np.float64)
    return np.nanmean(numbers, axis=0), np.maximum(np.nanstd(numbers, axis=0), 1e-6)


def _offsets() -> np.ndarray:
    """Where each category's codes begin among those of all: the net has one table for them."""
    return np.cumsum([0, *flights.SIZES[:-1]])
