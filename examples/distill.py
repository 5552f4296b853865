"""Distils the bundled teacher from Python, paints with what came out, and goes on with a run that was stopped.

python examples/distill.py                        # five minutes on two cores
python examples/distill.py --updates 30           # to see how it goes; the pictures stay blurred
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fewstep

PROMPTS = ["a large red heart on a white background", "a small cyan ring above a yellow square on a black background"]


def show_progress(progress: fewstep.Progress) -> None:
    """Prints a line now and then; a program of your own may move a bar, or raise an exception to stop."""
    if progress.done % 10 == 0 or progress.done == progress.total:
        loss = f", loss {progress.values['loss']:.4f}" if "loss" in progress.values else ""
        print(f"{progress.work}: {progress.done} of {progress.total}{loss}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=8192, help="how many scenes are drawn to learn from")
    parser.add_argument("--out", type=Path, default=Path("runs/example-distill"))
    given = parser.parse_args()

    # A recipe is a configuration with values that were tried; what is given here takes their place.
    # For a model of your own: configure("distill", "sd15-lora", teacher=FOLDER, data=PICTURES, out=…)
    config = fewstep.configure(
        "distill",
        "scenes",
        steps=given.updates,
        batch_size=given.batch_size,
        pictures=given.pictures,
        checkpoint_every=100,
        sample_every=0,
        # The average of the weights that is exported must have time to follow them in a short run.
        ema_decay=0.95 if given.updates >= 100 else 0.5,
        out=given.out,
    )

    # Called again after Ctrl-C, this goes on from the last checkpoint, and ends in the same weights.
    # `progress` is told of every update; with quiet=True nothing else would be written to the terminal.
    run = fewstep.distill(config, progress=show_progress)

    log = run.read_log()
    print(f"loss: {log[0]['loss']:.4f} at update {log[0]['step']}, {log[-1]['loss']:.4f} at {log[-1]['step']}")

    pipe = fewstep.load(run.model)
    for steps in (1, 4):
        for i, image in enumerate(pipe(PROMPTS, steps=steps, seed=0)):
            image.save(run.folder / f"prompt-{i}-steps-{steps}.png")
    print(f"model and pictures: {run.folder}")


if __name__ == "__main__":
    main()
