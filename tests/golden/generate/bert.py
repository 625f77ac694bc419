# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0", "transformers==5.23.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes tests/golden/bert.safetensors: the numbers of transformers' BERT and DistilBERT for small configurations.

    python tests/golden/generate/bert.py

Weights are not in the file: both sides draw them with `uniform` of resnet18.py. The file holds, for `<family>.f64.` and
`<family>.f32.`, the last hidden state of a padded batch in training (no dropout) and in evaluation, its first token and
its mean over the real tokens, and the gradient of every parameter for the loss `sum(first * uniform("first") + mean *
uniform("mean"))`; in the metadata, each family's configuration (TOML, without nulls) and the names of a whole checkpoint.
crates/mm-encoders/tests/it/bert_golden.rs reads it.
"""

import runpy
import sys
from pathlib import Path

# The library looks for an optional package `kernels`, and would find and run kernels.py beside this script.
sys.path.pop(0)

import torch
import transformers
from safetensors.torch import save_file
from transformers import BertConfig, BertForPreTraining, DistilBertConfig, DistilBertForMaskedLM

uniform = runpy.run_path(str(Path(__file__).with_name("resnet18.py")))["uniform"]

IDS = [[2, 7, 12, 5, 9, 3], [2, 4, 3, 0, 0, 0], [2, 12, 12, 6, 3, 0]]
BERT = BertConfig(
    vocab_size=13,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=9,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    attn_implementation="eager",
)
DISTILBERT = DistilBertConfig(
    vocab_size=13,
    dim=12,
    n_layers=2,
    n_heads=3,
    hidden_dim=20,
    max_position_embeddings=9,
    dropout=0.0,
    attention_dropout=0.0,
    activation="relu",
    attn_implementation="eager",
)


def start(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value with which a tensor of a checkpoint starts."""
    u = uniform(name, shape)
    if len(shape) > 1:
        return 0.5 * u
    return 1.0 + 0.2 * u if name.endswith("weight") else 0.2 * u


def run(base: torch.nn.Module, prefix: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    base = base.to(dtype)
    for name, parameter in base.named_parameters():
        parameter.data = start(prefix + name, tuple(parameter.shape)).to(dtype)
    ids = torch.tensor(IDS)
    mask = (ids != 0).long()
    out = {}
    for mode in ["train", "eval"]:
        hidden = base.train(mode == "train")(input_ids=ids, attention_mask=mask).last_hidden_state
        first = hidden[:, 0]
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        # What stands in places of padding means nothing.
        out |= {f"{mode}.hidden": hidden * mask[..., None], f"{mode}.first": first, f"{mode}.mean": mean}
        if mode == "train":
            weigh = lambda name: uniform(name, tuple(first.shape)).to(dtype)
            (first * weigh("first") + mean * weigh("mean")).sum().backward()
            gradients = {n: p.grad for n, p in base.named_parameters() if not n.startswith("pooler")}
            out |= {f"gradient.{prefix}{name}": gradient for name, gradient in gradients.items()}
    return {name: value.detach().clone() for name, value in out.items()}


def toml(config: transformers.PreTrainedConfig) -> str:
    line = lambda value: str(value).lower() if isinstance(value, bool) else repr(value)
    known = {k: v for k, v in config.to_dict().items() if isinstance(v, (bool, int, float, str))}
    return "\n".join(f"{key} = {line(value)}" for key, value in known.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    tensors, metadata = {"ids": torch.tensor(IDS)}, {"source": "generate/bert.py", "torch": torch.__version__}
    metadata["transformers"] = transformers.__version__
    for family, config, make in [
        ("bert", BERT, BertForPreTraining),
        ("distilbert", DISTILBERT, DistilBertForMaskedLM),
    ]:
        model = make(config)
        metadata[f"{family}.config"] = toml(config)
        metadata[f"{family}.names"] = "\n".join(model.state_dict())
        for prefix, dtype in [("f64", torch.float64), ("f32", torch.float32)]:
            values = run(getattr(model, family), f"{family}.", dtype)
            tensors |= {f"{family}.{prefix}.{name}": value for name, value in values.items()}
            model.zero_grad()
    file = Path(__file__).parents[1] / "bert.safetensors"
    save_file(tensors, file, metadata=metadata)
    file.chmod(0o644)
