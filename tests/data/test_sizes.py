"""Width and height of pictures by their headers, upright, in folders and shards; and where they cannot be known."""

from __future__ import annotations

import io
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from fewstep.data.shards import formats
from fewstep.data.sources.base import list_sizes
from fewstep.data.sources.decoding import decode
from fewstep.data.sources.filters import Buckets, Filters
from fewstep.data.sources.picture_files import open_picture_files
from fewstep.data.sources.remote import CacheSettings
from fewstep.data.sources.selection import Selection
from fewstep.errors import UserError
from written_shards import picture, sample, write_parquet, write_tar


def make(kind: str, orientation: int, size: tuple[int, int] = (40, 30), padding: int = 0) -> bytes:
    """A picture with an EXIF entry, and others before its size that take so many bytes."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(file, kind, exif=exif)
    content = file.getvalue()
    for _ in range(padding // 60_000):  # application segments, which readers skip
        content = content[:2] + b"\xff\xeb" + (60_002).to_bytes(2, "big") + bytes(60_000) + content[2:]
    return content


@pytest.fixture
def cache(tmp_path: Path) -> CacheSettings:
    return CacheSettings(folder=tmp_path / "cache")


PICTURES = {
    f"{kind}-{orientation}.{kind.lower()}": make(kind, orientation)
    for kind in ("JPEG", "PNG", "WEBP") for orientation in (1, 3, 5, 6, 8)
}  # fmt: skip


def test_in_a_folder_they_are_those_of_the_decoded_picture(tmp_path: Path, cache: CacheSettings):
    (tmp_path / "d").mkdir()
    for name, content in PICTURES.items():
        (tmp_path / "d" / name).write_bytes(content)
        (tmp_path / "d" / name).with_suffix(".txt").write_text("words")
    for _ in range(2):  # the second time out of the cache
        source = open_picture_files(str(tmp_path / "d"), None, cache)
        expected = [decode(PICTURES[source.key(i)]).size for i in range(len(source))]
        assert list_sizes(source).tolist() == [list(size) for size in expected]
        assert {tuple(size) for size in expected} == {(40, 30), (30, 40)}


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_in_shards_they_are_read_once(kind: str, tmp_path: Path, cache: CacheSettings, monkeypatch: pytest.MonkeyPatch):
    contents = {name.partition(".")[0]: content for name, content in PICTURES.items()}
    contents |= {"late": make("JPEG", 6, (50, 20), padding=180_000), "broken": picture(kind="JPEG")[:40]}
    if kind == "tar":
        members: dict[str, bytes] = {}
        for key, content in contents.items():
            members |= sample(key, "words", content)
        data = write_tar(tmp_path / "0.tar", members)
    else:
        data = write_parquet(
            tmp_path / "0.parquet", 3, image=list(contents.values()), key=list(contents), text=["words"] * len(contents)
        )
    source = open_picture_files(str(data), None, cache)
    keys = [source.key(i).rpartition("/")[2].partition(".")[0] for i in range(len(source))]
    expected = {key: decode(contents[key]).size for key in contents if key != "broken"} | {"broken": (0, 0)}
    assert list_sizes(source).tolist() == [list(expected[key]) for key in keys]
    assert expected["late"] == (20, 50)

    def read(*_: object) -> bytes:
        raise AssertionError("read again")

    monkeypatch.setattr(formats.TarShards if kind == "tar" else formats.TableShards, "read_picture", read)
    again = open_picture_files(str(data), Selection(filters=Filters(min_side=1, missing="accept")), cache)
    assert list_sizes(again).tolist() == [list(expected[key]) for key in keys]


def test_a_shard_that_has_gone_says_nothing(tmp_path: Path, cache: CacheSettings):
    write_tar(tmp_path / "0.tar", sample("a", "words"))
    write_tar(tmp_path / "1.tar", sample("b", "words"))
    source = open_picture_files(str(tmp_path / "{0..1}.tar"), None, cache)
    (tmp_path / "0.tar").unlink()
    assert list_sizes(source).tolist() == [[0, 0], [40, 30]]


def test_of_a_folder_that_is_only_listed_metadata_must_say_them(cache: CacheSettings):
    files = fsspec.filesystem("memory")
    files.pipe({"/sized/a.png": picture(), "/sized/a.json": b'{"caption": "a", "width": 40, "height": 30}'})
    assert list_sizes(open_picture_files("memory://sized", None, cache)).tolist() == [[40, 30]]
    files.pipe({"/unsized/a.png": picture(), "/unsized/a.txt": b"a"})
    source = open_picture_files("memory://unsized", None, cache)
    with pytest.raises(UserError, match=r"the sides of a.png are not known before it is fetched.*--buckets off"):
        list_sizes(source)


@pytest.mark.parametrize(("buckets", "told"), [("off", {"smaller than 60 pixels, and enlarged": 1}), ("on", {})])
def test_what_becomes_no_square_is_not_told_to_be_enlarged(
    buckets: Buckets, told: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from fewstep.recipes.pictures import TrainingConfig
    from fewstep.runs.picture_material import open_source

    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.png").write_bytes(picture(size=(80, 50)))
    (tmp_path / "d/a.txt").write_text("words")
    source = open_source(TrainingConfig(buckets=buckets), str(tmp_path / "d"), 60, 0)
    assert source.report.told == told
    assert np.array_equal(list_sizes(source), [[80, 50]])
