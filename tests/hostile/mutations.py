"""Hand-made damage, each piece decided by a seeded generator: to bytes, JSON, headers, settings, archives, pictures."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

OUTSIDE = "OUTSIDE-FOLDER"
"""Stands in mutated content for the folder that nothing may be read of."""
_NUMBERS = (
    0, 1, -1, 2, 3, 7, 76, 77, 78, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**8,
    10**30, 10**39, 0.5, -0.0, 1e-300, 1e300, 1e30, 8.5,
)  # fmt: skip
_TEXTS = (
    "", " ", "\x00", "\x1b[31m\x1b]0;x\x07", "\u202egnp.exe", "\ud800", "🙂", "a" * 5000, "..", "../" + OUTSIDE + "/secret",
    OUTSIDE + "/secret.png", "/etc/passwd", "/dev/zero", "/proc/self/mem", "org/name", "s3://bucket/x", "file:///etc/passwd",
    "http://127.0.0.1:9/x", "~/x", "x\ny", "%2e%2e/secret", "C:\\x", "(a+)+$", "((a*)*)*b|(.*)*x", "[" * 200, "{" * 200,
    "<b>", "[/bold]", "{0}", "%s", "nan", "inf", "1e999", "0x_", "1" * 5000, "true", "null", "Negative prompt: ",
    "__class__", "epsilon", "v_prediction", "LCM-LoRA", "relu", "gelu", "torch.float16",
)  # fmt: skip
_RAW = {"@huge@": "1" + "0" * 400, "@endless@": "9" * 6000, "@inf@": "1e999", "@nan@": "NaN", "@minus@": "-Infinity",
        "@deep@": "[" * 500 + "]" * 500, "@deeper@": '{"a":' * 20000 + "1" + "}" * 20000}  # fmt: skip
"""What json.dumps would not write."""
_TOKENS = [
    b"\x00", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff" * 8, b"\n", b'"', b"{", b"[", b"]", b"}", b",", b": ", b"&a ",
    b"*a", b"!!python/object:os.system ", b"!!int 0x_", b"<<: ", b"../", b"\x1b[2J", b"\xed\xa0\x80", b"\xc0\xaf", b"1e999",
    b"99999999999999999999", b"-1", b"NaN", b"null", b"true", b"\\u0000", b"\\", b"%s", b"'", b"\t", b"\r\n", b"--- ", b"? ",
]  # fmt: skip


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """Flips, cuts, repeats, inserts, overwrites, a few times."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(content) + 1)
        length = rng.choice((1, 2, 4, 8, 64, max(1, len(content) // 3)))
        match rng.randrange(8):
            case 0 if content:
                content[place % len(content)] ^= 1 << rng.randrange(8)
            case 1 if content:
                content[place % len(content)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x22))
            case 2:
                del content[place : place + length]
            case 3:
                content[place:place] = content[place : place + length] * rng.choice((1, 2, 50))
            case 4:
                content[place:place] = rng.choice(_TOKENS) * rng.choice((1, 1, 2, 300))
            case 5:
                content[place : place + 8] = rng.choice(_TOKENS)
            case 6:
                content[place : place + 8] = struct.pack(rng.choice("<>") + "q", rng.choice((-1, 0, 1, 2**62, 2**31)))
            case 7:
                del content[place:]
    return bytes(content[: 2**22])


def make_value(rng: Random, depth: int = 0) -> Any:
    """Returns a value of JSON that no writer would mean."""
    kind = rng.randrange(10 if depth < 3 else 7)
    if kind < 2:
        return rng.choice(_NUMBERS)
    if kind < 4:
        return rng.choice(_TEXTS)
    if kind < 6:
        return rng.choice((None, True, False, [], {}, [[]], [{}], [None]))
    if kind == 6:
        return rng.choice(tuple(_RAW))
    if kind == 7:
        return [make_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {rng.choice(_TEXTS): make_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return [rng.choice(_NUMBERS)] * rng.choice((2, 3, 4, 6, 1000))


def mutate_value(rng: Random, value: Any) -> Any:
    """Returns JSON with one place of it changed; `value` stays as it is."""
    if isinstance(value, dict) and value and rng.random() < 0.93:
        name = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(12):
            case 0:
                del changed[name]
            case 1:
                changed[rng.choice(_TEXTS)] = make_value(rng)
            case 2:
                changed[rng.choice(_TEXTS)] = changed.pop(name)
            case 3:
                changed[name] = changed[rng.choice(list(value))]
            case 4 | 5 | 6 | 7 | 8:
                changed[name] = make_value(rng) if rng.random() < 0.6 else mutate_value(rng, value[name])
            case _:
                changed[name] = mutate_value(rng, value[name])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        new = [mutate_value(rng, value[place])] if rng.random() < 0.7 else rng.choice(([], [make_value(rng)] * 2))
        return [*value[:place], *new, *value[place + 1 :]]
    return make_value(rng)


def dump(value: Any) -> bytes:
    """Writes JSON, with what json.dumps would not write where its names stand."""
    text = json.dumps(value, ensure_ascii=True)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


def mutate_json(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.15:
        return mutate_bytes(rng, data)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # damaged before
        return mutate_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        value = mutate_value(rng, value)
    return dump(value)


def mutate_yaml(rng: Random, data: bytes) -> bytes:
    """JSON is YAML; besides, what only YAML has."""
    import yaml

    match rng.randrange(5):
        case 0:
            return mutate_bytes(rng, data)
        case 1:
            rows = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, rng.randrange(2, 9))]
            return b"a0: &a0 [x]\n" + "\n".join(rows).encode() + b"\n" + data
        case 2:
            odd = ("2024-01-01", "!!binary x", "!!set {a, b}", "!!timestamp x", "0x_", "190:20:30", ".inf", "!!int ''", "? [a]\n: b",
                   "- " * 3000 + "x", "[" * 3000, "'" + "x" * 10**5 + "'", "!!bool x", "0b_", "=", "&a", "*a", "1" * 5000)  # fmt: skip
            name = rng.choice(("steps", "teacher", "lr", "made_with", "guidance_range", "<<"))
            return data + f"\n{name}: {rng.choice(odd)}\n".encode()
        case _:
            return mutate_json(rng, json.dumps(yaml.safe_load(data)).encode())


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
        said = header.setdefault("__metadata__", {})
        name = rng.choice((*said, "fewstep.omega", "fewstep.steps", "fewstep.teacher", "lora_adapter_metadata", "ss_network_alpha",
                           "modelspec.prediction_type", "fewstep.unet", "fewstep.scheduler"))  # fmt: skip
        if str(said.get(name, "")).startswith("{") and rng.random() < 0.8:
            said[name] = mutate_json(rng, said[name].encode()).decode("utf-8", "replace")
        else:
            said[name] = str(rng.choice((*_TEXTS, *_NUMBERS)))[:5000] if rng.random() < 0.95 else make_value(rng)
        return
    name = rng.choice(names)
    entry = header[name]
    if not isinstance(entry, dict) or not {"dtype", "shape"} <= entry.keys() or not isinstance(entry["shape"], list):
        return  # damaged before
    match rng.randrange(6):
        case 0:
            entry["dtype"] = rng.choice(_DTYPES)
        case 1:
            entry["shape"] = [
                [], [0], [1], [2, 2], [*entry["shape"], 1], entry["shape"][:-1], entry["shape"][::-1], [0, *entry["shape"]],
                [2**31, 2**31], [2**63], [-1], [1] * 70, [1025, *entry["shape"][1:]],
            ][rng.randrange(13)]  # fmt: skip
        case 2:
            del header[name]
        case 3:
            header[rng.choice((name + ".x", name.replace("lora_A", "lora_down"), name.replace("weight", "alpha"), name.upper(),
                               name.replace(".", "_"), name + ".hada_w1_a", "bundle_emb.x.clip_l", rng.choice(_TEXTS)))] = header.pop(name)  # fmt: skip
        case 4:
            header[rng.choice((name.rpartition(".")[0] + ".alpha", name.replace("lora_A.weight", "dora_scale"),
                               "bundle_emb.\x1b[31m.string_to_param", "ztsnr", "v_pred"))] = dict(entry)  # fmt: skip
        case 5:
            header[name] = mutate_value(rng, entry)


def _lay_out(header: dict[str, Any], body: bytes) -> bytes:
    """Gives every entry bytes of the size that it says, where it says one."""
    place = 0
    for name, entry in header.items():
        if name == "__metadata__" or not isinstance(entry, dict):
            continue
        try:
            size = _BYTES.get(entry["dtype"], 1)
            for length in entry["shape"]:
                size *= length
        except (KeyError, TypeError):
            continue
        if isinstance(size, int) and 0 <= size <= 2**22:
            entry["data_offsets"] = [place, place + size]
            place += size
    return _pack(dump(header), (body * (place // max(1, len(body)) + 1))[:place] if body else b"\0" * place)


def _pack(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def mutate_settings(rng: Random, data: bytes) -> bytes:
    """Settings texts, whose parsers look for names and quotes: made long, and full of both."""
    pieces = (
        "a",
        "a ",
        '"',
        '\\"',
        "\\",
        ": ",
        ", ",
        "Steps: 4",
        'x: "',
        "Negative prompt: ",
        "\n",
        "-",
        "/",
        "\t",
        "é",
        "Lora 1: ",
        "\x1b[31m",
        '"\\ud800"',
    )
    text = data.decode("utf-8", "replace")
    for _ in range(rng.choice((1, 2, 5))):
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice(pieces) * rng.choice((1, 2, 100, 80_000)) + text[place:]
    return (
        text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.8
        else mutate_bytes(rng, text.encode("utf-8", "surrogatepass"))
    )


def mutate_lines(rng: Random, data: bytes) -> bytes:
    """JSON by lines: one of them is changed, or the bytes of all."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    if rng.random() < 0.25 or not lines[place].startswith(b"{"):
        return mutate_bytes(rng, data)
    lines[place] = mutate_json(rng, lines[place])
    return b"\n".join(lines)


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
            chunks.insert(1, rng.choice((
                (b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(b"a" * 10**6)), (b"zTXt", b"parameters\0\0" + zlib.compress(b"x: \"" * 10**5)),
                (b"tEXt", b"parameters\0" + mutate_settings(rng, b"a\nSteps: 1")), (b"iCCP", b"x\0\0" + zlib.compress(b"\0" * 10**6)),
                (b"eXIf", b"Exif\0\0" + mutate_bytes(rng, b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")),
                (b"acTL", struct.pack(">II", 2**31, 0)), (b"PLTE", b"\0" * 7), (b"tRNS", b"\0" * 900), (b"gAMA", b""),
            )))  # fmt: skip
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


Mutation = Callable[[Random, bytes], bytes]
