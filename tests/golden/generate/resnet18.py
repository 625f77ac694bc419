# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/resnet18.safetensors: how a ResNet-18 trains in PyTorch for twenty steps.

    python tests/golden/generate/resnet18.py

Weights and images are not in the file: both sides draw them with `uniform` below, whose every bit is fixed. The file
holds, for `<case>.f64.` and `<case>.f32.`, the loss of each step, the norm of every parameter's gradient in the first
step, the norms of all parameters and running statistics after the last, and logits of the first batch in evaluation.
crates/mm-encoders/tests/it/resnet18_golden.rs reads it and repeats the settings written here.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file

# In f32 a ReLU or a maximum now and then falls to the other side than in f64, and every step widens the gap: with a
# rate of 0.001 PyTorch differs from itself by 1e-3 of the loss after twenty steps. With this one it is 4e-4 at most,
# of six starts moved by 1e-7.
LEARNING_RATE = 3e-5
STEPS, CLASSES = 20, 6
CASES = {"image": (4, 3, 48, 40), "spectrogram": (4, 1, 65, 47)}
MASK = (1 << 64) - 1


def uniform(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers in [-1, 1): SplitMix64 from the FNV-1a hash of the name; 53 bits of each word."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(11)).astype(np.float64) / 2.0**53
    return torch.from_numpy(2.0 * u - 1.0).reshape(shape)


def start(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value with which a parameter starts."""
    u = uniform(name, shape)
    if len(shape) == 4:
        return u * (6.0 / (shape[0] * shape[2] * shape[3])) ** 0.5
    if name.startswith("head"):
        return u * 0.05
    return 1.0 + 0.2 * u if name.endswith("weight") else 0.1 * u


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + shortcut)


class Net(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for s, outputs in enumerate([64, 128, 256, 512]):
            stage = [Block(inputs, outputs, 1 if s == 0 else 2), Block(outputs, outputs, 1)]
            setattr(self, f"layer{s + 1}", nn.Sequential(*stage))
            inputs = outputs
        self.head = nn.Linear(512, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.head(x.mean((2, 3)))


def train(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    net = Net(shape[1]).to(dtype)
    for name, parameter in net.named_parameters():
        parameter.data = start(name, tuple(parameter.shape)).to(dtype)
    batches = [uniform(f"batch.{b}", shape).to(dtype) for b in range(2)]
    labels = [(torch.arange(shape[0]) + b) % CLASSES for b in range(2)]
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    norms = lambda tensors: torch.stack([t.detach().double().norm() for t in tensors])
    out, losses = {}, []
    net.train()
    for step in range(STEPS):
        loss = F.cross_entropy(net(batches[step % 2]), labels[step % 2])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            out["gradients"] = norms(p.grad for p in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    out["losses"] = torch.tensor(losses, dtype=torch.float64)
    out["parameters"] = norms(net.parameters())
    out["statistics"] = norms(b for name, b in net.named_buffers() if not name.endswith("tracked"))
    net.eval()
    out["logits"] = net(batches[0]).detach().double()
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    tensors = {}
    for case, shape in CASES.items():
        tensors[f"{case}.shape"] = torch.tensor(shape)
        for prefix, dtype in [("f64", torch.float64), ("f32", torch.float32)]:
            for name, value in train(shape, dtype).items():
                tensors[f"{case}.{prefix}.{name}"] = value.contiguous()
    metadata = {"source": "own, generate/resnet18.py", "torch": torch.__version__}
    file = Path(__file__).parents[1] / "resnet18.safetensors"
    save_file(tensors, file, metadata=metadata)
    file.chmod(0o644)
