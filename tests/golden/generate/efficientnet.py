# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "torch==2.15.0", "torchvision==0.29.2", "timm==1.0.31", "numpy==2.4.6", "safetensors==0.8.0",
# ]
# ///
"""Writes tests/golden/efficientnet.safetensors: EfficientNets of torchvision and of timm.

    python tests/golden/generate/efficientnet.py

Weights and images are not in the file: both sides draw them with `drawn` below, by the name that the library gives
them. The metadata holds, for each case, the lines `name shape` of the model's `state_dict`, classifier and counts of
batches included. B0 and B2: features in evaluation, in float64 and float32. `small`, a tenth of the width and half of
the depth, in float64: features in training with stochastic depth off, the gradients of the images and of all
parameters for the loss `sum(features * uniform("loss"))` (those of parameters in full for `tf`, else their norms), the
norms of the running statistics after that pass, and the features in evaluation. `plain` is timm's network without
TensorFlow's padding and eps.
crates/mm-encoders/tests/it/efficientnet_golden.rs reads it.
"""

from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn as nn
import torchvision
from resnet18 import uniform
from safetensors.torch import save_file
from timm.models.efficientnet import _gen_efficientnet
from torchvision.models.efficientnet import _efficientnet_conf

IMAGES, SMALL = (2, 3, 64, 57), (3, 3, 37, 42)
WIDTH, DEPTH = 0.1, 0.5


def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value of a tensor of a checkpoint."""
    u = uniform(name, shape)
    if len(shape) == 4:
        return u * (6.0 / (shape[1] * shape[2] * shape[3])) ** 0.5
    if name.endswith("running_var"):
        return 1.0 + 0.5 * u
    return 1.0 + 0.2 * u if name.endswith("weight") else 0.1 * u


def draw(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(drawn(name, tuple(value.shape)))
    return model


def names(model: nn.Module) -> str:
    return "\n".join(f"{name} {','.join(map(str, value.shape))}" for name, value in model.state_dict().items())


def features(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    maps = model.features(x) if hasattr(model, "features") else model.forward_features(x)
    return maps.mean((2, 3))


def small(tensors: dict[str, torch.Tensor], case: str, model: nn.Module) -> None:
    draw(model.double()).train()
    x = uniform("images", SMALL).requires_grad_()
    y = features(model, x)
    (y * uniform("loss", tuple(y.shape))).sum().backward()
    tensors[f"{case}.train"] = y.detach()
    tensors[f"{case}.gradient.x"] = x.grad
    gradients = {name: p.grad for name, p in model.named_parameters() if not name.startswith("classifier")}
    tensors[f"{case}.gradients"] = torch.stack([g.norm() for g in gradients.values()])
    if case == "tf.small":
        tensors.update({f"{case}.gradient.{name}": g for name, g in gradients.items()})
    statistics = [b.norm() for name, b in model.named_buffers() if not name.endswith("tracked")]
    tensors[f"{case}.statistics"] = torch.stack(statistics)
    model.eval()
    tensors[f"{case}.eval"] = features(model, x).detach()


def torchvision_small() -> nn.Module:
    setting, last = _efficientnet_conf("efficientnet_b0", width_mult=WIDTH, depth_mult=DEPTH)
    return torchvision.models.EfficientNet(
        setting, dropout=0.0, stochastic_depth_prob=0.0, last_channel=last, num_classes=5
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    timm_small = partial(
        _gen_efficientnet, "efficientnet_b0", channel_multiplier=WIDTH, depth_multiplier=DEPTH, num_classes=5
    )
    whole = {
        "torchvision.b0": lambda: torchvision.models.efficientnet_b0(num_classes=5),
        "torchvision.b2": lambda: torchvision.models.efficientnet_b2(num_classes=5),
        "tf.b0": lambda: timm.create_model("tf_efficientnet_b0", num_classes=5),
        "tf.b2": lambda: timm.create_model("tf_efficientnet_b2", num_classes=5),
    }
    tiny = {
        "torchvision.small": torchvision_small,
        "tf.small": lambda: timm_small(bn_eps=1e-3, pad_type="same"),
        "plain.small": timm_small,
    }
    metadata = {
        "source": "own, generate/efficientnet.py",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
    }
    tensors = {}
    for case, make in whole.items():
        metadata[case] = names(make())
        for prefix, dtype in [("f64", torch.float64), ("f32", torch.float32)]:
            model = draw(make().to(dtype)).eval()
            with torch.no_grad():
                tensors[f"{case}.{prefix}"] = features(model, uniform("images", IMAGES).to(dtype))
    for case, make in tiny.items():
        metadata[case] = names(make())
        small(tensors, case, make())
    file = Path(__file__).parents[1] / "efficientnet.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata=metadata)
    file.chmod(0o644)
    for key, value in tensors.items():
        if "gradient" not in key:
            print(key, tuple(value.shape), value.abs().max().item())
