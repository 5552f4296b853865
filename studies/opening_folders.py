"""How long a folder of 100,000 photographs of 12 megapixels takes to open, the first time and the second.

    python studies/opening_folders.py        # five minutes and 1 GiB; --help lists what can be other

The photographs are 200 files of noise on scikit-learn's two pictures; the 100,000 are hard links to them, each with a
caption in a .txt of its own. Figures: docs/studies/opening.json, docs/data.md.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
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
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as folder:
        originals = write_photographs(Path(folder), study.files)
        data = Path(folder) / "data"
        for i in range(study.pictures):
            link(data / f"{i // PER_FOLDER:04}" / f"{i:07}", originals[i % study.files], i)
        os.environ["FEWSTEP_CACHE"] = str(Path(folder) / "cache")
        time.sleep(3)  # what was written just now is not kept
        begun = time.perf_counter()
        for original in originals[: study.decoded]:
            decode(original.read_bytes())
        one = (time.perf_counter() - begun) / study.decoded
        rows = [
            {"opening": name, "wall, s": round(wall, 1), "processor, s": round(processor, 1)}
            for name, (wall, processor) in (("first", opened(data)), ("second", opened(data)))
        ]
        rows.append({"opening": "by decoding, in one thread", "wall, s": round(one * study.pictures)})
    load = round(os.getloadavg()[0], 1)
    held = {"pictures": study.pictures, "files": study.files, "cores": os.cpu_count(), "load": load, "rows": rows}
    study.out.write_text(json.dumps(held, indent=1) + "\n")
    print("\n".join(markdown_table(rows)))


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


def link(stem: Path, original: Path, number: int) -> None:
    """Makes a picture and its caption."""
    if number % PER_FOLDER == 0:
        stem.parent.mkdir(parents=True)
    os.link(original, stem.with_suffix(".jpg"))
    stem.with_suffix(".txt").write_text(f"photograph number {number}")


def opened(data: Path) -> tuple[float, float]:
    """Returns seconds on the clock and of the processor, in all threads."""
    begun, used = time.perf_counter(), time.process_time()
    open_pictures(SourceRequest(data=str(data), resolution=512))
    return time.perf_counter() - begun, time.process_time() - used


if __name__ == "__main__":
    main(tyro.cli(Opening))
