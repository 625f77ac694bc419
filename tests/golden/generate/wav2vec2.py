# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "transformers==5.23.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/wav2vec2.safetensors: the numbers of transformers' `Wav2Vec2Model`, eager attention, in float64.

    python tests/golden/generate/wav2vec2.py

Weights and inputs are not in the file: both sides draw them with `uniform` of resnet18.py, by the names of the state
dictionary. Two configurations: `group` (group norm, post-norm, 128 taps in 16 groups) and `layer` (layer norm, pre-norm).
For each the frames in evaluation, those in training without any dropout, and the gradient of every parameter for the
loss `sum(frames * uniform("loss"))`; for `layer` the same of a padded batch with its mask. `spans` holds how many spans
SpecAugment hides, `preprocessor` what `Wav2Vec2FeatureExtractor` makes of three clips. The metadata hold the
configurations as TOML and the names of the tensors of checkpoints. crates/mm-encoders/tests/it/wav2vec2_golden.rs
reads it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from resnet18 import uniform
from safetensors.torch import save_file

# transformers asks for a package `kernels`: it must not find kernels.py, which would write its own file anew.
sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]

import transformers  # noqa: E402
from transformers import (  # noqa: E402
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
)
from transformers.models.wav2vec2 import modeling_wav2vec2  # noqa: E402

BATCH, SAMPLES, LENGTHS = 3, 400, [400, 283, 150]
SHARED = dict(
    conv_kernel=[10, 3, 2], conv_stride=[5, 2, 2], hidden_dropout=0.0, activation_dropout=0.0, attention_dropout=0.0,
    feat_proj_dropout=0.0, layerdrop=0.0, apply_spec_augment=False, vocab_size=8, num_codevectors_per_group=4,
    codevector_dim=8, proj_codevector_dim=8, attn_implementation="eager",
)  # fmt: skip
CONFIGS = {
    "group": dict(
        conv_dim=[8, 8, 12], conv_bias=False, feat_extract_norm="group", do_stable_layer_norm=False, hidden_size=32,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_conv_pos_embeddings=128,
        num_conv_pos_embedding_groups=16,
    ),
    "layer": dict(
        conv_dim=[8, 10, 12], conv_bias=True, feat_extract_norm="layer", do_stable_layer_norm=True, hidden_size=24,
        num_hidden_layers=3, num_attention_heads=3, intermediate_size=40, num_conv_pos_embeddings=7,
        num_conv_pos_embedding_groups=4, layer_norm_eps=1e-4,
    ),
}  # fmt: skip


def start(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value with which a parameter starts: around 1 for scales, else of a size that keeps activations alive."""
    u = uniform(name, shape)
    if name.endswith("norm.weight") or name.endswith("original0"):
        return 1.0 + 0.2 * u
    return u * (0.3 if len(shape) == 1 else (6.0 / np.prod(shape[1:])) ** 0.5)


def frames(model: Wav2Vec2Model, x: torch.Tensor, lengths: list[int] | None) -> torch.Tensor:
    mask = None if lengths is None else (torch.arange(SAMPLES)[None] < torch.tensor(lengths)[:, None]).long()
    return model(x, attention_mask=mask).last_hidden_state


def run(name: str) -> dict[str, torch.Tensor]:
    model = Wav2Vec2Model(Wav2Vec2Config(**SHARED, **CONFIGS[name])).double()
    assert model.config._attn_implementation == "eager"
    for key, parameter in model.named_parameters():
        parameter.data = start(f"{name}.{key}", tuple(parameter.shape))
    x = uniform(f"{name}.x", (BATCH, SAMPLES))
    out = {}
    for case, lengths in [("whole", None)] + ([("padded", LENGTHS)] if name == "layer" else []):
        if lengths is not None:
            x = x * (torch.arange(SAMPLES)[None] < torch.tensor(lengths)[:, None])
        out[f"{name}.{case}.eval"] = frames(model.eval(), x, lengths).detach()
        model.train().zero_grad()
        y = frames(model, x, lengths)
        (y * uniform("loss", tuple(y.shape))).sum().backward()
        out[f"{name}.{case}.train"] = y.detach()
        for key, parameter in model.named_parameters():
            if key != "masked_spec_embed":
                out[f"{name}.{case}.gradient.{key}"] = parameter.grad.contiguous()
    return out


def spans() -> dict[str, torch.Tensor]:
    """How many spans the rules give; the draws are replaced."""
    settings = [(0.05, 10, 2), (0.65, 10, 0), (0.5, 3, 1), (1.0, 1, 0), (0.0, 4, 5), (0.2, 7, 0)]
    counts, cases = [], []
    for s, (probability, length, least) in enumerate(settings):
        for places in (10, 11, 24, 249):
            for valid in sorted({1, 5, 9, 10, 11, 17, places - 1, places}):
                for rounding in (0.0, 0.31, 0.999):
                    if valid > places or length > places:
                        continue
                    seen = []
                    choice = lambda starts, count, replace: seen.append(count) or starts[:count]
                    old = np.random.rand, np.random.choice
                    np.random.rand, np.random.choice = lambda n: np.array([rounding]), choice
                    mask = torch.zeros(1, places, dtype=torch.long)
                    mask[0, :valid] = 1
                    modeling_wav2vec2._compute_mask_indices((1, places), probability, length, mask, least)
                    np.random.rand, np.random.choice = old
                    cases.append([s, places, valid])
                    counts.append([rounding, seen[0] if seen else 0])
    real = lambda table: torch.tensor(table, dtype=torch.float64)
    return {"spans.settings": real(settings), "spans.cases": torch.tensor(cases), "spans.counts": real(counts)}


def preprocessor() -> dict[str, torch.Tensor]:
    clips = [(3.0 * uniform(f"clip.{n}", (n,)) + 0.5).float().numpy() for n in (50, 33, 20)]
    out = {}
    for normalise in (True, False):
        extractor = Wav2Vec2FeatureExtractor(do_normalize=normalise, padding_value=-0.25, return_attention_mask=True)
        made = extractor(clips, padding=True, sampling_rate=16000, return_tensors="pt")
        out[f"preprocessor.{'normal' if normalise else 'plain'}"] = made["input_values"]
        out["preprocessor.lengths"] = made["attention_mask"].sum(-1)
    return out


def toml(config: dict) -> str:
    """JSON's scalars and lists are TOML's; null, which TOML lacks, is left out."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in config.items() if not isinstance(value, dict | None)]
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tensors = {key: value for name in CONFIGS for key, value in run(name).items()} | spans() | preprocessor()
    metadata = {"source": "own, generate/wav2vec2.py"}
    metadata |= {"torch": torch.__version__, "transformers": transformers.__version__}
    for name, settings in CONFIGS.items():
        config = Wav2Vec2Config(**SHARED, **settings)
        metadata[f"{name}.config"] = toml(config.to_dict())
        for kind, model in [("model", Wav2Vec2Model), ("pretraining", Wav2Vec2ForPreTraining), ("ctc", Wav2Vec2ForCTC)]:
            metadata[f"{name}.{kind}"] = "\n".join(model(config).state_dict())
    metadata["preprocessor"] = toml(Wav2Vec2FeatureExtractor().to_dict())
    file = Path(__file__).parents[1] / "wav2vec2.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata=metadata)
    file.chmod(0o644)
