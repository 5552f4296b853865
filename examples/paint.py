"""Paints: the same prompts and seeds in 1, 2, 4 and 8 steps, and a picture that starts from another.

python examples/paint.py                          # the bundled model; ten seconds
python examples/paint.py --model runs/demo/model  # or any few-step model
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import fewstep

PROMPTS = [
    "a small red star above a blue ring on a white background",
    "a large green heart on a grey background",
    "a small yellow circle left of a purple cross on a black background",
]


def tile(rows: list[list[Image.Image]]) -> Image.Image:
    """Puts pictures of one size into a grid."""
    side = rows[0][0].width
    sheet = Image.new("RGB", (side * len(rows[0]), side * len(rows)))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * side, y * side))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes-lcm", help="a few-step model: a folder, a Hub id or a bundled name")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    given = parser.parse_args()

    pipe = fewstep.load(given.model)
    # Picture i has a generator of its own, seeded with seed + i: it is the same in any batch and on any machine.
    rows = [pipe(PROMPTS, steps=steps, seed=7) for steps in given.steps]
    given.out.mkdir(parents=True, exist_ok=True)
    tile(rows).save(given.out / "steps.png")

    # A higher guidance_scale follows the prompt more strictly; 1 is none.
    strict = [pipe(PROMPTS[:1], steps=4, seed=7, guidance_scale=scale)[0] for scale in (2, 5, 9)]
    tile([strict]).save(given.out / "guidance.png")

    # strength says how much of the picture may change: 1 keeps nothing of it.
    changed = pipe("a small green star above a blue ring on a white background", steps=4, init_image=rows[-1][0],
                   strength=0.6)  # fmt: skip
    tile([[rows[-1][0], changed[0]]]).save(given.out / "changed.png")
    print(f"pictures: {given.out}")


if __name__ == "__main__":
    main()
