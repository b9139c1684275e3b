"""Nets x losses x metrics x sample weights x forms of data: which are right, and which refused.

    python -m tests.conformance.table          # writes docs/what_works.md

One table for the tests, which train each cell, and for the page that shows it.
"""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

L = keras.layers
N = 12
_RNG = np.random.default_rng(0)
_PAGE = pathlib.Path(__file__).parents[2] / "docs" / "what_works.md"
KERAS_3 = int(keras.__version__.split(".")[0]) >= 3


# Losses -------------------------------------------------------------------------------------


def squared(labels, outputs):
    """A function of one's own, by example."""
    return tf.reduce_mean(tf.square(tf.cast(labels, outputs.dtype) - outputs), axis=-1)


def contrastive(labels, outputs):
    similar = tf.nn.log_softmax(tf.matmul(outputs, outputs, transpose_b=True))
    same = tf.cast(labels[:, None] == labels[None], tf.float32)
    return -tf.reduce_mean(same * similar, axis=1)


def one_number(labels, outputs):
    return tf.reduce_mean(tf.square(tf.cast(labels, outputs.dtype) - outputs))


class Own(keras.losses.Loss):
    def call(self, labels, outputs):
        return tf.reduce_sum(tf.abs(tf.cast(labels, outputs.dtype) - outputs), axis=-1)


class Called(keras.losses.Loss):
    """Overrides `__call__`, and so decides itself what the weights do."""

    def call(self, labels, outputs):
        return squared(labels, outputs)

    def __call__(self, y_true, y_pred, sample_weight=None):
        return tf.reduce_mean(self.call(y_true, y_pred))


def _dividing():
    return keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")


class Loss(NamedTuple):
    """A loss, which of a task's labels it takes, and how it is refused: None where it is right."""

    make: Callable[[], Any]
    labels: str
    refused: str | None = None
    only_keras_3: bool = False


K = keras.losses
LOSSES = {
    "SparseCategoricalCrossentropy(from_logits)": Loss(
        lambda: K.SparseCategoricalCrossentropy(from_logits=True), "classes"
    ),
    "'sparse_categorical_crossentropy'": Loss(lambda: "sparse_categorical_crossentropy", "classes"),
    "CategoricalCrossentropy(from_logits)": Loss(
        lambda: K.CategoricalCrossentropy(from_logits=True), "one_hot"
    ),
    "CategoricalCrossentropy(label_smoothing)": Loss(
        lambda: K.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), "one_hot"
    ),
    "'categorical_crossentropy'": Loss(lambda: "categorical_crossentropy", "one_hot"),
    "'kl_divergence'": Loss(lambda: "kl_divergence", "one_hot"),
    "CategoricalHinge": Loss(K.CategoricalHinge, "one_hot"),
    "BinaryCrossentropy(from_logits)": Loss(
        lambda: K.BinaryCrossentropy(from_logits=True), "one_hot"
    ),
    "'binary_crossentropy'": Loss(lambda: "binary_crossentropy", "one_hot"),
    "BinaryFocalCrossentropy": Loss(lambda: K.BinaryFocalCrossentropy(from_logits=True), "one_hot"),
    "'mse'": Loss(lambda: "mse", "one_hot"),
    "mean_absolute_error": Loss(lambda: K.mean_absolute_error, "one_hot"),
    "Huber": Loss(K.Huber, "one_hot"),
    "LogCosh": Loss(K.LogCosh, "one_hot"),
    "MeanSquaredLogarithmicError": Loss(K.MeanSquaredLogarithmicError, "one_hot"),
    "Poisson": Loss(K.Poisson, "one_hot"),
    "CosineSimilarity": Loss(K.CosineSimilarity, "one_hot"),
    "'squared_hinge'": Loss(lambda: "squared_hinge", "one_hot"),
    "MeanSquaredError(reduction='sum')": Loss(
        lambda: K.MeanSquaredError(reduction="sum"), "one_hot"
    ),
    "a function": Loss(lambda: squared, "one_hot"),
    "a Loss of one's own": Loss(Own, "one_hot"),
    "a list of one loss": Loss(lambda: ["mse"], "one_hot"),
    "one that couples examples": Loss(
        lambda: contrastive, "classes", "depends on the other examples"
    ),
    "one number for a batch": Loss(lambda: one_number, "one_hot", "for each example"),
    "a Loss with __call__": Loss(Called, "one_hot", "__call__"),
    "reduction='mean_with_sample_weight'": Loss(
        _dividing, "one_hot", "divides by the sum of the drawn weights", only_keras_3=True
    ),
}


