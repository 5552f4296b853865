"""Hand-made damage, each piece decided by a seeded generator: to bytes, JSON, headers, settings, archives, pictures."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

OUTSIDE = "OUTSIDE-FOLDER"
"""Stands in mutated content for the folder that nothing may be read of."""
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    76,
    77,
    78,
    255,
    2**15,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
    10**8,
    10**30,
    10**39,
    0.5,
    -0.0,
    1e-300,
    1e300,
    1e30,
    8.5,
)
TEXTS = (
    "",
    " ",
    "\x00",
    "\x1b[31m\x1b]0;x\x07",
    "\u202egnp.exe",
    "\ud800",
    "🙂",
    "a" * 5000,
    "..",
    "../" + OUTSIDE + "/secret",
    OUTSIDE + "/secret.png",
    "/etc/passwd",
    "/dev/zero",
    "/proc/self/mem",
    "org/name",
    "s3://bucket/x",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x",
    "~/x",
    "x\ny",
    "%2e%2e/secret",
    "C:\\x",
    "(a+)+$",
    "((a*)*)*b|(.*)*x",
    "[" * 200,
    "{" * 200,
    "<b>",
    "[/bold]",
    "{0}",
    "%s",
    "nan",
    "inf",
    "1e999",
    "0x_",
    "1" * 5000,
    "true",
    "null",
    "Negative prompt: ",
    "__class__",
    "epsilon",
    "v_prediction",
    "LCM-LoRA",
    "relu",
    "gelu",
    "torch.float16",
)
_RAW = {
    "@huge@": "1" + "0" * 400,
    "@endless@": "9" * 6000,
    "@inf@": "1e999",
    "@nan@": "NaN",
    "@minus@": "-Infinity",
    "@deep@": "[" * 500 + "]" * 500,
    "@deeper@": '{"a":' * 20000 + "1" + "}" * 20000,
}
"""What json.dumps would not write."""
_TOKENS = [
    b"\x00",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xff" * 8,
    b"\n",
    b'"',
    b"{",
    b"[",
    b"]",
    b"}",
    b",",
    b": ",
    b"&a ",
    b"*a",
    b"!!python/object:os.system ",
    b"!!int 0x_",
    b"<<: ",
    b"../",
    b"\x1b[2J",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"1e999",
    b"99999999999999999999",
    b"-1",
    b"NaN",
    b"null",
    b"true",
    b"\\u0000",
    b"\\",
    b"%s",
    b"'",
    b"\t",
    b"\r\n",
    b"--- ",
    b"? ",
]


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
        return rng.choice(NUMBERS)
    if kind < 4:
        return rng.choice(TEXTS)
    if kind < 6:
        return rng.choice((None, True, False, [], {}, [[]], [{}], [None]))
    if kind == 6:
        return rng.choice(tuple(_RAW))
    if kind == 7:
        return [make_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {rng.choice(TEXTS): make_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return [rng.choice(NUMBERS)] * rng.choice((2, 3, 4, 6, 1000))


def mutate_value(rng: Random, value: Any) -> Any:
    """Returns JSON with one place of it changed; `value` stays as it is."""
    if isinstance(value, dict) and value and rng.random() < 0.93:
        name = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(12):
            case 0:
                del changed[name]
            case 1:
                changed[rng.choice(TEXTS)] = make_value(rng)
            case 2:
                changed[rng.choice(TEXTS)] = changed.pop(name)
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
    match rng.randrange(5):
        case 0:
            return mutate_bytes(rng, data)
        case 1:
            rows = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, rng.randrange(2, 9))]
            return b"a0: &a0 [x]\n" + "\n".join(rows).encode() + b"\n" + data
        case 2:
            odd = (
                "2024-01-01",
                "!!binary x",
                "!!set {a, b}",
                "!!timestamp x",
                "0x_",
                "190:20:30",
                ".inf",
                "!!int ''",
                "? [a]\n: b",
                "- " * 3000 + "x",
                "[" * 3000,
                "'" + "x" * 10**5 + "'",
                "!!bool x",
                "0b_",
                "=",
                "&a",
                "*a",
                "1" * 5000,
            )
            name = rng.choice(("steps", "teacher", "lr", "made_with", "guidance_range", "<<"))
            return data + f"\n{name}: {rng.choice(odd)}\n".encode()
        case _:
            changed = mutate_value(rng, json.loads(data))  # JSON is YAML, but for its halves of surrogate pairs
            return dump(json.loads(json.dumps(changed).replace("\\ud", "u")))


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


Mutation = Callable[[Random, bytes], bytes]
