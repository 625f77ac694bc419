# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/kernels.safetensors: PyTorch's numbers for the operations of mm-kernels, in float64.

    python tests/golden/generate/operations.py

Values and gradients of `sum(y * r)` with a random `r`, named `<case>.<tensor>`; a gradient is `<case>.d<input>`.
crates/mm-kernels/tests/it/golden.rs reads the file and repeats the settings written here.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(20240607)
torch.set_default_dtype(torch.float64)
out: dict[str, torch.Tensor] = {}


def put(name: str, value: torch.Tensor) -> None:
    out[name] = value.detach().clone().contiguous()


def record(case: str, function, **inputs: torch.Tensor) -> torch.Tensor:
    """Stores the inputs, y = function(inputs), an upstream gradient r and the gradients of the inputs."""
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    y = function(**leaves)
    r = torch.randn_like(y)
    (y * r).sum().backward()
    for name, leaf in leaves.items():
        put(f"{case}.{name}", leaf)
        put(f"{case}.d{name}", leaf.grad)
    put(f"{case}.y", y)
    put(f"{case}.r", r)
    return y


# Linear, for a matrix and for leading dimensions.
for case, shape in [("linear", (6, 5)), ("linear_rank3", (2, 3, 5))]:
    record(case, F.linear, input=torch.randn(shape), weight=torch.randn(7, 5), bias=torch.randn(7))

# Activations; the first element of the input of each is zero.
x = torch.randn(4, 9) * 2
x[0, 0] = 0.0
for case, function in {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda input: F.gelu(input, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": lambda input: F.softmax(input, -1),
    "log_softmax": lambda input: F.log_softmax(input, -1),
}.items():
    record(case, function, input=x)

# Layer norm, eps 1e-5.
record(
    "layer_norm",
    lambda input, weight, bias: F.layer_norm(input, (8,), weight, bias, 1e-5),
    input=torch.randn(2, 3, 8) * 3 + 1,
    weight=torch.randn(8),
    bias=torch.randn(8),
)

# Batch norm, eps 1e-5, momentum 0.1, from running statistics that are not the defaults.
for case, shape in [("batch_norm", (8, 5)), ("batch_norm_2d", (4, 3, 2, 5))]:
    channels = shape[1]
    mean, var = torch.randn(channels), torch.rand(channels) + 0.5
    inputs = {"input": torch.randn(shape) * 2 - 1, "weight": torch.randn(channels), "bias": torch.randn(channels)}
    put(f"{case}.running_mean_before", mean)
    put(f"{case}.running_var_before", var)
    record(
        f"{case}_eval",
        lambda input, weight, bias: F.batch_norm(input, mean, var, weight, bias, False, 0.1, 1e-5),
        **inputs,
    )
    running_mean, running_var = mean.clone(), var.clone()
    record(
        f"{case}_train",
        lambda input, weight, bias: F.batch_norm(input, running_mean, running_var, weight, bias, True, 0.1, 1e-5),
        **inputs,
    )
    put(f"{case}.running_mean_after", running_mean)
    put(f"{case}.running_var_after", running_var)

# Cross-entropy: labels or distributions, plain or weighted by sample.
logits = torch.randn(6, 4) * 3
labels = torch.tensor([0, 3, 1, 1, 2, 0])
soft = F.softmax(torch.randn(6, 4), -1)
weights = torch.tensor([1.0, 0.0, 2.5, 0.3, 1.0, 4.0])
put("cross_entropy.targets", soft)
put("cross_entropy.weights", weights)
for kind, targets in [("hard", labels), ("soft", soft)]:
    record(f"cross_entropy_{kind}", lambda logits: F.cross_entropy(logits, targets), logits=logits)
    record(
        f"cross_entropy_{kind}_weighted",
        lambda logits: (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum(),
        logits=logits,
    )
put("cross_entropy.true_class_probability", F.softmax(logits, -1)[torch.arange(6), labels])

# Attention: two heads, three queries, four keys, a key mask.
mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]], dtype=torch.uint8)
put("attention.mask", mask)


def attention(q, k, v, keep):
    split = lambda t: t.reshape(2, -1, 2, 3).transpose(1, 2)
    keep = None if keep is None else keep.bool()[:, None, None, :]
    y = F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=keep)
    return y.transpose(1, 2).reshape(2, 3, 6)


qkv = {"q": torch.randn(2, 3, 6), "k": torch.randn(2, 4, 6), "v": torch.randn(2, 4, 6)}
record("attention", lambda q, k, v: attention(q, k, v, None), **qkv)
record("attention_masked", lambda q, k, v: attention(q, k, v, mask), **qkv)

# Ten optimiser steps along fixed gradients: the parameter after each step.
start, gradients = torch.randn(3, 4), torch.randn(10, 3, 4)
put("optim.start", start)
put("optim.gradients", gradients)
for case, make in {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd_decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.05),
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd_dampening": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.05),
    "sgd_nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam_decay": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.98), weight_decay=0.1),
}.items():
    param = start.clone().requires_grad_()
    optimiser = make([param])
    steps = []
    for gradient in gradients:
        param.grad = gradient.clone()
        optimiser.step()
        steps.append(param.detach().clone())
    put(f"optim.{case}", torch.stack(steps))

save_file(out, Path(__file__).parents[1] / "kernels.safetensors")
