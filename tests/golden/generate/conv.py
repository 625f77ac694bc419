# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/conv.safetensors: PyTorch's numbers for convolutions and what goes with them, in float64.

    python tests/golden/generate/conv.py

Values and gradients of `sum(y * r)` with a random `r`, named `<case>.<tensor>`; a gradient is `<case>.d<input>`.
The settings of a convolution or pool are stored with it as `<case>.config`, integers in the order that `conv2d` and
`pool` below write. crates/mm-kernels/tests/it/golden_conv.rs reads the file.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(20260714)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out: dict[str, torch.Tensor] = {}


def put(name: str, value: torch.Tensor) -> None:
    out[name] = value.detach().clone().contiguous()


def record(case: str, function, **inputs: torch.Tensor) -> torch.Tensor:
    """Stores the inputs, y = function(inputs), an upstream gradient r and the gradients of the inputs.

    What goes in are numbers of single precision, and stored as such: half the size, and the same numbers for a test in
    single precision.
    """
    leaves = {name: value.float().double().requires_grad_() for name, value in inputs.items()}
    y = function(**leaves)
    r = torch.randn_like(y).float()
    (y * r).sum().backward()
    for name, leaf in leaves.items():
        put(f"{case}.{name}", leaf.float())
        put(f"{case}.d{name}", leaf.grad)
    put(f"{case}.y", y)
    put(f"{case}.r", r)
    return y


def pair(value) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def conv2d(case, x, weight, stride=1, padding=0, dilation=1, groups=1, bias=False):
    """Shapes: x (B, C, H, W), weight (O, C / groups, KH, KW)."""
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    put(f"conv2d.{case}.config", torch.tensor([*stride, *padding, *dilation, groups]))
    inputs = {"input": torch.randn(x), "weight": torch.randn(weight)}
    if bias:
        inputs["bias"] = torch.randn(weight[0])
    record(
        f"conv2d.{case}",
        lambda input, weight, bias=None: F.conv2d(input, weight, bias, stride, padding, dilation, groups),
        **inputs,
    )


# 3x3: the stride remainders of height and width differ, channels fill vectors and leave some over.
conv2d("3x3", (2, 3, 7, 8), (16, 3, 3, 3), padding=1)
conv2d("3x3_wide", (2, 16, 5, 6), (33, 16, 3, 3), padding=1, bias=True)
conv2d("3x3_40_20", (1, 40, 4, 5), (20, 40, 3, 3), padding=1)
conv2d("3x3_no_padding", (2, 5, 4, 7), (6, 5, 3, 3), bias=True)
conv2d("3x3_stride2_remainders", (2, 20, 7, 8), (16, 20, 3, 3), stride=2, padding=1)
conv2d("3x3_stride2_remainders_turned", (2, 4, 8, 7), (17, 4, 3, 3), stride=2, padding=1, bias=True)
conv2d("3x3_stride3", (1, 3, 10, 11), (5, 3, 3, 3), stride=3)
conv2d("3x3_long_row", (1, 3, 3, 37), (16, 3, 3, 3), padding=1)
# 1x1, the shortcut and the pointwise convolution.
conv2d("1x1", (2, 20, 3, 5), (33, 20, 1, 1), bias=True)
conv2d("1x1_64", (1, 33, 4, 3), (64, 33, 1, 1))
conv2d("1x1_stride2", (2, 16, 5, 6), (33, 16, 1, 1), stride=2)
conv2d("1x1_padding", (1, 3, 3, 4), (4, 3, 1, 1), stride=2, padding=1)
# 7x7, the first layer of a residual network, over spectrograms and images.
conv2d("7x7_1", (2, 1, 13, 12), (16, 1, 7, 7), stride=2, padding=3)
conv2d("7x7_3", (1, 3, 14, 11), (33, 3, 7, 7), stride=2, padding=3, bias=True)
# Groups.
conv2d("groups2", (2, 6, 5, 4), (10, 3, 3, 3), padding=1, groups=2, bias=True)
conv2d("groups4", (1, 20, 5, 6), (64, 5, 3, 3), stride=2, padding=1, groups=4)
conv2d("depthwise", (2, 20, 6, 5), (20, 1, 3, 3), padding=1, groups=20, bias=True)
conv2d("depthwise_twice", (1, 9, 5, 7), (18, 1, 3, 3), stride=2, padding=1, groups=9)
# Dilation, sizes that differ by axis, kernels larger than the input.
conv2d("dilated", (1, 4, 9, 8), (16, 4, 3, 3), padding=2, dilation=2)
conv2d("asymmetric", (2, 3, 8, 9), (5, 3, 3, 2), stride=(2, 3), padding=(0, 2), dilation=(2, 1), bias=True)
conv2d("even_kernel", (1, 16, 5, 5), (16, 16, 2, 4), stride=(1, 2), padding=(1, 1))
conv2d("kernel_above_input", (2, 3, 2, 3), (4, 3, 5, 5), padding=2, bias=True)
conv2d("one_place", (2, 3, 3, 4), (16, 3, 3, 4))
conv2d("padding_above_kernel", (1, 2, 2, 2), (3, 2, 2, 2), stride=2, padding=3)
conv2d("stride_above_kernel", (1, 3, 9, 8), (4, 3, 2, 2), stride=4)


