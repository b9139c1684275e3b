"""CIFAR enlarged beforehand by random flips and crops (K&F 2018, section 4.2).

Samplers with a memory need examples that come back. The paper makes 1.5 million images of each
data set; they are written to sharded record files once, and streamed from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from trainers import augmentation
from trainers.datasets import preparation


class Augmented(tfds.core.GeneratorBasedBuilder):
    """COPIES random flips and crops of every training image of SOURCE; its test images as they are.

    Copy k of the image at position i in the source's order is drawn with seed (i, k): preparing
    again gives the same images. Subclasses set SOURCE, the name of a TFDS data set.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "flip_crop of trainers.augmentation, seeded by position and copy."}
    SOURCE: str
    COPIES = 30

    def _source(self) -> tfds.core.DatasetBuilder:
        return tfds.builder(self.SOURCE, data_dir=self._data_dir_root)

    def _info(self) -> tfds.core.DatasetInfo:
        features = self._source().info.features
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.COPIES} random flips and crops of each training image.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=features["image"].shape, dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=features["label"].num_classes),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        source = self._source()
        preparation.prepare(source)
        return {
            "train": self._generate_examples(source, "train", self.COPIES),
            "test": self._generate_examples(source, "test", 0),
        }

    def _generate_examples(
        self, source: tfds.core.DatasetBuilder, split: str, copies: int
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        def copied(position, example):
            image, label = example
            numbers = tf.data.Dataset.range(max(copies, 1))
            if not copies:
                return numbers.map(lambda copy: (position, copy, image, label))
            return numbers.map(
                lambda copy: (
                    position,
                    copy,
                    augmentation.flip_crop(image, tf.stack([position, copy])),
                    label,
                )
            )

        examples = source.as_dataset(split=split, as_supervised=True)
        for position, copy, image, label in tfds.as_numpy(examples.enumerate().flat_map(copied)):
            yield f"{position}_{copy}", {"image": image, "label": int(label)}


class Cifar10Augmented(Augmented):
    """1.5 million images made of CIFAR-10's 50,000."""

    SOURCE = "cifar10"


class Cifar100Augmented(Augmented):
    """1.5 million images made of CIFAR-100's 50,000."""

    SOURCE = "cifar100"
