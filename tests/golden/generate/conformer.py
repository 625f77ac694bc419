# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "transformers==5.23.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/conformer.safetensors and conformer_wav2vec2.safetensors: PyTorch's numbers for Conformers.

    python tests/golden/generate/conformer.py

Weights and inputs are not in the files: both sides draw them with `uniform` of resnet18.py. The first file holds cases of
one layer in float64: plain, with layer normalisation in the convolution, with lengths, and as the released code of VAVL
has it. The second holds the encoder of transformers' Wav2Vec2-Conformer in float64 and float32, its configuration
(TOML, without nulls) and the names of a whole checkpoint. Each case: features in training (no dropout), the gradient of
every parameter and of the input for the loss `sum(features * uniform("loss"))`, running statistics, and features in
evaluation afterwards. crates/mm-encoders/tests/it/conformer_golden.rs reads both.
"""

import math
import runpy
import sys
from pathlib import Path

# The library looks for an optional package `kernels`, and would find and run kernels.py beside this script.
sys.path.pop(0)

import torch
import torch.nn as nn
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC

uniform = runpy.run_path(str(Path(__file__).with_name("resnet18.py")))["uniform"]

BATCH, LENGTH, INPUT, DIM, HEADS, KERNEL = 3, 7, 5, 8, 2, 3
LENGTHS = [7, 4, 6]


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
    def __init__(self, norm: str) -> None:
        super().__init__(2 * DIM, DIM)
        self.depthwise = nn.Conv1d(DIM, DIM, KERNEL, padding=KERNEL // 2, groups=DIM, bias=False)
        if norm == "batch":
            self.batch_norm = nn.BatchNorm1d(DIM)
        else:
            self.layer_norm = nn.LayerNorm(DIM)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        y = F.glu(self.expand(self.norm(x)), 2) * keep[..., None]
        y = self.depthwise(y.transpose(1, 2)).transpose(1, 2)
        if hasattr(self, "layer_norm"):
            normal = self.layer_norm(y)
        else:
            # The rows of real places only, in a list: statistics know of no others.
            normal = torch.zeros_like(y)
            normal[keep] = self.batch_norm(y[keep])
        return self.project(F.silu(normal))


class Attention(nn.Module):
    def __init__(self, released: bool) -> None:
        super().__init__()
        self.released = released
        self.norm = nn.LayerNorm(DIM)
        self.query, self.key = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.value, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.position = nn.Linear(DIM, DIM, bias=False)
        self.content_bias = nn.Parameter(torch.empty(HEADS, DIM // HEADS))
        self.position_bias = nn.Parameter(torch.empty(HEADS, DIM // HEADS))

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        split = lambda t: t.unflatten(-1, (HEADS, DIM // HEADS))
        x = self.norm(x)
        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        content = torch.einsum("bihd,bjhd->bhij", q + self.content_bias, k)
        length = x.shape[1]
        rates = 10000.0 ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
        angles = lambda t: t[..., None] * rates
        sinusoids = lambda t: torch.stack([angles(t).sin(), angles(t).cos()], -1).flatten(-2).to(x.dtype)
        if self.released:
            table = split(self.position(sinusoids(torch.arange(length))))
            score = lambda i, t: torch.einsum("bhd,hd->bh", q[:, i] + self.position_bias, table[t])

            def position_of(i: int, j: int) -> torch.Tensor:
                if j <= i:
                    return score(i, length - 1 - (i - j))
                return score(i + 1, j - i - 2) if j > i + 1 else 0.0 * score(i, 0)

            rows = [torch.stack([position_of(i, j) for j in range(length)], -1) for i in range(length)]
            position, width = torch.stack(rows, -2), DIM
        else:
            # One vector per offset i - j, by definition: no shifting.
            offset = torch.arange(length)[:, None] - torch.arange(length)[None, :]
            table = split(self.position(sinusoids(offset)))
            position = torch.einsum("bihd,ijhd->bhij", q + self.position_bias, table)
            width = DIM // HEADS
        scores = (content + position) / math.sqrt(width)
        weights = scores.masked_fill(~keep[:, None, None, :], -math.inf).softmax(-1)
        return self.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(-2))


class Layer(nn.Module):
    def __init__(self, norm: str, released: bool) -> None:
        super().__init__()
        self.ff1, self.ff2 = FeedForward(), FeedForward()
        self.attention, self.conv = Attention(released), Convolution(norm)
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        x = x + 0.5 * self.ff1(x)
        x = x + self.attention(x, keep)
        x = x + self.conv(x, keep)
        return self.norm(x + 0.5 * self.ff2(x))


class Net(nn.Module):
    def __init__(self, norm: str, released: bool, lengths: list[int]) -> None:
        super().__init__()
        self.input = nn.Linear(INPUT, DIM)
        self.layers = nn.ModuleList([Layer(norm, released)])
        self.released, self.keep = released, torch.arange(LENGTH) < torch.tensor(lengths)[:, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The released code hands (time, batch, width) to layers that expect the batch first.
        turn = lambda t: t.transpose(0, 1) if self.released else t
        x = self.input(turn(x))
        for layer in self.layers:
            x = layer(x, turn(self.keep))
        x = turn(x) * self.keep[..., None]
        return x.sum(1) / self.keep.sum(1, keepdim=True)


def own(case: str, norm: str, released: bool, lengths: list[int]) -> dict[str, torch.Tensor]:
    net = Net(norm, released, lengths).train()
    for name, parameter in net.named_parameters():
        parameter.data = 0.6 * uniform(name, tuple(parameter.shape))
    x = uniform("x", (BATCH, LENGTH, INPUT)).requires_grad_()
    y = net(x)
    (y * uniform("loss", (BATCH, DIM))).sum().backward()
    out = {"train": y.detach(), "gradient.x": x.grad}
    for name, parameter in net.named_parameters():
        # A pointwise convolution is written as a linear map here, and has one tap there.
        tap = name.endswith(("conv.expand.weight", "conv.project.weight"))
        out[f"gradient.{name}"] = parameter.grad[..., None] if tap else parameter.grad
    out |= {name: buffer.clone() for name, buffer in net.named_buffers() if "running" in name}
    out["eval"] = net.eval()(x).detach()
    return {f"{case}.{name}": value.contiguous() for name, value in out.items()}


def start(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value with which a tensor of a checkpoint starts."""
    u = uniform(name, shape)
    if len(shape) > 1:
        return 0.5 * u
    return 1.0 + 0.2 * u if name.endswith(("weight", "running_var")) else 0.2 * u