# Nets ---------------------------------------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = L.Dense(6, "tanh"), L.Dense(3)

    def call(self, inputs, training=None):
        return self.head(self.hidden(inputs))


class Trains(Subclassed):
    def train_step(self, data):
        return super().train_step(data)


class Adds(Subclassed):
    def call(self, inputs, training=None):
        hidden = self.hidden(inputs)
        self.add_loss(tf.reduce_mean(tf.square(hidden)))
        return self.head(hidden)


def dense(outputs=3, activation=None, **options):
    return keras.Sequential(
        [keras.Input((5,)), L.Dense(6, "tanh", **options), L.Dense(outputs, activation)]
    )


def convolutional():
    layers = [L.Conv2D(3, 3, activation="relu"), L.MaxPool2D(), L.Flatten(), L.Dense(3)]
    return keras.Sequential([keras.Input((6, 6, 1)), *layers])


def of_text():
    layers = [L.Embedding(20, 4), L.GRU(5), L.Dense(3)]
    return keras.Sequential([keras.Input((4,), dtype="int32"), *layers])


def tagger():
    recurrent = L.GRU(5, return_sequences=True)
    return keras.Sequential([keras.Input((4, 5)), recurrent, L.Dense(3)])


def segmenter():
    layers = [L.Conv2D(3, 3, padding="same", activation="relu"), L.Conv2D(3, 1)]
    return keras.Sequential([keras.Input((6, 6, 1)), *layers])


def attention():
    inputs = keras.Input((4, 5))
    hidden = L.LayerNormalization()(L.MultiHeadAttention(2, 3)(inputs, inputs))
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling1D()(hidden)))


def named_inputs():
    inputs = {"first": keras.Input((5,), name="first"), "second": keras.Input((4,), name="second")}
    hidden = L.Concatenate()([L.Dense(4, "tanh")(inputs["first"]), inputs["second"]])
    return keras.Model(inputs, L.Dense(3)(hidden))


def two_outputs():
    inputs = keras.Input((5,))
    hidden = L.Dense(6, "tanh")(inputs)
    return keras.Model(inputs, [L.Dense(3, name="a")(hidden), L.Dense(3, name="b")(hidden)])


def named_outputs():
    inputs = keras.Input((5,))
    hidden = L.Dense(6, "tanh")(inputs)
    return keras.Model(
        inputs, {"a": L.Dense(3, name="a")(hidden), "b": L.Dense(3, name="b")(hidden)}
    )


def shared():
    inputs, again = keras.Input((5,)), L.Dense(5, "tanh")
    inner = keras.Sequential([L.Dense(5, "tanh"), L.Dense(5, "relu")])
    return keras.Model(inputs, L.Dense(3)(inner(again(again(inputs)))))


def frozen():
    net = dense()
    net.layers[0].trainable = False
    return net


def reduced():
    policy = keras.mixed_precision.global_policy if not KERAS_3 else keras.config.dtype_policy
    before = policy()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        return dense()
    finally:
        keras.mixed_precision.set_global_policy(before)


X = _RNG.normal(size=(N, 5)).astype("float32")
CLASSES = _RNG.integers(0, 3, N)
IMAGES = _RNG.random((N, 6, 6, 1)).astype("float32")
TEXTS = _RNG.integers(1, 20, (N, 4)).astype("int32")
SEQUENCES = _RNG.normal(size=(N, 4, 5)).astype("float32")
TAGS = _RNG.integers(0, 3, (N, 4))
PIXELS = _RNG.integers(0, 3, (N, 6, 6))


def one_hot(classes):
    return np.eye(3, dtype="float32")[classes]


