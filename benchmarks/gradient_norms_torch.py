"""The same ratios for Opacus in PyTorch, where it is installed; see gradient_norms.py.

    python -m venv torch && torch/bin/pip install torch opacus absl-py
    torch/bin/python -m benchmarks.gradient_norms_torch

Time of per-example gradient norms by Opacus's ghost clipping, which is its
`GradSampleModuleFastGradientClipping`, over a forward and backward pass of the same batch,
interleaved, in one process. Nets and sizes as in `benchmarks/nets.py`; recurrent and attention
layers are Opacus's own. It takes no normalization by batches, and so no residual networks.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import time

from absl import app, flags

from benchmarks import command

try:
    import opacus
    import torch
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.layers import DPGRU, DPLSTM, DPMultiheadAttention
    from torch import nn
except ImportError as error:
    raise SystemExit(f"needs PyTorch and Opacus; {error}. pip install torch opacus") from None

FLAGS = flags.FLAGS
flags.DEFINE_integer("batch_size", 128, "B, examples in a batch.")
flags.DEFINE_integer("rounds", 5, "Rounds; each times both ways once.")
flags.DEFINE_float("seconds", 1.0, "Least time of one timing; one call at least.")
flags.DEFINE_string("out", "runs/benchmarks/gradient_norms_torch.json", "Where the result goes.")

VOCABULARY = 5000


def mlp() -> nn.Module:
    widths = (784, 2048, 2048, 2048, 2048)
    hidden = [nn.Sequential(nn.Linear(n, m), nn.ReLU()) for n, m in zip(widths, widths[1:])]
    return nn.Sequential(*hidden, nn.Linear(2048, 10))


def small_cnn() -> nn.Module:
    convolutions = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3)]
    top = [nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(800, 64), nn.ReLU()]
    return nn.Sequential(*convolutions, *top, nn.Linear(64, 10))


class Recurrent(nn.Module):
    """One recurrent layer and a classifier of its last output."""

    def __init__(self, kind) -> None:
        super().__init__()
        self.recurrent, self.last = kind(16, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, inputs):
        """Logits."""
        return self.last(self.recurrent(inputs)[0][:, -1])


class Block(nn.Module):
    """An encoder layer: attention, then two dense layers, each with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = DPMultiheadAttention(128, 4, batch_first=True)
        self.fed = nn.Sequential(nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 128))
        self.first, self.second = nn.LayerNorm(128), nn.LayerNorm(128)

    def forward(self, hidden):
        """[B, T, 128]"""
        attended = self.attention(hidden, hidden, hidden, need_weights=False)[0]
        hidden = self.first(hidden + attended)
        return self.second(hidden + self.fed(hidden))


class Transformer(nn.Module):
    """Four encoder layers on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 128)
        self.blocks, self.last = nn.Sequential(*[Block() for _ in range(4)]), nn.Linear(128, 10)

    def forward(self, tokens):
        """Logits."""
        return self.last(self.blocks(self.table(tokens)).mean(dim=1))


NETS = {
    "mlp": (mlp, (784,)),
    "small_cnn": (small_cnn, (1, 28, 28)),
    "lstm": (lambda: Recurrent(DPLSTM), (100, 16)),
    "gru": (lambda: Recurrent(DPGRU), (100, 16)),
    "transformer": (Transformer, (64,)),
}


def ratio(name: str) -> list[float]:
    """Norms over forward and backward pass, one for each round."""
    make, shape = NETS[name]
    torch.manual_seed(0)
    size = (FLAGS.batch_size, *shape)
    x = torch.randint(VOCABULARY, size) if name == "transformer" else torch.randn(size)
    y = torch.randint(10, (FLAGS.batch_size,))
    loss = nn.CrossEntropyLoss()
    plain, ghost = make(), GradSampleModuleFastGradientClipping(make(), use_ghost_clipping=True)

    def backward() -> None:
        plain.zero_grad()
        loss(plain(x), y).backward()

    def norms():
        ghost.zero_grad()
        loss(ghost(x), y).backward()
        return ghost.get_norm_sample()

    ratios = []
    for number in range(FLAGS.rounds + 1):
        ways = {"backward": backward, "norms": norms}
        times = {way: seconds(function) for way, function in ways.items()}
        if number:
            ratios.append(times["norms"] / times["backward"])
            print(f"{name} round {number}/{FLAGS.rounds}: {ratios[-1]:.2f}", flush=True)
    return ratios


def seconds(function) -> float:
    """Seconds per call of a function."""
    start, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start < FLAGS.seconds:
        function()
        calls += 1
    return (time.perf_counter() - start) / calls


def main(_) -> None:
    command.shorten(batch_size=2, rounds=1, seconds=0.0)
    versions = {"torch": torch.__version__, "opacus": opacus.__version__}
    result: dict = {"versions": versions, "batch_size": FLAGS.batch_size}
    for name in NETS:
        try:
            ratios = ratio(name)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            result[name] = f"fails: {error}"[:200]
            continue
        # Quartiles are of two numbers at least.
        several = ratios if len(ratios) > 1 else 2 * ratios
        low, median, high = statistics.quantiles(several, n=4, method="inclusive")
        result[name] = {"median": round(median, 3), "quartiles": [round(low, 3), round(high, 3)]}
        print(name, result[name])
    path = pathlib.Path(FLAGS.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    app.run(main)
