"""The few-step model that the package ships, from a run: its UNet in fp16, its scheduler and what it records.

python studies/bundle.py runs/scenes-long
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from diffusers import LCMScheduler, UNet2DConditionModel

from fewstep import assets


def main(run: Path) -> None:
    folder = assets.scenes_lcm()
    shutil.rmtree(folder, ignore_errors=True)
    UNet2DConditionModel.from_pretrained(run / "model" / "unet").half().save_pretrained(folder / "unet")
    LCMScheduler.from_pretrained(run / "model" / "scheduler").save_pretrained(folder / "scheduler")
    shutil.copyfile(run / "model" / "model_index.json", folder / "model_index.json")
    details = json.loads((run / "model" / "fewstep.json").read_text())
    (folder / "fewstep.json").write_text(json.dumps({**details, "name": assets.SCENES_LCM}, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
