"""Real shards for tests: tars and parquet files as img2dataset and others write them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(colour: object = (220, 30, 30), size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, caption: str, image: bytes | None = None, **fields: object) -> dict[str, bytes]:
    """The three members that img2dataset writes for a picture."""
    described = {"caption": caption, "key": key, "status": "success", **fields}
    return {
        f"{key}.jpg": picture(kind="JPEG") if image is None else image,
        f"{key}.txt": caption.encode(),
        f"{key}.json": json.dumps(described).encode(),
    }


def shard(path: Path, keys: Sequence[str], **fields: object) -> Path:
    members: dict[str, bytes] = {}
    for key in keys:
        members |= sample(key, f"caption of {key}", **fields)
    return write_tar(path, members)


def write_parquet(path: Path, rows_per_group: int = 1000, /, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path
