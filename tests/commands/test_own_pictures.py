"""Pictures of one's own, as the commands open them: folders and shards alike, with what was dropped printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.data.kind import SourceRequest
from fewstep.data.opening import open_pictures
from fewstep.data.sources.squares import SquarePictures
from fewstep.errors import UserError
from fewstep.evaluate.benches import material
from written_shards import picture, shard, write_parquet, write_tar


def open_squares(data, resolution):
    return SquarePictures(open_pictures(SourceRequest(data=data, resolution=resolution)), resolution)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def test_shards_become_squares_and_their_report_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shard(tmp_path / "d/0.tar", ["a", "b"])
    write_tar(tmp_path / "d/1.tar", {"c.png": picture()})
    pictures = open_squares(str(tmp_path / "d"), 16)
    assert [(example.caption, example.image.size) for example in (pictures[0], pictures[1])] == [
        ("caption of a", (16, 16)), ("caption of b", (16, 16)),
    ]  # fmt: skip
    assert capsys.readouterr().out == (
        "data: 3 pictures found, 2 used, 1 dropped (1 without caption)\n  without caption: 1.tar/c.png\n"
    )


def test_patterns_and_urls_are_not_taken_for_misspelt_worlds(tmp_path: Path):
    shard(tmp_path / "0.tar", ["a"])
    assert len(open_squares(str(tmp_path / "{0..1}.tar"), 16)) == 1
    with pytest.raises(UserError, match="no file matches"):
        open_squares(str(tmp_path / "x*"), 16)
    with pytest.raises(UserError, match="did you mean scenes"):
        open_squares("scene", 16)


def test_captions_of_shards_are_prompts(tmp_path: Path):
    write_parquet(tmp_path / "0.parquet", image=[picture()] * 5, text=[f"prompt {i}" for i in range(5)])
    found = material(SourceRequest(data=str(tmp_path / "0.parquet"), resolution=16), n=2, n_tuning=2)
    assert (found.scored.prompts, found.tuning.prompts) == (["prompt 0", "prompt 1"], ["prompt 2", "prompt 3"])
    with pytest.raises(UserError, match="has 5 captions and n is 6; give 5 or less"):
        material(SourceRequest(data=str(tmp_path / "0.parquet"), resolution=16), n=6)