def conv1d(case, x, weight, stride=1, padding=0, dilation=1, groups=1, bias=False):
    """Shapes: x (B, C, L), weight (O, C / groups, K)."""
    put(f"conv1d.{case}.config", torch.tensor([stride, padding, dilation, groups]))
    inputs = {"input": torch.randn(x), "weight": torch.randn(weight)}
    if bias:
        inputs["bias"] = torch.randn(weight[0])
    record(
        f"conv1d.{case}",
        lambda input, weight, bias=None: F.conv1d(input, weight, bias, stride, padding, dilation, groups),
        **inputs,
    )


# The layers of wav2vec 2.0 (raw audio, then its features, then positions) and of the Conformer, with fewer channels.
conv1d("k10_stride5", (2, 1, 63), (16, 1, 10), stride=5, bias=True)
conv1d("k3_stride2", (2, 16, 14), (33, 16, 3), stride=2)
conv1d("k2_stride2", (1, 20, 9), (16, 20, 2), stride=2, bias=True)
conv1d("groups_k16", (2, 32, 11), (32, 8, 16), padding=8, groups=4, bias=True)
conv1d("depthwise_k31", (2, 20, 17), (20, 1, 31), padding=15, groups=20, bias=True)
conv1d("pointwise", (2, 20, 7), (40, 20, 1), bias=True)
conv1d("dilated", (2, 3, 15), (16, 3, 3), padding=4, dilation=4)
conv1d("k5", (1, 40, 12), (20, 40, 5), padding=2)


def pool(case, function, x, kernel, stride, padding=0, dilation=1, include=True):
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    put(f"{case}.config", torch.tensor([*pair(kernel), *stride, *padding, *dilation, int(include)]))
    record(case, function(pair(kernel), stride, padding, dilation, include), input=x)


def max_pool(kernel, stride, padding, dilation, _):
    return lambda input: F.max_pool2d(input, kernel, stride, padding, dilation)


def avg_pool(kernel, stride, padding, _, include):
    return lambda input: F.avg_pool2d(input, kernel, stride, padding, False, include)


pool("max_pool2d.3x3_stride2", max_pool, torch.randn(2, 20, 7, 8), 3, 2, 1)
pool("max_pool2d.2x2", max_pool, torch.randn(2, 3, 6, 7), 2, 2)
pool("max_pool2d.3x3_overlapping", max_pool, torch.randn(1, 33, 5, 6), 3, 1, 1)
pool("max_pool2d.asymmetric", max_pool, torch.randn(1, 5, 9, 8), (2, 4), (3, 1), (1, 2))
pool("max_pool2d.dilated", max_pool, torch.randn(1, 16, 9, 10), 3, 2, 1, 2)
pool("max_pool2d.whole", max_pool, torch.randn(2, 3, 4, 5), (4, 5), 1)
pool("max_pool2d.large_window", max_pool, torch.randn(1, 2, 18, 17), 17, 1, 8)
# Few distinct values, so that every window has several maxima; zeros as relu leaves them.
pool("max_pool2d.ties", max_pool, torch.randint(0, 2, (2, 20, 7, 8)).double(), 3, 2, 1)
pool("max_pool2d.zeros", max_pool, F.relu(torch.randn(2, 17, 6, 6)), 2, 1)
pool("max_pool2d.equal", max_pool, torch.ones(1, 2, 4, 4), 3, 1, 1)

pool("avg_pool2d.3x3_stride2", avg_pool, torch.randn(2, 20, 7, 8), 3, 2, 1)
pool("avg_pool2d.3x3_stride2_inside", avg_pool, torch.randn(2, 20, 7, 8), 3, 2, 1, 1, False)
pool("avg_pool2d.2x2", avg_pool, torch.randn(2, 3, 6, 7), 2, 2)
pool("avg_pool2d.asymmetric", avg_pool, torch.randn(1, 5, 9, 8), (2, 4), (3, 1), (1, 2), 1, False)
pool("avg_pool2d.overlapping", avg_pool, torch.randn(1, 16, 5, 6), (3, 2), 1)

for case, x, output in [
    ("global", (2, 20, 5, 6), (1, 1)),
    ("divides", (1, 3, 8, 6), (4, 2)),
    ("overlapping", (2, 5, 7, 10), (3, 4)),
    ("larger", (1, 3, 2, 3), (3, 7)),
    ("same", (1, 17, 3, 4), (3, 4)),
]:
    put(f"adaptive_avg_pool2d.{case}.config", torch.tensor(output))
    record(
        f"adaptive_avg_pool2d.{case}", lambda input: F.adaptive_avg_pool2d(input, output), input=torch.randn(x)
    )

