"""Writes fuzz/seeds/weights/: small checkpoints, good ones and ones that lie. `python fuzz/seeds.py`; nothing to install."""

import json
import struct
from pathlib import Path

FOLDER = Path(__file__).parent / "seeds/weights"
SHARD = b"\n--shard--\n"


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file(header: object, data: int = 0, length: int | None = None) -> bytes:
    """A file of this header and so many bytes of data; `header` may be text or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(range(1, 1 + data))


GOOD = {
    "__metadata__": {"format": "pt"},
    "a": entry("F32", [1], 0, 4),
    "b": entry("F64", [2], 4, 20),
    "layer.weight": entry("F16", [2, 3], 20, 32),
    "count": entry("I64", [], 32, 40),
    "none": entry("BF16", [0, 5], 40, 40),
}
A, B = file({"a": entry("F32", [1], 0, 4)}, 4), file({"b": entry("BF16", [2], 0, 4)}, 4)


def index(weight_map: dict[str, str], *shards: bytes) -> bytes:
    text = json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map}, separators=(",", ":")).encode()
    return SHARD.join([text, *shards])


def one(dtype: str, shape: list[int], begin: int, end: int, data: int) -> bytes:
    return file({"a": entry(dtype, shape, begin, end)}, data)


BOTH = {"a": "1.safetensors", "b": "2.safetensors"}
SEEDS = {
    "good": file(GOOD, 40),
    "empty": b"",
    "no-tensors": file({}),
    "header-beyond-the-file": file(GOOD, 40, 10_000),
    "header-huge": file({}, 0, 2**64 - 1),
    "header-at-the-limit": file({}, 0, 100_000_000),
    "truncated": file(GOOD, 40)[:-7],
    "too-long": file(GOOD, 40) + b"more",
    "overlap": file({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}, 6),
    "gap": file({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, 12),
    "out-of-range": one("F32", [2], 4, 12, 4),
    "backwards": one("F32", [1], 4, 0, 4),
    "offsets-huge": one("F32", [1], 2**64 - 8, 2**64 - 4, 4),
    "shape-huge": one("F32", [2**62, 8], 0, 4, 4),
    "shape-huge-beside-zero": one("F64", [0, 2**40, 2**40], 0, 0, 0),
    "shape-negative": one("F32", [-1], 0, 4, 4),
    "shape-long": one("F32", [1] * 20, 0, 4, 4),
    "dtype-unknown": one("F99", [1], 0, 4, 4),
    "dtype-half-bytes": one("F4", [3], 0, 2, 2),
    "twice": file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4),
    "metadata-twice": file(b'{"__metadata__":{"format":"pt","format":"np"}}'),
    "metadata-numbers": file(b'{"__metadata__":{"format":1}}'),
    "field-unknown": file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"\\u001b[31mx":1}}', 4),
    "not-utf-8": file(b'{"\xff\xfe":{}}'),
    "not-json": file(b"[[[[[[[["),
    "control-characters": file(b'{"\\u001b[2J\\u0007":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4),
    "zip": b"PK\x03\x04\x14\x00\x08\x08archive/data.pkl",
    "pickle": b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u.",
    "index": index(BOTH, A, B),
    "index-shard-missing": index(BOTH, A),
    "index-swapped": index(BOTH, B, A),
    "index-extra-tensor": index({"a": "1.safetensors"}, file(GOOD, 40)),
    "index-lacks-tensor": index(BOTH | {"c": "2.safetensors"}, A, B),
    "index-path": index({"a": "../1.safetensors"}, A),
    "index-pickle": index({"a": "1.bin"}, A),
    "index-twice": SHARD.join([b'{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}', A, B]),
    "index-no-map": SHARD.join([b'{"metadata":{}}', A]),
    "index-bad-shard": index(BOTH, A, file(GOOD, 40)[:20]),
}

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for name, content in SEEDS.items():
        (FOLDER / name).write_bytes(content)
    print(len(SEEDS), "seeds,", sum(map(len, SEEDS.values())), "bytes")
