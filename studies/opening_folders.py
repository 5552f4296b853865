"""How long a folder of 100,000 photographs of 12 megapixels takes to open, the first time and the second.

    python studies/opening_folders.py        # ten minutes and 2 GiB; --help lists what can be other

The photographs are 200 files of noise on scikit-learn's two pictures; the 100,000 are hard links to them, captioned in
each of the layouts that people have. Figures: docs/studies/opening.json, docs/data.md.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from PIL import Image
from sklearn.datasets import load_sample_images

from fewstep.data.kind import SourceRequest
from fewstep.data.opening import open_pictures
from fewstep.data.sources.decoding import decode
from fewstep.evaluate.report import markdown_table

SIZE = 4000, 3000
PER_FOLDER = 1000


@dataclass(frozen=True, kw_only=True)
class Opening:
    pictures: int = 100_000
    files: int = 200
    """Different photographs that the pictures are links to."""
    decoded: int = 20
    """Photographs that are decoded, to say what decoding all of them would take."""
    out: Path = field(default=Path("docs/studies/opening.json"))


def main(study: Opening) -> None:
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as folder:
        originals = write_photographs(Path(folder), study.files)
        data = Path(folder) / "data"
        data.mkdir()
        names = [f"{i // PER_FOLDER:03}/{i:07}.jpg" for i in range(study.pictures)]
        for i, name in enumerate(names):
            (data / name).parent.mkdir(exist_ok=True)
            os.link(originals[i % study.files], data / name)
        used = time.process_time()
        for original in originals[: study.decoded]:
            decode(original.read_bytes())
        one = (time.process_time() - used) / study.decoded
        for layout, caption in LAYOUTS.items():
            remove = caption(data, names)
            os.environ["FEWSTEP_CACHE"] = str(Path(folder) / "caches" / layout)
            time.sleep(3)  # what was written just now is not kept
            for which in ("first", "second"):
                wall, processor = opened(data, study.pictures)
                rows.append({"captions": layout, "opening": which, "wall, s": wall, "processor, s": processor})
            remove()
    rows.append({"captions": "any", "opening": "by decoding", "processor, s": round(one * study.pictures)})
    load = round(os.getloadavg()[0], 1)
    held = {"pictures": study.pictures, "files": study.files, "cores": os.cpu_count(), "load": load, "rows": rows}
    study.out.write_text(json.dumps(held, indent=1) + "\n")
    print("\n".join(markdown_table(rows)))


def caption_by_text(data: Path, names: list[str]) -> Callable[[], None]:
    texts = [(data / name).with_suffix(".txt") for name in names]
    for text in texts:
        text.write_text(f"photograph {text.stem}")

    def remove() -> None:
        for text in texts:
            text.unlink()

    return remove


def caption_by_metadata(data: Path, names: list[str]) -> Callable[[], None]:
    lines = [json.dumps({"file_name": name, "text": f"photograph {name}"}) for name in names]
    (data / "metadata.jsonl").write_text("\n".join(lines))
    return (data / "metadata.jsonl").unlink


def caption_by_table(data: Path, names: list[str]) -> Callable[[], None]:
    table = {
        "image": [{"bytes": None, "path": name} for name in names],
        "text": [f"photograph {name}" for name in names],
    }
    pq.write_table(pa.table(table), data / "train.parquet", row_group_size=PER_FOLDER)
    return (data / "train.parquet").unlink


def caption_as_kohya(data: Path, names: list[str]) -> Callable[[], None]:
    """The folders come 1, 2 and 3 times in an epoch. Nothing that comes after can have them as they were."""
    for folder in sorted(data.iterdir()):
        folder.rename(data / f"{int(folder.name) % 3 + 1}_{folder.name}")
    for name in names:
        place = f"{int(name[:3]) % 3 + 1}_{name}"
        (data / place).with_suffix(".caption").write_text(f"photograph {name}")
    return lambda: None


LAYOUTS = {
    ".txt beside each": caption_by_text,
    "metadata.jsonl": caption_by_metadata,
    "parquet, {bytes: null, path}": caption_by_table,
    "kohya: N_name, .caption": caption_as_kohya,
}


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Writes JPEGs that all differ, with the EXIF of a camera and room for its thumbnail."""
    bases = [
        np.asarray(Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
        for pixels in load_sample_images().images
    ]
    noise = np.random.default_rng(0).integers(-6, 7, (SIZE[1], SIZE[0], 1), dtype=np.int16)
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        levels = (bases[i % 2] + np.roll(noise, 7 * i, axis=1)).clip(0, 255).astype(np.uint8)
        Image.fromarray(levels).save(path, quality=90, exif=exif.tobytes() + bytes(20_000))
    return paths


def opened(data: Path, count: int) -> tuple[float, float]:
    """Returns seconds on the clock and of the processor, in all threads."""
    begun, used = time.perf_counter(), time.process_time()
    source = open_pictures(SourceRequest(data=str(data), resolution=512))
    seconds = round(time.perf_counter() - begun, 1), round(time.process_time() - used, 1)
    assert len(source) == count
    return seconds


if __name__ == "__main__":
    main(tyro.cli(Opening))
