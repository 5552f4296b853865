"""A kind of source is a file and a line of the registry: what is added so is opened, trained on and prepared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.commands.distill import distill
from fewstep.commands.prepare import Prepare, prepare
from fewstep.data import opening
from fewstep.data.kind import SourceRequest
from fewstep.data.opening import each_kind, open_pictures
from fewstep.data.shards.prepared import PreparedShards
from fewstep.data.shards.source import ShardedPictures
from fewstep.data.sources.folder import FolderPictures
from fewstep.data.worlds.gallery_source import GalleryExamples
from fewstep.data.worlds.scenes import SceneExamples
from fewstep.errors import UserError
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.recipes.distill import Distill
from fewstep.recipes.pictures import TrainingConfig
from fewstep.runs.material import open_material
from written_shards import picture, shard, write_parquet

GREYS = '''
"""Plain grey pictures, as a kind of source."""

from dataclasses import dataclass

from PIL import Image

from fewstep.data.kind import SourceKind
from fewstep.data.sources.base import Example, SourceReport
from fewstep.errors import UserError


@dataclass(frozen=True)
class Greys:
    side: int
    count: int

    @property
    def report(self):
        return SourceReport(found=self.count, used=self.count, dropped={}, names={})

    @property
    def shard_sizes(self):
        return (self.count,)

    def __len__(self):
        return self.count

    def key(self, index):
        return f"grey {index}"

    def shard_name(self, shard):
        return "greys"

    def caption(self, index):
        return f"grey of level {index}"

    def read(self, index):
        return Example(Image.new("RGB", (self.side, self.side), (index,) * 3), self.caption(index))


def open_greys(request):
    if request.count > 256:
        raise UserError(f"there are 256 greys, not {request.count}; give --pictures 256")
    return Greys(request.resolution, request.count)


KIND = SourceKind(recognises=lambda data: data == "greys", open=open_greys)
'''


@pytest.fixture
def greys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `--data` calls a kind whose file and line have just been added."""
    (tmp_path / "plain_greys.py").write_text(GREYS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(opening, "_KINDS", ("plain_greys", *opening._KINDS))
    return "greys"


def test_an_added_kind_is_opened_as_it_was_asked(greys: str):
    source = open_pictures(SourceRequest(data=greys, resolution=8, count=3))
    assert (len(source), source.caption(2), source.read(2).image.getpixel((7, 7))) == (3, "grey of level 2", (2, 2, 2))
    with pytest.raises(UserError, match="there are 256 greys, not 300"):
        open_pictures(SourceRequest(data=greys, resolution=8, count=300))
    assert isinstance(open_pictures(SourceRequest(data="scenes", resolution=64)), SceneExamples)


def test_an_added_kind_is_trained_on_alone_and_mixed(greys: str, random_teacher: Path, tmp_path: Path):
    model = load_latent_model(str(random_teacher), pick_device("cpu"))
    material = open_material(TrainingConfig(data=greys, pictures=5, mix=("scenes::1",)), model, captions=2)
    assert (material.count, material.resolution, material.captions) == (10, 64, ["grey of level 0", "grey of level 1"])
    assert material.account[greys] == {"found": 5, "used": 5, "dropped": {}}
    latents = material.latents()
    assert {key.split()[0] for key in latents.keys(range(64))} == {"grey", "scene"}
    out = tmp_path / "run"
    distill(
        Distill(
            teacher=str(random_teacher), data=greys, pictures=6, steps=2, batch_size=2, sample_every=0, out=out,
            device="cpu",
        )
    )  # fmt: skip
    assert (out / "model" / "model_index.json").exists()


def test_an_added_kind_is_prepared(greys: str, random_teacher: Path, tmp_path: Path):
    out = tmp_path / "prepared"
    prepare(Prepare(model=str(random_teacher), data=greys, pictures=5, part=3, workers=1, out=out, device="cpu"))
    shards = PreparedShards(out)
    assert shards.names == ["00000-0000-greys", "00000-0001-greys"]
    assert [shards.read_row(*shards.locate(i)).key for i in range(5)] == [f"grey {i}" for i in range(5)]


def make_nothing(folder: Path, add: Callable[..., Path]) -> None:
    """Worlds need no files."""


def make_folder(folder: Path, add: Callable[..., Path]) -> None:
    add(folder, "a.png", "one")


def make_tar(folder: Path, add: Callable[..., Path]) -> None:  # noqa: ARG001
    shard(folder / "0.tar", ["a"])


def make_parquet(folder: Path, add: Callable[..., Path]) -> None:  # noqa: ARG001
    write_parquet(folder / "0.parquet", image=[picture()], text=["one"])


@pytest.mark.parametrize(
    ("data", "make", "kind", "source", "key"),
    [
        ("scenes", make_nothing, "worlds.scenes", SceneExamples, "scene 0"),
        ("scenes-leaning", make_nothing, "worlds.scenes", SceneExamples, "scene 0"),
        ("gallery", make_nothing, "worlds.gallery_kind", GalleryExamples, "gallery picture 0"),
        ("gallery-twemoji", make_nothing, "worlds.gallery_kind", GalleryExamples, "gallery picture 0"),
        ("{folder}", make_folder, "sources.picture_files", FolderPictures, "a.png"),
        ("{folder}", make_tar, "sources.picture_files", ShardedPictures, "0.tar/a.jpg"),
        ("{folder}/*.parquet", make_parquet, "sources.picture_files", ShardedPictures, "0.parquet/0"),
    ],
)
def test_each_kind_recognises_and_opens_its_own(
    data: str, make: Callable[..., None], kind: str, source: type, key: str, tmp_path: Path, add: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    make(tmp_path / "data", add)
    named = data.format(folder=tmp_path / "data")
    first = next(i for i, each in enumerate(each_kind()) if each.recognises(named))
    assert opening._KINDS[first] == f"fewstep.data.{kind}"
    opened = open_pictures(SourceRequest(data=named, resolution=64, count=7))
    assert isinstance(opened, source)
    assert opened.key(0) == key