# Group norm, eps 1e-5: as layer norm over a sample, in groups, as instance norm.
for case, shape, groups in [
    ("one", (2, 6, 3, 5), 1),
    ("groups", (3, 20, 4, 5), 4),
    ("instance", (2, 5, 23), 5),
    ("matrix", (4, 12), 3),
]:
    put(f"group_norm.{case}.config", torch.tensor([groups]))
    record(
        f"group_norm.{case}",
        lambda input, weight, bias: F.group_norm(input, groups, weight, bias, 1e-5),
        input=torch.randn(shape) * 2 + 1,
        weight=torch.randn(shape[1]),
        bias=torch.randn(shape[1]),
    )

# Batch norm over images, eps 1e-5, momentum 0.1, from running statistics that are not the defaults.
channels = 20
mean, var = torch.randn(channels), torch.rand(channels) + 0.5
inputs = {
    "input": torch.randn(3, channels, 4, 5) * 2 - 1,
    "weight": torch.randn(channels),
    "bias": torch.randn(channels),
}
put("batch_norm.running_mean_before", mean)
put("batch_norm.running_var_before", var)
record(
    "batch_norm.eval",
    lambda input, weight, bias: F.batch_norm(input, mean, var, weight, bias, False, 0.1, 1e-5),
    **inputs,
)
running_mean, running_var = mean.clone(), var.clone()
record(
    "batch_norm.train",
    lambda input, weight, bias: F.batch_norm(input, running_mean, running_var, weight, bias, True, 0.1, 1e-5),
    **inputs,
)
put("batch_norm.running_mean_after", running_mean)
put("batch_norm.running_var_after", running_var)

# Gated linear unit along the last and along a middle dimension.
record("glu.last", lambda input: F.glu(input, -1), input=torch.randn(3, 5, 34) * 2)
record("glu.middle", lambda input: F.glu(input, 1), input=torch.randn(2, 6, 7) * 2)

# Embedding: ids that repeat, with and without a row of padding.
ids = torch.tensor([[3, 0, 3], [1, 6, 6]])
put("embedding.ids", ids)
record("embedding.plain", lambda table: F.embedding(ids, table), table=torch.randn(7, 20))
record("embedding.padded", lambda table: F.embedding(ids, table, padding_idx=6), table=torch.randn(7, 20))

# Attention: three heads, lengths of 5 and 7; key masks, and a mask that is added and has a gradient.
BATCH, LENGTH, KEYS, HEADS, HEAD = 2, 5, 7, 3, 4
WIDTH = HEADS * HEAD


def split(x):
    return x.reshape(x.shape[0], -1, HEADS, HEAD).transpose(1, 2)


def merge(x):
    return x.transpose(1, 2).reshape(x.shape[0], -1, WIDTH)


keep = torch.tensor([[1, 1, 0, 1, 1, 0, 1], [1, 0, 0, 1, 0, 0, 0]], dtype=torch.uint8)
put("attention.keep", keep)
qkv = {name: torch.randn(BATCH, length, WIDTH) for name, length in [("q", LENGTH), ("k", KEYS), ("v", KEYS)]}
record(
    "attention.keys",
    lambda q, k, v: merge(
        F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=keep.bool()[:, None, None, :])
    ),
    **qkv,
)
record(
    "attention.added",
    lambda q, k, v, mask: merge(F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=mask)),
    **qkv,
    mask=torch.randn(BATCH, 1, LENGTH, KEYS),
)


def relative(q, k, v, p, content_bias, position_bias, keep=None):
    """By the definition: an index for every pair of places, and none of the usual shift."""
    i, j = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None, :]
    content = torch.einsum("bhid,bhjd->bhij", split(q) + content_bias[:, None, :], split(k))
    by_pair = split(p[None])[0][:, LENGTH - 1 - (i - j)]  # heads, query, key, width of a head
    position = torch.einsum("bhid,hijd->bhij", split(q) + position_bias[:, None, :], by_pair)
    scores = (content + position) / HEAD**0.5
    if keep is not None:
        scores = scores.masked_fill(keep[:, None, None, :] == 0, float("-inf"))
    return merge(scores.softmax(-1) @ split(v))


inputs = {name: torch.randn(BATCH, LENGTH, WIDTH) for name in ["q", "k", "v"]}
inputs["p"] = torch.randn(2 * LENGTH - 1, WIDTH)
inputs |= {name: torch.randn(HEADS, HEAD) for name in ["content_bias", "position_bias"]}
record("attention_relative.plain", relative, **inputs)
short = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], dtype=torch.uint8)
put("attention_relative.keep", short)
record("attention_relative.masked", lambda **inputs: relative(**inputs, keep=short), **inputs)

save_file(out, Path(__file__).parents[1] / "conv.safetensors")
