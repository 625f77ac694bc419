# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "torch==2.15.0", "torchvision==0.29.2", "transformers==5.23.0", "numpy==2.4.6", "safetensors==0.8.0",
# ]
# ///
"""Writes tests/golden/resnet_names.safetensors: names of published ResNets, and what the libraries make of them.

    python tests/golden/generate/resnet_names.py

The metadata holds, for each case, the lines `name shape` of the model's `state_dict`, heads and counts of batches
included. Weights and images are not in the file: both sides draw them with `drawn` below, by the name that the library
gives them. The tensors are the features in evaluation, in float64 and for the smallest in float32, and once those of
every place, row by row.
crates/mm-encoders/tests/it/resnet_names.rs reads it.
"""

import sys
from pathlib import Path

import torch
import torch.nn as nn
import torchvision
from resnet18 import uniform
from safetensors.torch import save_file

# transformers would take kernels.py beside this script for a package of that name, and run it.
sys.path.remove(str(Path(__file__).resolve().parent))

import transformers  # noqa: E402
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel  # noqa: E402

IMAGES = (2, 3, 70, 40)


def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value of a tensor of a checkpoint."""
    u = uniform(name, shape)
    if len(shape) == 4:
        return u * (6.0 / (shape[0] * shape[2] * shape[3])) ** 0.5
    if name.endswith("running_var"):
        return 1.0 + 0.5 * u
    return 1.0 + 0.2 * u if name.endswith("weight") else 0.1 * u


def draw(model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(drawn(name, tuple(value.shape)))


def names(model: nn.Module) -> str:
    return "\n".join(f"{name} {','.join(map(str, value.shape))}" for name, value in model.state_dict().items())


def microsoft(depths: list[int], layer_type: str, *, first: bool = False) -> ResNetConfig:
    widths = [64, 128, 256, 512] if layer_type == "basic" else [256, 512, 1024, 2048]
    return ResNetConfig(
        depths=depths, hidden_sizes=widths, layer_type=layer_type, downsample_in_bottleneck=first, num_labels=5
    )


@torch.no_grad()
def features(model: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    draw(model.to(dtype).eval())
    x = uniform("images", IMAGES).to(dtype)
    if isinstance(model, ResNetForImageClassification):
        return model.resnet(x).pooler_output.flatten(1)
    if isinstance(model, ResNetModel):
        return model(x).pooler_output.flatten(1)
    model.fc = nn.Identity()
    return model(x)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = {
        "torchvision.18": lambda: torchvision.models.resnet18(num_classes=5),
        "torchvision.34": lambda: torchvision.models.resnet34(num_classes=5),
        "torchvision.50": lambda: torchvision.models.resnet50(num_classes=5),
        "microsoft.18": lambda: ResNetForImageClassification(microsoft([2, 2, 2, 2], "basic")),
        "microsoft.34": lambda: ResNetModel(microsoft([3, 4, 6, 3], "basic")),
        "microsoft.50": lambda: ResNetForImageClassification(microsoft([3, 4, 6, 3], "bottleneck")),
        "microsoft.50.first": lambda: ResNetForImageClassification(
            microsoft([3, 4, 6, 3], "bottleneck", first=True)
        ),
    }
    metadata = {
        "source": "own, generate/resnet_names.py",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "transformers": transformers.__version__,
    }
    tensors = {}
    for case, make in cases.items():
        metadata[case] = names(make())
        tensors[f"{case}.f64"] = features(make(), torch.float64).contiguous()
        if case == "microsoft.18":
            maps = make().to(torch.float64).eval()
            draw(maps)
            maps = maps.resnet(uniform("images", IMAGES)).last_hidden_state.detach()
            tensors[f"{case}.places"] = maps.flatten(2).transpose(1, 2).contiguous()
        if case.endswith("18"):
            tensors[f"{case}.f32"] = features(make(), torch.float32).contiguous()
    file = Path(__file__).parents[1] / "resnet_names.safetensors"
    save_file(tensors, file, metadata=metadata)
    file.chmod(0o644)
    for key, value in tensors.items():
        print(key, tuple(value.shape), value.abs().max().item())
