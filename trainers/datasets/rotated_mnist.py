"""Rotated MNIST (Larochelle et al. 2007), as a TFDS data set."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.ndimage
import tensorflow_datasets as tfds

TRAIN_SIZE, TEST_SIZE = 12_000, 50_000
_FILES = {
    "train": "mnist_all_rotation_normalized_float_train_valid.amat",
    "test": "mnist_all_rotation_normalized_float_test.amat",
}
_SEED = 2007


class RotatedMnist(tfds.core.GeneratorBasedBuilder):
    """MNIST's digits at random angles: 12,000 for training, 50,000 for the test.

    Read from the original files where they are given; else made of MNIST by rotations of a fixed
    seed, which is another sample of the same distribution.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The original files, or rotations of MNIST by a fixed seed."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional: put mnist_all_rotation_normalized_float_train_valid.amat and …_test.amat, of "
        "mnist_rotation_new.zip, into the manual directory. Without them the data set is made "
        "of MNIST."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="MNIST's digits rotated by angles uniform in [0, 360) degrees.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://sites.google.com/a/lisa.iro.umontreal.ca/public_static_twiki/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        given = _manual_files(dl_manager)
        if given is not None:
            return {split: self._generate_examples(*_read(path)) for split, path in given.items()}
        images, labels = mnist(self._data_dir_root)
        order = np.random.default_rng(_SEED).permutation(len(images))
        parts = {"train": order[:TRAIN_SIZE], "test": order[TRAIN_SIZE : TRAIN_SIZE + TEST_SIZE]}
        angles = np.random.default_rng(_SEED + 1).uniform(0, 360, len(images))
        return {
            split: self._generate_examples(images[part], labels[part], angles[part])
            for split, part in parts.items()
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, angles: np.ndarray | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (image, label) in enumerate(zip(images, labels)):
            image = image if angles is None else rotated(image, angles[number])
            yield number, {"image": image, "label": int(label)}


def mnist(data_dir) -> tuple[np.ndarray, np.ndarray]:
    """All 70,000 digits of MNIST, training and test: [70000, 28, 28, 1] uint8, [70000]."""
    parts = tfds.load("mnist", split="train+test", data_dir=data_dir, batch_size=-1)
    arrays = tfds.as_numpy(parts)
    return arrays["image"], arrays["label"]


def rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    """An image [28, 28, 1] uint8 turned about its centre, by bilinear interpolation."""
    turned = scipy.ndimage.rotate(image[..., 0].astype(np.float32), degrees, reshape=False, order=1)
    return np.clip(np.rint(turned), 0, 255).astype(np.uint8)[..., np.newaxis]


def _read(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 784 pixels in [0, 1], column by column, and the label."""
    rows = np.loadtxt(path, dtype=np.float32, ndmin=2)
    if rows.shape[1] != 785:
        raise ValueError(f"{path} must have 784 pixels and a label in each row; got {rows.shape}.")
    pixels = rows[:, :-1].reshape(-1, 28, 28, 1).transpose(0, 2, 1, 3)
    return np.rint(pixels * 255).astype(np.uint8), rows[:, -1].astype(np.int64)


def _manual_files(dl_manager) -> dict[str, pathlib.Path] | None:
    """The original files, None unless both are there."""
    try:
        directory = pathlib.Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS's way to say that there is none.
        return None
    paths = {split: directory / name for split, name in _FILES.items()}
    return paths if all(path.exists() for path in paths.values()) else None