class Task(NamedTuple):
    """A net and its data.

    Attributes:
        net: makes one. x: inputs. classes: labels as whole numbers; one-hot ones are made of them.
        losses: names of `LOSSES`, or a loss by output. refused: how any loss is, None where right.
        inner: axes of a loss beside the examples', whose elements can be weighted.
        outputs: names of several outputs; as a dict where `by_name`.
    """

    net: Callable[[], keras.Model]
    x: Any
    classes: np.ndarray
    losses: tuple[str, ...]
    refused: str | None = None
    inner: tuple[int, ...] = ()
    outputs: tuple[str, ...] = ()
    by_name: bool = False


_LOGITS = (
    "SparseCategoricalCrossentropy(from_logits)",
    "CategoricalCrossentropy(from_logits)",
    "CategoricalCrossentropy(label_smoothing)",
    "BinaryCrossentropy(from_logits)",
    "BinaryFocalCrossentropy",
    "'mse'",
    "Huber",
)
_PROBABILITIES = (
    "'sparse_categorical_crossentropy'",
    "'categorical_crossentropy'",
    "'kl_divergence'",
    "CategoricalHinge",
    "'binary_crossentropy'",
    "Poisson",
    "MeanSquaredLogarithmicError",
)
_NUMBERS = (
    "'mse'",
    "mean_absolute_error",
    "Huber",
    "LogCosh",
    "CosineSimilarity",
    "'squared_hinge'",
    "MeanSquaredError(reduction='sum')",
    "a function",
    "a Loss of one's own",
    "a list of one loss",
)
_REFUSED = tuple(name for name, loss in LOSSES.items() if loss.refused)
_FEW = ("SparseCategoricalCrossentropy(from_logits)", "'mse'", "a function")
_SEVERAL = (*_FEW, "CategoricalCrossentropy(from_logits)", "Huber")

TASKS = {
    "logits": Task(dense, X, CLASSES, (*_LOGITS, *_NUMBERS[1:], *_REFUSED)),
    "softmax": Task(lambda: dense(3, "softmax"), X, CLASSES, _PROBABILITIES),
    "sigmoid": Task(lambda: dense(3, "sigmoid"), X, CLASSES, _PROBABILITIES[2:]),
    "convolutional": Task(convolutional, IMAGES, CLASSES, _SEVERAL),
    "text, GRU": Task(of_text, TEXTS, CLASSES, _SEVERAL),
    "attention": Task(attention, SEQUENCES, CLASSES, _SEVERAL),
    "subclassed": Task(Subclassed, X, CLASSES, _SEVERAL),
    "named inputs": Task(
        named_inputs, {"first": X, "second": SEQUENCES[:, 0, :4]}, CLASSES, _SEVERAL
    ),
    "shared and nested layers": Task(shared, X, CLASSES, _SEVERAL),
    "a frozen layer": Task(frozen, X, CLASSES, _SEVERAL),
    "regularized weights": Task(lambda: dense(kernel_regularizer="l2"), X, CLASSES, _SEVERAL),
    "mixed precision": Task(reduced, X, CLASSES, _SEVERAL),
    "tags of sequences": Task(tagger, SEQUENCES, TAGS, _SEVERAL, inner=(4,)),
    "classes of pixels": Task(segmenter, IMAGES, PIXELS, _SEVERAL, inner=(6, 6)),
    "two outputs": Task(two_outputs, X, CLASSES, _SEVERAL, outputs=("a", "b")),
    "outputs by name": Task(named_outputs, X, CLASSES, _SEVERAL, outputs=("a", "b"), by_name=True),
    "a train_step of its own": Task(Trains, X, CLASSES, _FEW, "train_step of its own"),
    "add_loss of the data": Task(Adds, X, CLASSES, _FEW, "adds a loss of the data"),
}


# Cells --------------------------------------------------------------------------------------

