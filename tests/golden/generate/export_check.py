# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "torch==2.15.0", "torchvision==0.29.2", "transformers==5.23.0", "numpy==2.4.6", "safetensors==0.8.0",
# ]
# ///
"""The other side of `cargo xtask golden --export`: do other libraries load what `weights::export` writes?

    cargo run -p mm-encoders --example golden_full -- export FOLDER
    python tests/golden/generate/export_check.py FOLDER

One line of JSON for each checkpoint in FOLDER: how many tensors were loaded, by names all of which the library knows
and none of which it misses, and the largest difference of the outputs over their largest entry.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The library looks for an optional package `kernels`, and would find and run kernels.py beside this script.
sys.path = [place for place in sys.path if Path(place or ".").resolve() != HERE]

import torch  # noqa: E402
import torchvision  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import Wav2Vec2Model  # noqa: E402
from transformers.utils import logging  # noqa: E402


def report(case: str, folder: Path, y: torch.Tensor, expected: torch.Tensor) -> None:
    with safe_open(folder / case / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        tensors = len(file.keys())
    assert y.shape == expected.shape, (y.shape, expected.shape)
    error = float((y - expected).abs().max() / expected.abs().max())
    print(json.dumps({"case": case, "loaded": tensors, "error": error}), flush=True)


@torch.no_grad()
def resnet18(folder: Path) -> None:
    model = torchvision.models.resnet18()
    model.fc = torch.nn.Identity()
    model.load_state_dict(load_file(folder / "resnet18/model.safetensors"), strict=True)
    check = load_file(folder / "resnet18.safetensors")
    report("resnet18", folder, model.eval()(check["x"]), check["y"])


@torch.no_grad()
def wav2vec2(folder: Path) -> None:
    model, info = Wav2Vec2Model.from_pretrained(folder / "wav2vec2", output_loading_info=True)
    wrong = {key: sorted(map(str, value)) for key, value in info.items() if value}
    assert not wrong, wrong
    check = load_file(folder / "wav2vec2.safetensors")
    report("wav2vec2", folder, model.eval()(check["x"]).last_hidden_state, check["y"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    resnet18(Path(sys.argv[1]))
    wav2vec2(Path(sys.argv[1]))
