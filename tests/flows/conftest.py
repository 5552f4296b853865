import numpy as np
import pytest
from PIL import Image

from fewstep.data.worlds.scenes import Scenes
from fewstep.models import scenes_model
from flow_miniatures import FLOWS


@pytest.fixture(scope="session")
def flow_tokenizer():
    return scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))


@pytest.fixture(scope="session", params=FLOWS)
def flow(request, flow_tokenizer, tmp_path_factory):
    """The folder of a miniature of each family; do not write into it."""
    return FLOWS[request.param](flow_tokenizer, tmp_path_factory.mktemp("flows") / request.param)


@pytest.fixture(scope="session")
def flow_pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(generator.integers(0, 255, (70, 80, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {'red' if i % 2 else 'blue'} star")
    return folder
