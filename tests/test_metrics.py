"""Keras's metrics of drawn batches: an example of weight 3 counts as three examples do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tf_importance import metrics

M = keras.metrics
b, K = 8, 3
RNG = np.random.default_rng(0)
WEIGHTS = np.array([1, 3, 2, 1, 4, 1, 2, 2])
INNER = {"vectors": (), "sequences": (5,), "images": (4, 4)}
WHOLE = {} if int(keras.__version__.split(".")[0]) < 3 else {"dtype": "float32"}
# What each takes: labels and outputs of [b, …, k].
KINDS = {
    "numbers": (
        "MeanSquaredError MeanAbsoluteError MeanAbsolutePercentageError LogCoshError Poisson "
        "MeanSquaredLogarithmicError RootMeanSquaredError CosineSimilarity Hinge SquaredHinge "
        "KLDivergence CategoricalHinge Accuracy PearsonCorrelation ConcordanceCorrelation"
    ),
    "classes": (
        "SparseCategoricalAccuracy SparseCategoricalCrossentropy SparseTopKCategoricalAccuracy "
        "MeanIoU"
    ),
    "one of k": (
        "CategoricalAccuracy CategoricalCrossentropy TopKCategoricalAccuracy OneHotIoU "
        "OneHotMeanIoU F1Score FBetaScore"
    ),
    "binary": (
        "BinaryAccuracy BinaryCrossentropy BinaryIoU AUC Precision Recall TruePositives "
        "FalsePositives TrueNegatives FalseNegatives PrecisionAtRecall RecallAtPrecision "
        "SensitivityAtSpecificity SpecificityAtSensitivity"
    ),
    "of vectors alone": "R2Score",
}
NEEDS = {
    "MeanIoU": {"num_classes": K, "sparse_y_pred": False, **WHOLE},
    "OneHotIoU": {"num_classes": K, "target_class_ids": [0, 2], **WHOLE},
    "OneHotMeanIoU": {"num_classes": K, **WHOLE},
    "BinaryIoU": WHOLE,
    "PrecisionAtRecall": {"recall": 0.5},
    "RecallAtPrecision": {"precision": 0.5},
    "SensitivityAtSpecificity": {"specificity": 0.5},
    "SpecificityAtSensitivity": {"sensitivity": 0.5},
    "SparseTopKCategoricalAccuracy": {"k": 2},
    "TopKCategoricalAccuracy": {"k": 2},
}
# Of [b, k] alone, by Keras.
OF_VECTORS = {"F1Score", "FBetaScore", "R2Score"}
CASES = [
    (kind, name, shape)
    for kind, names in KINDS.items()
    for name in names.split()
    for shape in INNER
    if hasattr(M, name) and (shape == "vectors" or name not in OF_VECTORS)
]


def data(kind, inner):
    shape = (b, *inner)
    classes = RNG.integers(0, K, shape)
    outputs = RNG.dirichlet(np.ones(K), shape).astype("float32")
    if kind == "classes":
        return classes, outputs
    if kind == "one of k":
        return np.eye(K, dtype="float32")[classes], outputs
    if kind == "binary":
        return (classes[..., None] > 0).astype("float32"), outputs[..., :1]
    labels = RNG.random((*shape, K)).astype("float32")
    # Some of them equal, for what counts these.
    return np.where(RNG.random(labels.shape) < 0.5, labels, outputs).astype("float32"), outputs


def result(metric):
    return np.asarray(metric.result(), np.float64)


@pytest.mark.parametrize("kind, name, shape", CASES, ids=[f"{n}, {s}" for _, n, s in CASES])
def test_a_weight_counts_as_so_many_examples(kind, name, shape):
    make = lambda: getattr(M, name)(name="m", **NEEDS.get(name, {}))  # noqa: E731
    labels, outputs = data(kind, INNER[shape])
    model = tfi.ISModel(keras.Sequential([keras.Input((K,)), keras.layers.Dense(K)]))
    metric = make()
    model.compile("sgd", "mse", metrics=[metric])
    weights = tf.constant(WEIGHTS, tf.float32)
    metrics.update(model, *map(tf.constant, (labels, outputs)), weights, weights, True)
    repeated, alone = make(), make()
    repeated.update_state(*(np.repeat(part, WEIGHTS, axis=0) for part in (labels, outputs)))
    np.testing.assert_allclose(result(metric), result(repeated), rtol=1e-4, atol=1e-6)
    # A control: without weights it is another.
    alone.update_state(labels, outputs)
    if name == "MeanSquaredError":
        assert np.abs(result(alone) - result(repeated)).max() > 1e-4
