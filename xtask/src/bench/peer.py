# PyTorch's side of `cargo xtask bench peer`: one step at a time, when it is told to. Needs torch, and for the rows of
# their models transformers or torchvision. The lines that it reads and writes are described in side.rs; the models are
# those of crates/mm-train/examples/peer_step.rs, written as PyTorch's users would.
import sys

# Not the folder that this was started in: libraries import whatever there has the name of a module they look for.
sys.path = [folder for folder in sys.path if folder]

import argparse
import json
import math
import os
import signal
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

CLASSES = 6


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += identity
        return self.relu(y)


class ResNet18(nn.Module):
    """Images to 512 features."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        blocks, inputs = [], 64
        for outputs, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]:
            blocks += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
            inputs = outputs
        self.layers = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layers(x).mean((2, 3))


class FeedForward(nn.Sequential):
    def __init__(self, d, drop):
        super().__init__(
            nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.SiLU(inplace=True), nn.Dropout(drop),
            nn.Linear(4 * d, d), nn.Dropout(drop),
        )


class RelativeAttention(nn.Module):
    """Self-attention with relative positions, as in Transformer-XL; its weights are not dropped, as in ours.

    Not by scaled_dot_product_attention: for a mask that has a gradient it takes these same steps, some 5 % slower.
    """

    def __init__(self, d, heads, drop):
        super().__init__()
        self.heads, self.width = heads, d // heads
        self.norm = nn.LayerNorm(d)
        self.query, self.key, self.value = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.position = nn.Linear(d, d, bias=False)
        self.u = nn.Parameter(torch.empty(heads, self.width))
        self.v = nn.Parameter(torch.empty(heads, self.width))
        nn.init.xavier_uniform_(self.u)
        nn.init.xavier_uniform_(self.v)
        self.out = nn.Linear(d, d)
        self.drop = nn.Dropout(drop)
        self.table = None

    def positions(self, length, d):
        """Rows for the distances length-1, …, -(length-1)."""
        if self.table is None or self.table.shape[0] != 2 * length - 1:
            distance = torch.arange(length - 1, -length, -1.0).unsqueeze(1)
            angle = distance * torch.exp(torch.arange(0, d, 2.0) * (-math.log(10000.0) / d))
            self.table = torch.stack([angle.sin(), angle.cos()], 2).reshape(2 * length - 1, d)
        return self.table

    def forward(self, x):
        batch, length, d = x.shape
        split = lambda t: t.view(batch, -1, self.heads, self.width)
        h = self.norm(x)
        query, key, value = split(self.query(h)), split(self.key(h)), split(self.value(h))
        position = self.position(self.positions(length, d)).view(-1, self.heads, self.width)
        content = (query + self.u).transpose(1, 2) @ key.permute(0, 2, 3, 1)
        relative = (query + self.v).transpose(1, 2) @ position.permute(1, 2, 0)
        # Row i of `relative` holds the distances length-1 … -(length-1); place j must hold the distance i - j.
        relative = F.pad(relative, (1, 0)).view(batch, self.heads, 2 * length, length)
        relative = relative[:, :, 1:].reshape(batch, self.heads, length, 2 * length - 1)[..., :length]
        weights = ((content + relative) / math.sqrt(self.width)).softmax(-1)
        mixed = (weights @ value.transpose(1, 2)).transpose(1, 2).reshape(batch, length, d)
        return self.drop(self.out(mixed))


class ConvModule(nn.Module):
    def __init__(self, d, kernel, drop):
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.expand = nn.Conv1d(d, 2 * d, 1)
        self.depthwise = nn.Conv1d(d, d, kernel, padding=kernel // 2, groups=d, bias=False)
        self.batch_norm = nn.BatchNorm1d(d)
        self.silu = nn.SiLU(inplace=True)
        self.project = nn.Conv1d(d, d, 1)
        self.drop = nn.Dropout(drop)

    def forward(self, x):
        h = F.glu(self.expand(self.norm(x).transpose(1, 2)), 1)
        h = self.project(self.silu(self.batch_norm(self.depthwise(h))))
        return self.drop(h).transpose(1, 2)


class ConformerLayer(nn.Module):
    def __init__(self, d=512, heads=8, kernel=31, drop=0.1):
        super().__init__()
        self.first, self.last = FeedForward(d, drop), FeedForward(d, drop)
        self.attention = RelativeAttention(d, heads, drop)
        self.conv = ConvModule(d, kernel, drop)
        self.norm = nn.LayerNorm(d)

    def forward(self, x):
        x = x + 0.5 * self.first(x)
        x = x + self.attention(x)
        x = x + self.conv(x)
        x = x + 0.5 * self.last(x)
        return self.norm(x)


class Conformer(nn.Sequential):
    def __init__(self, inputs, layers, d, heads, drop=0.1):
        stack = [ConformerLayer(d, heads, drop=drop) for _ in range(layers)]
        super().__init__(nn.Linear(inputs, d), nn.Dropout(drop), *stack)


class Wav2Vec2(nn.Module):
    """Waveforms to frames, by the library transformers; nothing is dropped or masked."""

    def __init__(self, small):
        super().__init__()
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        sizes = {}
        if small:
            sizes = dict(
                conv_dim=[16] * 7, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=64, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
            )
        self.model = Wav2Vec2Model(Wav2Vec2Config(
            hidden_dropout=0.0, activation_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0,
            apply_spec_augment=False, mask_time_prob=0.0, attn_implementation="sdpa", **sizes,
        ))
        self.model.freeze_feature_encoder()

    def forward(self, x):
        return self.model(x).last_hidden_state


class EfficientNetB2(nn.Module):
    """Images to 1408 features, by torchvision."""

    def __init__(self):
        super().__init__()
        from torchvision.models import efficientnet_b2

        network = efficientnet_b2()
        self.features, self.pool = network.features, network.avgpool

    def forward(self, x):
        return self.pool(self.features(x)).flatten(1)


class Single(nn.Module):
    """One encoder and a linear layer."""

    def __init__(self, encoder, pooled, width=512):
        super().__init__()
        self.encoder, self.pooled = encoder, pooled
        self.head = nn.Linear(width, CLASSES)

    def features(self, inputs):
        h = self.encoder(inputs[0])
        return h if self.pooled else h.mean(1)

    def loss(self, inputs, labels):
        return F.cross_entropy(self.head(self.features(inputs)), labels)

    def modulate(self):
        pass


class Balanced(nn.Module):
    """Audio and video, late-linear fusion, and MLB: a loss of every head, and a coefficient for every encoder."""

    ALPHA, BETA_MAX = 0.8, 5.0

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleList([ResNet18(1), ResNet18(3)])
        self.heads = nn.ModuleList([nn.Linear(512, CLASSES) for _ in range(2)])
        self.fusion = nn.ModuleList([nn.Linear(512, CLASSES, bias=False) for _ in range(2)])
        self.bias = nn.Parameter(torch.zeros(CLASSES))
        self.scores = None

    def loss(self, inputs, labels):
        features = [encoder(x) for encoder, x in zip(self.encoders, inputs)]
        fused = self.fusion[0](features[0]) + self.fusion[1](features[1]) + self.bias
        alone = [head(h) for head, h in zip(self.heads, features)]
        with torch.no_grad():
            rows = torch.arange(len(labels))
            self.scores = [u.float().softmax(1)[rows, labels].mean().item() for u in alone]
        return sum((F.cross_entropy(u, labels) for u in alone), F.cross_entropy(fused, labels))

    def modulate(self):
        for m in range(2):
            ratio = self.scores[1 - m] / self.scores[m]
            beta = self.BETA_MAX if ratio > 1 else 2.0
            coefficient = 1 + (beta - 1) * math.tanh(self.ALPHA * (ratio - 1))
            for part in (self.encoders[m], self.heads[m], self.fusion[m]):
                for parameter in part.parameters():
                    parameter.grad.mul_(coefficient)


def build(name, batch, small):
    def images(channels, height, width):
        x = torch.randn(batch, channels, height, width)
        return x.to(memory_format=torch.channels_last)

    audio = lambda: images(1, *((33, 24) if small else (257, 188)))
    video = lambda: images(3, *((32, 32) if small else (224, 224)))
    if name == "resnet18-audio":
        model, inputs = Single(ResNet18(1), True), [audio()]
    elif name == "resnet18-visual":
        model, inputs = Single(ResNet18(3), True), [video()]
    elif name == "resnet18-av-mlb":
        model, inputs = Balanced(), [audio(), video()]
    elif name == "conformer-layer":
        model, inputs = Single(ConformerLayer(), False), [torch.randn(batch, 8 if small else 200, 512)]
    elif name == "conformer":
        layers, d, heads = (2, 32, 4) if small else (5, 512, 8)
        model = Single(Conformer(d, layers, d, heads), False, d)
        inputs = [torch.randn(batch, 8 if small else 200, d)]
    elif name == "wav2vec2-base":
        model = Single(Wav2Vec2(small), False, 32 if small else 768)
        inputs = [torch.randn(batch, 1600 if small else 64000)]
    elif name == "efficientnet-b2":
        model = Single(EfficientNetB2(), True, 1408)
        inputs = [images(3, *((32, 32) if small else (260, 260)))]
    else:
        sys.exit(f"there is no row {name}")
    if name.startswith(("resnet18", "efficientnet")):
        model = model.to(memory_format=torch.channels_last)
    return model, inputs


def memory(what):
    """The memory that this process holds (VmRSS) or held at most (VmHWM), in MiB."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith(what + ":"))
    except (OSError, StopIteration):
        return None


def say(answer):
    print(json.dumps(answer), flush=True)


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this ends it
    parser = argparse.ArgumentParser()
    parser.add_argument("--row", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    name, precision = args.row.rsplit("-", 1)
    forward = name.endswith("-forward")
    model, inputs = build(name.removesuffix("-forward"), args.batch, args.small)
    model.train(not forward)
    labels = torch.arange(args.batch) % CLASSES
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)

    def evaluate():
        with torch.inference_mode():
            return model.features(inputs).mean().item()

    def train():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model.loss(inputs, labels)
        optimizer.zero_grad()
        loss.backward()
        model.modulate()
        optimizer.step()
        return loss.item()

    say({"ready": f"torch {torch.__version__}", "mib": memory("VmRSS")})
    for line in sys.stdin:
        words = line.split()
        if words[0] == "quit":
            say({"mib": memory("VmHWM")})
            return
        ms, loss = [], math.nan
        for _ in range(int(words[1])):
            began = time.perf_counter()
            loss = evaluate() if forward else train()
            ms.append((time.perf_counter() - began) * 1e3)
        say({"ms": ms, "loss": loss if math.isfinite(loss) else None})


main()
