"""Damage inside the layout of safetensors and PNG files, so that readers come to what is in them."""

from __future__ import annotations

import json
import math
import struct
import zlib
from random import Random
from typing import Any

from mutations import NUMBERS, TEXTS, dump, make_value, mutate_bytes, mutate_json, mutate_settings, mutate_value

_DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "I64",
    "I32",
    "I8",
    "U8",
    "U16",
    "U64",
    "BOOL",
    "C64",
    "F6_E2M3",
)
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U16": 2}


def mutate_safetensors(rng: Random, data: bytes) -> bytes:
    """Changes entries and metadata, and mostly writes offsets that fit them, so that readers come to the contents."""
    if rng.random() < 0.12:
        return mutate_bytes(rng, data)
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    for _ in range(rng.choice((1, 1, 2, 4))):
        _mutate_header(rng, header)
    if rng.random() < 0.3 and body:
        place = rng.randrange(len(body))
        body[place : place + 4] = rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0"))
    return _lay_out(header, bytes(body)) if rng.random() < 0.85 else _pack(dump(header), bytes(body))


def _mutate_header(rng: Random, header: dict[str, Any]) -> None:
    names = [name for name in header if name != "__metadata__"]
    if rng.random() < 0.4 or not names:
        _mutate_metadata(rng, header.setdefault("__metadata__", {}))
        return
    name = rng.choice(names)
    entry = header[name]
    if not isinstance(entry, dict) or not {"dtype", "shape"} <= entry.keys() or not isinstance(entry["shape"], list):
        return  # damaged before
    _mutate_entry(rng, header, name, entry)


def _mutate_metadata(rng: Random, said: dict[str, Any]) -> None:
    """Says something else of the whole file."""
    name = rng.choice(
        (
            *said,
            "fewstep.omega",
            "fewstep.steps",
            "fewstep.teacher",
            "lora_adapter_metadata",
            "ss_network_alpha",
            "modelspec.prediction_type",
            "fewstep.unet",
            "fewstep.scheduler",
        )
    )
    if isinstance(said.get(name), str) and said[name].startswith("{") and rng.random() < 0.8:
        said[name] = mutate_json(rng, said[name].encode()).decode("utf-8", "replace")
    else:
        said[name] = str(rng.choice((*TEXTS, *NUMBERS)))[:5000] if rng.random() < 0.95 else make_value(rng)


def _mutate_entry(rng: Random, header: dict[str, Any], name: str, entry: dict[str, Any]) -> None:
    """Says something else of one tensor, or calls it something else."""
    match rng.randrange(6):
        case 0:
            entry["dtype"] = rng.choice(_DTYPES)
        case 1:
            entry["shape"] = [
                [],
                [0],
                [1],
                [2, 2],
                [*entry["shape"], 1],
                entry["shape"][:-1],
                entry["shape"][::-1],
                [0, *entry["shape"]],
                [2**31, 2**31],
                [2**63],
                [-1],
                [1] * 70,
                [1025, *entry["shape"][1:]],
            ][rng.randrange(13)]
        case 2:
            del header[name]
        case 3:
            header[
                rng.choice(
                    (
                        name + ".x",
                        name.replace("lora_A", "lora_down"),
                        name.replace("weight", "alpha"),
                        name.upper(),
                        name.replace(".", "_"),
                        name + ".hada_w1_a",
                        "bundle_emb.x.clip_l",
                        rng.choice(TEXTS),
                    )
                )
            ] = header.pop(name)
        case 4:
            header[
                rng.choice(
                    (
                        name.rpartition(".")[0] + ".alpha",
                        name.replace("lora_A.weight", "dora_scale"),
                        "bundle_emb.\x1b[31m.string_to_param",
                        "ztsnr",
                        "v_pred",
                    )
                )
            ] = dict(entry)
        case 5:
            header[name] = mutate_value(rng, entry)


def _lay_out(header: dict[str, Any], body: bytes) -> bytes:
    """Gives every entry bytes of the size that it says, where it says one."""
    place = 0
    for name, entry in header.items():
        if name == "__metadata__" or not isinstance(entry, dict):
            continue
        try:
            lengths, width = list(entry["shape"]), _BYTES.get(entry["dtype"], 1)
        except (KeyError, TypeError):
            continue
        if not all(isinstance(length, int) for length in lengths):  # a text times a huge number fills the memory
            continue
        size = width * math.prod(lengths)
        if 0 <= size <= 2**22:
            entry["data_offsets"] = [place, place + size]
            place += size
    return _pack(dump(header), (body * (place // max(1, len(body)) + 1))[:place] if body else b"\0" * place)


def _pack(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def mutate_png(rng: Random, data: bytes) -> bytes:
    """Changes chunks of a PNG and writes their checksums anew; other pictures are damaged by the byte."""
    if not data.startswith(b"\x89PNG") or rng.random() < 0.4:
        return mutate_bytes(rng, data)
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    at = rng.randrange(len(chunks))
    kind, content = chunks[at]
    match rng.randrange(6):
        case 0:
            head = bytearray(chunks[0][1])
            head[rng.choice((0, 4)) : 8] = struct.pack(">I", rng.choice((0, 1, 30_000, 2**31 - 1, 2**32 - 1)))[:4]
            chunks[0] = (b"IHDR", bytes(head))
        case 1:
            chunks[at] = (kind, mutate_bytes(rng, content))
        case 2:
            chunks.insert(
                1,
                rng.choice(
                    (
                        (b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(b"a" * 10**6)),
                        (b"zTXt", b"parameters\0\0" + zlib.compress(b'x: "' * 10**5)),
                        (b"tEXt", b"parameters\0" + mutate_settings(rng, b"a\nSteps: 1")),
                        (b"iCCP", b"x\0\0" + zlib.compress(b"\0" * 10**6)),
                        (
                            b"eXIf",
                            b"Exif\0\0" + mutate_bytes(rng, b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
                        ),
                        (b"acTL", struct.pack(">II", 2**31, 0)),
                        (b"PLTE", b"\0" * 7),
                        (b"tRNS", b"\0" * 900),
                        (b"gAMA", b""),
                    )
                ),
            )
        case 3:
            del chunks[at]
        case 4:
            chunks.insert(rng.randrange(len(chunks)), chunks[at])
        case 5:
            chunks[at] = (rng.choice((b"IDAT", b"IEND", b"fdAT", b"cHRM", b"tEXt")), content)
    packed = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return data[:8] + b"".join(packed)