def wav2vec2(dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    config = Wav2Vec2ConformerConfig(
        vocab_size=7,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        hidden_act="swish",
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        conformer_conv_dropout=0.0,
        layerdrop=0.0,
        conv_dim=(4, 4),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        conv_depthwise_kernel_size=5,
        codevector_dim=4,
        proj_codevector_dim=4,
        max_source_positions=16,
        attn_implementation="eager",
    )
    model = Wav2Vec2ConformerForCTC(config)
    names = "\n".join(model.state_dict())
    encoder = model.wav2vec2_conformer.encoder.to(dtype)
    if dtype == torch.float64:
        # The library takes the sine of angles in float32, whatever the model's type.
        rates = 10000.0 ** (-torch.arange(0, 12, 2, dtype=dtype) / 12)
        angle = torch.arange(15, -16, -1, dtype=dtype)[:, None] * rates
        encoder.embed_positions.pe = torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[None]
    prefix = "wav2vec2_conformer.encoder."
    state = encoder.state_dict()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            value.copy_(start(prefix + name, tuple(value.shape)))
    x = uniform("x", (3, 9, 12)).to(dtype).requires_grad_()
    y = encoder.train()(x).last_hidden_state
    (y * uniform("loss", (3, 9, 12)).to(dtype)).sum().backward()
    out = {"train": y.detach(), "gradient.x": x.grad}
    # The positional convolution has parameters and is never called.
    out |= {f"gradient.{prefix}{n}": p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    out |= {prefix + name: buffer.clone() for name, buffer in encoder.named_buffers() if "running" in name}
    out["eval"] = encoder.eval()(x).last_hidden_state.detach()
    # Clip by clip: what a padded batch must give, too.
    for b, length in enumerate(CLIPS):
        out[f"clip.{b}"] = encoder(x[b : b + 1, :length]).last_hidden_state.mean(1).detach()
    settings = config.to_dict() | {"model_type": "wav2vec2-conformer"}
    toml = "\n".join(
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value).replace('(', '[').replace(')', ']')}"
        for key, value in settings.items()
        if isinstance(value, (bool, int, float, str, tuple, list))
    )
    return {name: value.contiguous() for name, value in out.items()}, {"names": names, "config": toml}


CLIPS = [9, 4, 7]


def save(name: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    file = Path(__file__).parents[1] / f"{name}.safetensors"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    save_file(tensors, file, metadata={"source": "generate/conformer.py"} | versions | metadata)
    file.chmod(0o644)


if __name__ == "__main__":
    torch.set_num_threads(1)
    full = [LENGTH] * BATCH
    tensors, metadata = {}, {}
    for prefix, dtype in [("f64", torch.float64), ("f32", torch.float32)]:
        values, metadata = wav2vec2(dtype)
        tensors |= {f"{prefix}.{name}": value for name, value in values.items()}
    save("conformer_wav2vec2", tensors, metadata)
    torch.set_default_dtype(torch.float64)
    cases = own("plain", "batch", False, full) | own("layer_norm", "layer", False, full)
    cases |= own("lengths", "batch", False, LENGTHS) | own("released", "batch", True, full)
    save("conformer", cases, {})
