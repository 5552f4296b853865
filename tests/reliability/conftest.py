"""What all these tests run on: a miniature teacher and captioned pictures."""

import pytest

from fewstep.data.worlds.scenes import Scenes


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A miniature of Stable Diffusion 1.5, random; do not write into it."""
    from fewstep.models import scenes_model
    from miniatures import save_miniature

    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    return save_miniature("sd15", tokenizer, tmp_path_factory.mktemp("tiny") / "teacher")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of 40 captioned pictures."""
    folder = tmp_path_factory.mktemp("photos")
    scenes = Scenes(3)
    for i in range(40):
        scenes[i].image.save(folder / f"{i:03}.png")
        (folder / f"{i:03}.txt").write_text(scenes[i].caption)
    return folder
