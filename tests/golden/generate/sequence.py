# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/sequence.safetensors: PyTorch's LSTM and transformer over sequences, in float64 and float32.

    python tests/golden/generate/sequence.py

Weights and inputs are not in the file: both sides draw them with `uniform` of resnet18.py. Each case `<name>.<type>.`
holds the mean over the real places, without dropout, and the gradient of every parameter and of the input for the loss
`sum(mean * uniform("loss"))`. Sequences of different lengths go through an LSTM packed, through a transformer with a
mask. crates/mm-encoders/tests/it/sequence_golden.rs reads it.
"""

import warnings
from pathlib import Path

import torch
import torch.nn as nn
from resnet18 import uniform
from safetensors.torch import save_file
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

BATCH, PLACES, INPUT, DIM, HEADS, INSIDE = 3, 6, 5, 8, 2, 12
LENGTHS = {"whole": [6, 6, 6], "lengths": [6, 2, 5]}


class Lstm(nn.LSTM):
    def __init__(self, layers: int, bidirectional: bool) -> None:
        hidden = DIM // 2 if bidirectional else DIM
        super().__init__(INPUT, hidden, layers, batch_first=True, bidirectional=bidirectional)

    def forward(self, x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(super().forward(packed)[0], batch_first=True, total_length=PLACES)[0]


class Transformer(nn.TransformerEncoder):
    def __init__(self) -> None:
        options = {"activation": "gelu", "batch_first": True, "norm_first": True, "dropout": 0.0}
        layer = nn.TransformerEncoderLayer(DIM, HEADS, INSIDE, **options)
        super().__init__(layer, 2, norm=nn.LayerNorm(DIM), enable_nested_tensor=False)
        self.input = nn.Linear(INPUT, DIM)

    def forward(self, x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        rates = 10000.0 ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
        angle = torch.arange(PLACES)[:, None] * rates
        positions = torch.stack([angle.sin(), angle.cos()], -1).flatten(-2).to(x.dtype)
        padding = torch.arange(PLACES) >= torch.tensor(lengths)[:, None]
        return super().forward(self.input(x) + positions, src_key_padding_mask=padding)


def run(net: nn.Module, lengths: list[int], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    net = net.to(dtype).train()
    for name, parameter in net.named_parameters():
        u = 0.6 * uniform(name, tuple(parameter.shape))
        parameter.data = (u + 1.0 if "norm" in name and name.endswith("weight") else u).to(dtype)
        parameter.grad = None
    x = uniform("x", (BATCH, PLACES, INPUT)).to(dtype).requires_grad_()
    keep = (torch.arange(PLACES) < torch.tensor(lengths)[:, None])[..., None].to(dtype)
    y = (net(x, lengths) * keep).sum(1) / keep.sum(1)
    (y * uniform("loss", (BATCH, DIM)).to(dtype)).sum().backward()
    out = {"mean": y.detach(), "gradient.x": x.grad}
    return out | {f"gradient.{name}": parameter.grad for name, parameter in net.named_parameters()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    nets = {"lstm": Lstm(1, True), "lstm2": Lstm(2, True), "forwards": Lstm(1, False), "transformer": Transformer()}
    tensors = {}
    for name, net in nets.items():
        for case, lengths in LENGTHS.items():
            for prefix, dtype in [("f64", torch.float64), ("f32", torch.float32)]:
                values = run(net, lengths, dtype)
                tensors |= {f"{name}.{case}.{prefix}.{key}": v.clone().contiguous() for key, v in values.items()}
    file = Path(__file__).parents[1] / "sequence.safetensors"
    save_file(tensors, file, metadata={"source": "own, generate/sequence.py", "torch": torch.__version__})
    file.chmod(0o644)
