"""Handwritten digits out of scikit-learn's wheel, as a TFDS data set: no network is needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import sklearn.datasets
import tensorflow_datasets as tfds

_TEST_SHARE = 5  # every fifth example


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 grey images of 8x8 pixels, values 0 to 16: 1,437 for training and 360 for the test.

    The test examples are every fifth of the examples ordered by class: a stratified split
    that depends on no random number generator.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "scikit-learn's digits, every fifth example for the test."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Optical recognition of handwritten digits: scikit-learn's copy of the "
            "test part of the UCI data set.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        images, labels = sklearn.datasets.load_digits(return_X_y=True)
        images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
        by_class = np.argsort(labels, kind="stable")
        in_test = np.arange(len(labels)) % _TEST_SHARE == 0
        return {
            "train": self._generate_examples(images, labels, np.sort(by_class[~in_test])),
            "test": self._generate_examples(images, labels, np.sort(by_class[in_test])),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, positions: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for position in positions:
            yield (
                int(position),
                {"image": images[position], "label": int(labels[position])},
            )