M = keras.metrics
METRICS = {
    "classes": {
        "SparseCategoricalAccuracy": M.SparseCategoricalAccuracy,
        "'accuracy'": lambda name: "accuracy",
        "SparseTopKCategoricalAccuracy": lambda name: M.SparseTopKCategoricalAccuracy(2, name),
    },
    "one_hot": {
        "CategoricalAccuracy": M.CategoricalAccuracy,
        "MeanSquaredError": M.MeanSquaredError,
        "MeanAbsoluteError": M.MeanAbsoluteError,
        "BinaryAccuracy": M.BinaryAccuracy,
        "CosineSimilarity": M.CosineSimilarity,
        "RootMeanSquaredError": M.RootMeanSquaredError,
        "'mae'": lambda name: "mae",
    },
}
ROUTES = ("from arrays, by a memory", "from a stream", "from a stream, scored in the step")


class Cell(NamedTuple):
    """What is trained.

    Attributes:
        task, loss, metric: names. weights: "none", "[n]", "[n, 1]", "elements" or "by output".
        route: of `ROUTES`. refused: what the error says, None where it is right.
    """

    task: str
    loss: str
    metric: str
    weights: str
    route: str
    refused: str | None

    @property
    def name(self) -> str:
        return f"{self.task}; {self.loss}; {self.metric}; {self.weights}; {self.route}"


def forms(task: Task) -> list[str]:
    """Of sample weights."""
    more = ["elements"] if task.inner else ["by output"] if task.outputs else []
    return ["none", "[n]", "[n, 1]", *more]


def cells() -> list[Cell]:
    """All of them; routes and metrics in turns."""
    found: list[Cell] = []
    pairs = [(task, loss) for task, of in TASKS.items() for loss in of.losses]
    for number, (task, loss) in enumerate(pairs):
        kinds = list(METRICS[LOSSES[loss].labels])
        for turn, weights in enumerate(forms(TASKS[task])):
            route = ROUTES[(number + turn) % len(ROUTES)]
            refused = TASKS[task].refused or LOSSES[loss].refused
            if weights in ("elements", "by output") and route == ROUTES[0]:
                refused = refused or "one number for each"
            metric = kinds[(number + turn) % len(kinds)]
            if task == "mixed precision" and metric.startswith("SparseTopK"):
                metric = kinds[0]  # Keras's own takes no bfloat16.
            found.append(Cell(task, loss, metric, weights, route, refused))
    return found


# The page -----------------------------------------------------------------------------------


def page() -> str:
    """docs/what_works.md."""
    all_of_them = cells()
    right = sum(cell.refused is None for cell in all_of_them)
    metrics = ", ".join(sorted({f"`{cell.metric}`" for cell in all_of_them}))
    texts = [
        f"""Nets, losses, metrics, sample weights and forms of data: {len(all_of_them)} cells, each
        trained for one step on a drawn batch (`make test-slow`, a part of them in `make test`).
        {right} make the step that Keras makes of the same examples with the weights given to it,
        and log its metrics, up to rounding; the others are refused before the first step. Written
        by `python -m tests.conformance.table`.""",
        """Sample weights: none, `[n]`, `[n, 1]`; one for each time step or pixel, or of each
        output, where there are several. (These from a stream: a memory draws examples by one
        number for each, and refuses others by name.) Data: arrays that a memory draws from, and
        streams whose pre-samples are scored in the pipeline or in the step. A masked loss, or one
        with `ignore_class`, is Σ w m ℓ / Σ w m of a drawn batch, the estimate of what Keras has
        for all data, where Keras's own divisor leaves the weights out.""",
        f"Metrics: {metrics}.",
    ]
    first, second, third = (textwrap.fill(" ".join(text.split()), 110) for text in texts)
    table = [
        "| net | losses that are right | refused, and what the error says |",
        "|---|---|---|",
        *_rows(),
    ]
    return "\n\n".join(["# What works", first, second, "\n".join(table), third]) + "\n"


def _rows() -> Iterator[str]:
    for name, task in TASKS.items():
        right, refused = [], []
        for loss in task.losses:
            why = task.refused or LOSSES[loss].refused
            right += [f"`{loss}`"] if why is None else []
            refused += [] if why is None else [f"`{loss}` (“… {why} …”)"]
        if task.refused:
            refused = [f"all (“… {task.refused} …”)"]
        yield f"| {name} | {', '.join(right)} | {', '.join(refused)} |"


if __name__ == "__main__":
    _PAGE.write_text(page())
    print(f"{_PAGE.name}: {len(cells())} cells")
