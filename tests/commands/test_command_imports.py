"""What a command imports: what its model needs and no more."""

import subprocess
import sys

from fewstep.models import families


def test_painting_imports_what_its_model_needs(tmp_path):
    """Two seconds of every command bitsandbytes would cost, and scipy one; other families their pipelines."""
    code = f"""
import gc
import sys
from fewstep.cli import main
collected = []
loaded = ["torch", "diffusers", "peft", "transformers"]
gc.callbacks.append(lambda phase, _: collected.append([name for name in loaded if name in sys.modules]))
main(["generate", "--prompt", "a pink heart", "--out", {str(tmp_path)!r}])
assert loaded in collected and not [each for each in collected if 0 < len(each) < len(loaded)], collected
import peft
import torch
peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["0"]), torch.nn.Sequential(torch.nn.Linear(2, 2)))
for name in ("bitsandbytes", "scipy", "openvino", "uvicorn"):
    assert name not in sys.modules, name
families = {{name.split(".")[3] for name in sys.modules if name.startswith("fewstep.models.families.")}}
assert not families & {{"sd3", "flux", "zimage", "qwen", "klein", "sana", "pixart", "transformer", "flow_family"}}
others = [name for name in sys.modules if name.startswith(("fewstep.serve", "fewstep.evaluate", "fewstep.train.loop"))]
assert not others, others
import scipy.stats
from bitsandbytes.optim import AdamW8bit
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # nor does what is imported say anything


def test_the_file_of_one_family_is_imported_and_no_others(tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    code = f"""
import sys
from pathlib import Path
import fewstep.models.without_extras
from fewstep.models.families import recognise_folder
index = {{"_class_name": "FluxPipeline"}}
assert recognise_folder(Path({str(tmp_path)!r}), index, "a model").name == "flux"
files = {{"stable_diffusion", "sd3", "flux", "zimage", "qwen", "klein", "sana", "pixart"}}
assert [name for name in sorted(files) if f"fewstep.models.families.{{name}}" in sys.modules] == ["flux"]
assert "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_pipelines_of_families_are_what_each_says_of_itself():
    said: dict[str, tuple[str, ...]] = {}
    for family in families.list_families():
        for name in family.pipeline_classes:
            said[name] = (*said.get(name, ()), family.name)
    assert said == families._PIPELINES
