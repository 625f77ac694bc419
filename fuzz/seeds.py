"""Writes fuzz/seeds/ and fuzz/pack/: small files, good ones and ones that lie. `python fuzz/seeds.py`; nothing to install."""

import hashlib
import json
import struct
from pathlib import Path

HERE = Path(__file__).parent
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


# Checkpoints.
BOTH = {"a": "1.safetensors", "b": "2.safetensors"}
WEIGHTS = {
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



# Sounds: chunks of a RIFF file.
def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def form(tag: int, channels: int, rate: int, width: int, bits: int) -> bytes:
    align = channels * width
    return struct.pack("<HHIIHH", tag, channels, rate, rate * align % 2**32, align, bits)


def sound(tag: int, channels: int, rate: int, width: int, bits: int, data: bytes = bytes(range(48))) -> bytes:
    return riff((b"fmt ", form(tag, channels, rate, width, bits)), (b"data", data))


def extended(kind: int) -> bytes:
    guid = struct.pack("<H", kind) + b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    return form(0xFFFE, 2, 16000, 2, 16) + struct.pack("<HHI", 22, 16, 3) + guid


CLAIMS = bytearray(sound(1, 1, 16000, 2, 16))
CLAIMS[40:44] = struct.pack("<I", 2**32 - 1)
WAV = {
    "empty": b"",
    "good": sound(1, 1, 16000, 2, 16),
    "stereo": sound(1, 2, 44100, 2, 16),
    "bytes": sound(1, 1, 8000, 1, 8),
    "three-bytes": sound(1, 2, 48000, 3, 24),
    "long": sound(1, 1, 22050, 4, 32),
    "floats": sound(3, 1, 16000, 4, 32, struct.pack("<4f", 0.5, -0.5, 1, 0)),
    "doubles": sound(3, 2, 16000, 8, 64, struct.pack("<4d", 0.5, -0.5, 1e308, 1e308)),
    "nan": sound(3, 1, 16000, 4, 32, struct.pack("<4f", 0.5, float("nan"), 1, 0)),
    "extensible": riff((b"fmt ", extended(1)), (b"data", bytes(16))),
    "extensible-float": riff((b"fmt ", extended(3)), (b"data", bytes(16))),
    "odd-chunks": riff((b"LIST", b"odd"), (b"fmt ", form(1, 1, 8000, 2, 16)), (b"fact", b"1234"), (b"data", bytes(8)), (b"id3 ", b"x")),
    "two-formats": riff((b"fmt ", form(1, 1, 8000, 2, 16)), (b"fmt ", form(3, 1, 8000, 4, 32)), (b"data", bytes(8))),
    "no-data": riff((b"fmt ", form(1, 1, 8000, 2, 16))),
    "data-first": riff((b"data", bytes(8)), (b"fmt ", form(1, 1, 8000, 2, 16))),
    "no-samples": sound(1, 1, 8000, 2, 16, b""),
    "zero-hertz": sound(1, 1, 0, 2, 16),
    "zero-channels": sound(1, 0, 8000, 2, 16),
    "many-channels": sound(1, 65535, 8000, 1, 8),
    "claims-gigabytes": bytes(CLAIMS),
    "truncated": sound(1, 1, 16000, 2, 16)[:-7],
    "alaw": sound(6, 1, 8000, 1, 8),
    "rf64": b"RF64\xff\xff\xff\xffWAVEds64",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "flac": b"fLaC\0\0\0\x22",
}

# Manifests: of paths, and of features.
MANIFEST = {
    "empty": b"",
    "good": b"id,label,split,actor,wav,png\na,cat,train,7,s/a.wav,p/a.png\nb,dog,val,8,s/b.wav,\nc,cat,test,7,,p/c.jpg\n",
    "numbers": b"id,label,npy\na,0,a.npy\nb,1,b.npy\nc,3,c.npy\n",
    "mark-and-crlf": b"\xef\xbb\xbfid,label,wav\r\na,x,a.wav\r\nb,y,b.wav\r\n",
    "quotes": b'id,label,wav\n"a,1","x ""y""","a b.wav"\n"b\n2",z,b.wav\n',
    "parent": b"id,label,wav\na,x,../a.wav\nb,y,s/../../b.wav\n",
    "absolute": b"id,label,wav\na,x,/etc/a.wav\nb,y,C:\\a.wav\n",
    "here": b"id,label,wav\na,x,./a.wav\nb,y,s//b.wav\n",
    "same-id": b"id,label,wav\na,x,a.wav\na,y,b.wav\n",
    "same-column": b"id,label,wav,wav\na,x,a.wav,b.wav\n",
    "no-label": b"id,wav\na,a.wav\n",
    "no-cell": b"id,label,wav\na,,a.wav\n,x,b.wav\n",
    "negative-label": b"id,label,wav\na,-1,a.wav\nb,1000001,b.wav\n",
    "unknown-part": b"id,label,split,wav\na,x,dev,a.wav\n",
    "ragged": b"id,label,wav\na,x\nb,y,b.wav,more\n",
    "not-utf-8": b"id,label,wav\n\xff,x,a.wav\n",
    "control": b"id,label,wav\n\x1b[31ma,x\x07,a\x1b.txt\n",
    "features": b"id,y,split,group,a:0,a:1,b_0\nr0,x,train,p,1,2,3\nr1,y,train,q,4,5,\nr2,x,val,p,1,1,6\nr3,y,test,q,,,6\n",
    "features-numbers": b"y,a:0\n0,1e308\n1,-1e-308\n0,nan\n2,inf\n",
    "features-empty-cell": b"y,a:0,a:1\n0,1,\n1,2,3\n",
    "features-mixed": b"y,a:0\n0,1\nx,2\n",
}


# Packs: the index, and a good table and shard beside it.
def tensors(entries: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    header, body = {}, b""
    for name, (dtype, shape, data) in entries.items():
        header[name] = entry(dtype, shape, len(body), len(body) + len(data))
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + body


def integers(*values: int) -> tuple[str, list[int], bytes]:
    return "I64", [len(values)], struct.pack(f"<{len(values)}q", *values)


TABLE = tensors({
    "y": integers(0, 1, 0, 1),
    "length_audio": integers(2, 0, 1, 3),
    "length_face": integers(1, 1, 0, 1),
    "actor": integers(1, 1, 2, 2),
    "train_index": integers(0, 1),
    "val_index": integers(2),
    "test_index": integers(3),
})
SHARD_0 = tensors({
    "x_audio": ("F32", [6, 2], struct.pack("<12f", *range(12))),
    "x_face": ("U8", [4, 1, 2, 2, 3], bytes(range(48))),
    "x_wave": ("I16", [4, 5], struct.pack("<20h", *range(-10, 10))),
    "x_half": ("F16", [4, 2], bytes(16)),
})


def described(name: str, rows: int, content: bytes) -> dict:
    return {"file": name, "rows": rows, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def modality(name: str, dims: list[int], ragged: bool, frames: bool, element: str) -> dict:
    return {"name": name, "dims": dims, "ragged": ragged, "frames": frames, "element": element}


INDEX = {
    "format": 1,
    "name": "toy",
    "preset": {"settings": {}, "plan": "00"},
    "rows": 4,
    "classes": ["x", "y"],
    "modalities": [
        modality("audio", [3, 2], True, False, "F32"),
        modality("face", [1, 2, 2, 3], False, True, "U8"),
        modality("wave", [5], False, False, "I16"),
        modality("half", [2], False, False, "F16"),
    ],
    "shards": [described("shard-00000.safetensors", 4, SHARD_0)],
    "table": described("table.safetensors", 4, TABLE),
    "ids": ["a", "b", "c", "d"],
}
FILE = b"\n--file--\n"


def pack(table: bytes = b"", shard: bytes = b"", **changes: object) -> bytes:
    index = INDEX | changes
    if shard:
        index["shards"] = [described("shard-00000.safetensors", index["rows"], shard)]
    if table:
        index["table"] = described("table.safetensors", index["rows"], table)
    parts = [json.dumps(index, separators=(",", ":")).encode()]
    if table or shard:
        parts += [table or TABLE, shard or SHARD_0]
    return FILE.join(parts)


FIRST = INDEX["shards"][0]
NONE = tensors({"x_a": ("F32", [0, 2**38], b"")})
PACK = {
    "empty": b"",
    "good": pack(),
    "with-its-files": pack(TABLE, SHARD_0),
    "other-format": pack(format=2),
    "more-rows": pack(rows=5),
    "no-rows": pack(rows=0, ids=[], shards=[]),
    "rows-overflow": pack(shards=[FIRST | {"rows": 2**64 - 1}, FIRST | {"rows": 5}]),
    "same-id": pack(ids=["a", "a", "c", "d"]),
    "path": pack(shards=[FIRST | {"file": "../shard-00000.safetensors"}]),
    "huge": pack(modalities=[modality("audio", [2**40, 2**40], True, False, "F32")]),
    "empty-row": pack(modalities=[modality("audio", [3, 0], True, False, "F32")]),
    "huge-and-nowhere": pack(
        tensors({"y": integers(0, 1, 0, 1), "length_a": integers(0, 0, 0, 0)}),
        NONE,
        modalities=[modality("a", [1, 2**38], True, False, "F32")],
    ),
    "same-modality": pack(modalities=[INDEX["modalities"][0]] * 2),
    "no-modality": pack(modalities=[]),
    "frames-of-floats": pack(modalities=[modality("audio", [1, 3, 2, 3], False, True, "F32")]),
    "label-out-of-range": pack(tensors({"y": integers(0, 1, 2, -1)})),
    "list-out-of-range": pack(tensors({"y": integers(0, 1, 0, 1), "train_index": integers(0, 9)})),
    "length-out-of-range": pack(tensors({"y": integers(0, 1, 0, 1), "length_audio": integers(9, 0, 0, -1)})),
    "nan": pack(b"", tensors({"x_a": ("F32", [4, 1], struct.pack("<4f", 0, float("nan"), 1, 2))}),
                modalities=[modality("a", [1], False, False, "F32")]),
    "not-json": b"{[",
    "control": pack(name="\x1b[2J", classes=["\x07", "y"]),
}

if __name__ == "__main__":
    for target, seeds in {"weights": WEIGHTS, "wav": WAV, "manifest": MANIFEST, "pack": PACK}.items():
        folder = HERE / "seeds" / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for name, content in seeds.items():
            (folder / name).write_bytes(content)
        print(target, len(seeds), "seeds,", sum(map(len, seeds.values())), "bytes")
    (HERE / "pack").mkdir(exist_ok=True)
    (HERE / "pack/table.safetensors").write_bytes(TABLE)
    (HERE / "pack/shard-00000.safetensors").write_bytes(SHARD_0)
