# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "torch==2.15.0", "torchvision==0.29.2", "timm==1.0.31", "transformers==5.23.0", "numpy==2.4.6",
#     "safetensors==0.8.0",
# ]
# ///
"""The other side of `cargo xtask golden --full`: networks of the published sizes, in the libraries that publish them.

    python tests/golden/generate/full.py --versions             one line of JSON, null for what is not installed
    python tests/golden/generate/full.py --list                 the cases, one per line
    python tests/golden/generate/full.py CASE f32|f64 FOLDER    one case into a folder that exists

Weights are drawn here, with a fixed seed, and written as the library itself writes them: `state_dict` for torchvision
and timm, `save_pretrained` for transformers. Running statistics are those of a batch, as they are in a checkpoint.
Besides `model.safetensors` and, from transformers, `config.json` the folder holds

    case.json            how crates/mm-encoders/examples/golden_full.rs builds its side
    inputs.safetensors   x; loss, the weights of the loss `sum(y * loss)`; keep, 0 where y means nothing
    eval.safetensors     y and gradient.<name of the tensor> in evaluation; gradient.x where x are no ids
    train.safetensors    the same in training without any dropout; after.<name>: running statistics afterwards

`blind` in case.json names tensors whose gradient is zero by construction, so that all there is is rounding; `own`, in
f32, is how far the library's numbers are from those that it computes in double precision.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# The library looks for an optional package `kernels`, and would find and run kernels.py beside this script.
sys.path = [place for place in sys.path if Path(place or ".").resolve() != HERE]

MODES = ["eval", "train"]
LIBRARIES = ["torch", "torchvision", "timm", "transformers", "numpy", "safetensors"]


@dataclass
class Case:
    """A network, its inputs, and what the other side has to know."""

    model: Any
    forward: Callable[[Any], Any]
    save: Callable[[Path], None]
    x: Any
    settings: dict[str, Any]
    keep: Any = None
    # Suffixes of names, by mode.
    blind: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # What has to be done to the model before it computes in float64.
    exact: Callable[[], None] = lambda: None
    # Which weights have a last axis of one tap in the checkpoint that they do not have here.
    tap: Callable[[str], bool] = lambda name: False


def norms(model: Any) -> None:
    """Starts that hide nothing: scales are not 1 and shifts not 0."""
    import torch

    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias") or "bias_" in name or name.endswith(("content_bias", "position_bias")):
                p.copy_(0.1 * torch.randn_like(p))
            elif p.dim() == 1:
                p.copy_(1.0 + 0.2 * torch.randn_like(p))


def settle(model: Any, forward: Callable[[Any], Any], x: Any) -> None:
    """Running statistics become those of another batch."""
    import torch

    layers = [m for m in model.modules() if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d))]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
    with torch.no_grad():
        model.train()
        forward(torch.randn_like(x))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def save_state(model: Any) -> Callable[[Path], None]:
    from safetensors.torch import save_file

    def save(folder: Path) -> None:
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return save


def images(
    model: Any, features: Callable[[Any], Any], shape: tuple[int, ...], settings: dict[str, Any], **more: Any
) -> Case:
    import torch

    norms(model)
    x = torch.randn(shape)
    settle(model, features, x)
    return Case(model, features, save_state(model), x, settings, **more)


def resnet(depth: int, shape: tuple[int, ...]) -> Case:
    import torch
    import torchvision

    model = getattr(torchvision.models, f"resnet{depth}")(num_classes=5)
    if shape[1] != 3:
        model.conv1 = torch.nn.Conv2d(shape[1], 64, 7, 2, 3, bias=False)

    def features(x: Any) -> Any:
        x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        return model.layer4(model.layer3(model.layer2(model.layer1(x)))).mean((2, 3))

    return images(model, features, shape, {"kind": "resnet", "depth": depth, "channels": shape[1]})


def efficientnet(variant: str) -> Case:
    if variant == "tf":
        import timm

        model = timm.create_model("tf_efficientnet_b2", num_classes=5, drop_rate=0.0, drop_path_rate=0.0)
        features = lambda x: model.forward_features(x).mean((2, 3))
        # A shift in front of a 1x1 convolution and its normalisation, which takes it out again.
        blind = (".bn3.bias", "blocks.0.1.bn2.bias")
    else:
        import torchvision

        model = torchvision.models.efficientnet_b2(num_classes=5, dropout=0.0, stochastic_depth_prob=0.0)
        features = lambda x: model.features(x).mean((2, 3))
        blind = (".block.3.1.bias", "features.1.1.block.2.1.bias")
    settings = {"kind": "efficientnet", "variant": variant}
    return images(model, features, (2, 3, 260, 260), settings, blind={"train": blind})


SILENT = dict(
    hidden_dropout=0.0, activation_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0,
    apply_spec_augment=False,
)  # fmt: skip
SAMPLES = 64_000  # four seconds


def quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def published(model: Any, layers: int) -> Callable[[Path], None]:
    """Saves with a configuration that promises all layers of the checkpoint, of which only the first are there."""

    def save(folder: Path) -> None:
        model.config.num_hidden_layers = layers
        model.save_pretrained(folder)

    return save


def wav2vec2(size: str) -> Case:
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    quiet()
    if size == "base":
        config, layers, lengths = Wav2Vec2Config(**SILENT, attn_implementation="eager"), 12, None
    else:
        config = Wav2Vec2Config(
            **SILENT, hidden_size=1024, num_hidden_layers=12, num_attention_heads=16, intermediate_size=4096,
            conv_bias=True, feat_extract_norm="layer", do_stable_layer_norm=True, attn_implementation="eager",
        )  # fmt: skip
        layers, lengths = 24, [SAMPLES, 44_100]
    model = Wav2Vec2Model(config)
    # For checkpointing the library marks the input as needing a gradient, which fails where it has one.
    model.feature_extractor._requires_grad = False
    norms(model)
    rows = 1 if lengths is None else len(lengths)
    x = torch.randn(rows, SAMPLES)
    mask = keep = None
    if lengths is not None:
        mask = (torch.arange(SAMPLES) < torch.tensor(lengths)[:, None]).long()
        x = x * mask
        frames = model._get_feat_extract_output_lengths(torch.tensor(lengths))
        places = int(model._get_feat_extract_output_lengths(SAMPLES))
        keep = (torch.arange(places) < frames[:, None])[..., None]
    forward = lambda x: model(x, attention_mask=mask).last_hidden_state
    blind = (".k_proj.bias",)
    settings = {"kind": "wav2vec2", "layers": 12, "lengths": lengths}
    return Case(
        model, forward, published(model, layers), x, settings, keep, {mode: blind for mode in MODES}
    )


def conformer() -> Case:
    import torch

    spec = importlib.util.spec_from_file_location("conformer_reference", HERE / "conformer.py")
    reference = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(HERE))  # which that script takes off again
    spec.loader.exec_module(reference)
    lengths = [100, 77, 31]
    reference.BATCH, reference.LENGTH, reference.INPUT = len(lengths), max(lengths), 1024
    reference.DIM, reference.HEADS, reference.KERNEL = 512, 8, 31
    model = reference.Net("batch", False, lengths)
    model.layers.extend([reference.Layer("batch", False) for _ in range(4)])
    norms(model)
    x = torch.randn(len(lengths), max(lengths), 1024)
    settle(model, model, x)

    # A pointwise convolution is written as a linear map there, and has one tap in a checkpoint.
    tap = lambda name: name.endswith(("conv.expand.weight", "conv.project.weight"))

    def save(folder: Path) -> None:
        from safetensors.torch import save_file

        state = {n: (v[..., None] if tap(n) else v).contiguous() for n, v in model.state_dict().items()}
        save_file(state, folder / "model.safetensors")

    settings = {"kind": "conformer", "input": 1024, "lengths": lengths}
    blind = ("attention.key.bias",)
    return Case(model, model, save, x, settings, None, {mode: blind for mode in MODES}, tap=tap)


def wav2vec2_conformer() -> Case:
    import torch
    from transformers import Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel

    quiet()
    places = 199
    config = Wav2Vec2ConformerConfig(
        **SILENT, hidden_size=1024, num_hidden_layers=3, num_attention_heads=16, intermediate_size=4096,
        hidden_act="swish", conformer_conv_dropout=0.0, conv_bias=True, feat_extract_norm="layer",
        position_embeddings_type="relative", max_source_positions=256, attn_implementation="eager",
    )  # fmt: skip
    model = Wav2Vec2ConformerModel(config)
    norms(model)
    x = torch.randn(2, places, 1024)
    forward = lambda x: model.encoder(x).last_hidden_state
    settle(model.encoder, forward, x)

    def exact() -> None:
        # The library takes the sine of angles in float32, whatever the model's type.
        rates = 10000.0 ** (-torch.arange(0, 1024, 2, dtype=torch.float64) / 1024)
        angle = torch.arange(255, -256, -1)[:, None] * rates
        model.encoder.embed_positions.pe = torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[None]

    settings = {"kind": "wav2vec2-conformer", "layers": 3}
    blind = {mode: ("linear_k.bias",) for mode in MODES}
    return Case(model, forward, published(model, 24), x, settings, None, blind, exact)


def bert(family: str) -> Case:
    import torch
    from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

    quiet()
    if family == "bert":
        config = BertConfig(
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager"
        )
        model, key = BertModel(config), ".key.bias"
    else:
        config = DistilBertConfig(dropout=0.0, attention_dropout=0.0, attn_implementation="eager")
        model, key = DistilBertModel(config), ".k_lin.bias"
    norms(model)
    lengths = [128, 90]
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, config.vocab_size, mask.shape) * mask
    forward = lambda x: model(input_ids=ids, attention_mask=mask).last_hidden_state
    settings = {"kind": "bert", "family": family, "lengths": lengths}
    blind = {mode: (key,) for mode in MODES}
    return Case(model, forward, model.save_pretrained, ids.float(), settings, mask[..., None], blind)


CASES: dict[str, Callable[[], Case]] = {
    "resnet18-image": lambda: resnet(18, (4, 3, 224, 224)),
    "resnet18-spectrogram": lambda: resnet(18, (4, 1, 257, 188)),
    "resnet50-image": lambda: resnet(50, (2, 3, 224, 224)),
    "resnet50-spectrogram": lambda: resnet(50, (2, 1, 257, 188)),
    "efficientnet-b2-torchvision": lambda: efficientnet("torchvision"),
    "efficientnet-b2-tf": lambda: efficientnet("tf"),
    "wav2vec2-base-960h": lambda: wav2vec2("base"),
    "wav2vec2-large-robust-12": lambda: wav2vec2("large"),
    "conformer-512-8-5": conformer,
    "wav2vec2-conformer-rel-pos-large-3": wav2vec2_conformer,
    "bert-base": lambda: bert("bert"),
    "distilbert": lambda: bert("distilbert"),
}


def once(case: Case, mode: str, x: Any, loss: Any) -> dict[str, Any]:
    """Output and gradients of one pass; running statistics after one in training."""
    case.model.train(mode == "train").zero_grad(set_to_none=True)
    ids = case.settings["kind"] == "bert"
    x = x.clone().requires_grad_(not ids)
    y = case.forward(x)
    y = y if case.keep is None else y * case.keep
    (y * loss).sum().backward()
    out = {"y": y.detach()} | ({} if ids else {"gradient.x": x.grad})
    for name, p in case.model.named_parameters():
        if p.grad is not None:
            out[f"gradient.{name}"] = p.grad[..., None] if case.tap(name) else p.grad
    if mode == "train":
        out |= {f"after.{n}": b for n, b in case.model.named_buffers() if "running" in n}
    return out


def distances(found: Any, expected: dict[str, Any], blind: list[str]) -> dict[str, float]:
    """As crates/mm-encoders/examples/golden_full.rs takes them: of outputs, and the largest of gradients."""
    worst = {"outputs": 0.0, "gradients": 0.0}
    for name, value in expected.items():
        if name.startswith("after."):
            continue
        theirs = name.removeprefix("gradient.")
        of = expected["gradient." + theirs.removesuffix("bias") + "weight"] if theirs in blind else value
        apart, scale = (found.get_tensor(name).to(value.dtype) - value).abs().max(), of.abs().max()
        kind = "outputs" if name == "y" else "gradients"
        worst[kind] = max(worst[kind], float(apart / scale if scale > 0 else apart))
    return worst


def run(name: str, dtype: str, folder: Path) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    torch.manual_seed(sum(name.encode()))
    # Drawn in float32 whatever the type: both types are of one network.
    case, number = CASES[name](), {"f32": torch.float32, "f64": torch.float64}[dtype]
    with torch.no_grad():
        case.model.eval()
        loss = torch.randn(case.forward(case.x).shape).to(number)
    names = [n for n, _ in case.model.named_parameters()]
    blind = {mode: [n for n in names if n.endswith(ends)] for mode, ends in case.blind.items()}
    case.model.to(number)
    case.x, case.keep = case.x.to(number), None if case.keep is None else case.keep.to(number)
    if dtype == "f64":
        case.exact()
    case.save(folder)
    inputs = {"x": case.x, "loss": loss} | ({} if case.keep is None else {"keep": case.keep})
    save_file({key: value.contiguous() for key, value in inputs.items()}, folder / "inputs.safetensors")
    running = {n: b.clone() for n, b in case.model.named_buffers() if "running" in n}
    for mode in MODES:
        out = {key: value.contiguous() for key, value in once(case, mode, case.x, loss).items()}
        save_file(out, folder / f"{mode}.safetensors")
        del out
    about = {"case": name, "dtype": dtype, "build": case.settings, "blind": blind}
    if dtype == "f32":
        # How far the library itself is from what it computes in double precision.
        with torch.no_grad():
            for n, b in case.model.named_buffers():
                if n in running:
                    b.copy_(running[n])
        case.model.zero_grad(set_to_none=True)
        case.model.double()
        case.exact()
        case.keep = None if case.keep is None else case.keep.double()
        own = {"outputs": 0.0, "gradients": 0.0}
        for mode in MODES:
            exact = once(case, mode, case.x.double(), loss.double())
            with safe_open(folder / f"{mode}.safetensors", "pt") as found:
                seen = distances(found, exact, blind.get(mode, []))
            own = {kind: max(own[kind], seen[kind]) for kind in own}
            del exact
        about["own"] = own
    (folder / "case.json").write_text(json.dumps(about, indent=1) + "\n")


def versions() -> dict[str, str | None]:
    """What is installed; importlib's answer, because importing takes seconds."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = None
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--versions", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("case", nargs="?", choices=list(CASES))
    parser.add_argument("dtype", nargs="?", choices=["f32", "f64"])
    parser.add_argument("folder", nargs="?", type=Path)
    given = parser.parse_args()
    if given.versions:
        print(json.dumps(versions()))
    elif given.list:
        print("\n".join(CASES))
    elif given.folder is None:
        parser.error("give CASE, f32 or f64, and FOLDER")
    else:
        run(given.case, given.dtype, given.folder)
