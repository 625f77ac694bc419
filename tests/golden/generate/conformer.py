# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/conformer.safetensors: PyTorch's numbers for a Conformer of one layer, in float64.

    python tests/golden/generate/conformer.py

Weights and inputs are not in the file: both sides draw them with `uniform` of resnet18.py. It holds the features in
training (no dropout), the gradient of every parameter and of the input for the loss `sum(features * uniform("loss"))`,
and the features in evaluation afterwards. crates/mm-encoders/tests/it/conformer_golden.rs reads it.
"""

import math
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from resnet18 import uniform
from safetensors.torch import save_file

BATCH, LENGTH, INPUT, DIM, HEADS, KERNEL = 3, 7, 5, 8, 2, 3


class Norm(nn.Module):
    """Layer normalisation, a linear map to a wider inside, one back: the parts that are named alike everywhere."""

    def __init__(self, inside: int, back: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.expand = nn.Linear(DIM, inside)
        self.project = nn.Linear(back, DIM)


class FeedForward(Norm):
    def __init__(self) -> None:
        super().__init__(4 * DIM, 4 * DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(F.silu(self.expand(self.norm(x))))


class Convolution(Norm):
    def __init__(self) -> None:
        super().__init__(2 * DIM, DIM)
        self.depthwise = nn.Conv1d(DIM, DIM, KERNEL, padding=KERNEL // 2, groups=DIM, bias=False)
        self.batch_norm = nn.BatchNorm1d(DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(F.glu(self.expand(self.norm(x)), 2).transpose(1, 2))
        return self.project(F.silu(self.batch_norm(y)).transpose(1, 2))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.query, self.key = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.value, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.position = nn.Linear(DIM, DIM, bias=False)
        self.content_bias = nn.Parameter(torch.empty(HEADS, DIM // HEADS))
        self.position_bias = nn.Parameter(torch.empty(HEADS, DIM // HEADS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = lambda t: t.unflatten(-1, (HEADS, DIM // HEADS))
        x = self.norm(x)
        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        content = torch.einsum("bihd,bjhd->bhij", q + self.content_bias, k)
        # One vector per offset i - j, by definition: no shifting.
        offset = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)[None, :]
        rates = 10000.0 ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
        angle = offset[..., None] * rates
        positions = split(self.position(torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)))
        position = torch.einsum("bihd,ijhd->bhij", q + self.position_bias, positions)
        weights = ((content + position) / math.sqrt(DIM // HEADS)).softmax(-1)
        return self.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(-2))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ff1, self.ff2 = FeedForward(), FeedForward()
        self.attention, self.conv = Attention(), Convolution()
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 0.5 * self.ff1(x)
        x = x + self.attention(x)
        x = x + self.conv(x)
        return self.norm(x + 0.5 * self.ff2(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(INPUT, DIM)
        self.layers = nn.ModuleList([Layer()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.input(x)
        for layer in self.layers:
            x = layer(x)
        return x.mean(1)


torch.set_default_dtype(torch.float64)
net = Net().train()
for name, parameter in net.named_parameters():
    parameter.data = 0.6 * uniform(name, tuple(parameter.shape))
x = uniform("x", (BATCH, LENGTH, INPUT)).requires_grad_()
y = net(x)
(y * uniform("loss", (BATCH, DIM))).sum().backward()
out = {"train": y.detach(), "gradient.x": x.grad}
out |= {f"gradient.{name}": parameter.grad.contiguous() for name, parameter in net.named_parameters()}
out["eval"] = net.eval()(x).detach()
metadata = {"source": "own, generate/conformer.py", "torch": torch.__version__}
file = Path(__file__).parents[1] / "conformer.safetensors"
save_file(out, file, metadata=metadata)
file.chmod(0o644)
