"""What the commands import along the way, imported once: by the fork server of `warm_command`, before it forks.

Each process of the tests would else import the same again for a second, dozens of times.
"""

import contextlib
import gc
import importlib
import io
import pkgutil

import fewstep
from fewstep.models.libraries import import_without_extras

import_without_extras()  # as every command does
for found in pkgutil.walk_packages(fewstep.__path__, "fewstep."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
for name in ("diffusers.guiders", "matplotlib.backends.backend_svg", "torch.utils.tensorboard"):
    importlib.import_module(name)
importlib.import_module("PIL.Image").init()
importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("clip_text_model")
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    importlib.import_module("fewstep.cli").main(["distill", "--help"])  # parsing imports, too
gc.collect()
gc.freeze()  # else every child would walk, and so copy, what is here
