"""Paints in a style and in few steps at once: a style LoRA and an LCM-LoRA together, at several scales.

python examples/style_mix.py                      # trains both first, six minutes on two cores
python examples/style_mix.py --style runs/style/model --lcm-lora runs/lcm-lora/model
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fewstep

PROMPT = "a large pink heart on a white background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--style", default="", help="a style LoRA for the bundled teacher; trained if not given")
    parser.add_argument("--lcm-lora", default="", help="an LCM-LoRA of the bundled teacher; trained if not given")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.5, 0.8, 1.0])
    parser.add_argument("--out", type=Path, default=Path("runs/example-style-mix"))
    given = parser.parse_args()

    size = {"steps": given.updates, "batch_size": given.batch_size, "pictures": 400}
    # `scenes-leaning` is the bundled world in another look: the style to learn.
    style = (
        given.style
        or fewstep.train_lora(
            fewstep.configure("train-lora", data="scenes-leaning", out=given.out / "style", **size)
        ).model
    )
    lcm_lora = given.lcm_lora or fewstep.distill(
        fewstep.configure("distill", "scenes-lora", sample_every=0, out=given.out / "lcm-lora", **size)
    ).model  # fmt: skip

    # θ + λ1·style + λ2·LCM-LoRA: nothing is trained again. Each scale stands after a colon.
    for scale in given.scales:
        pipe = fewstep.load("scenes", loras=[f"{lcm_lora}:1.0", f"{style}:{scale:g}"])
        pipe(PROMPT, steps=4, seed=3)[0].save(given.out / f"style-{scale:g}.png")

    # The same sum as one file, which other tools take; it keeps what says how to paint with it.
    both = fewstep.combine(
        fewstep.configure("combine", lora=[f"{lcm_lora}:1.0", f"{style}:0.8"], out=given.out / "both")
    )
    fewstep.load(both)(PROMPT, steps=4, seed=3)[0].save(given.out / "both.png")
    print(f"pictures: {given.out}   one LoRA of both: {both}")


if __name__ == "__main__":
    main()
