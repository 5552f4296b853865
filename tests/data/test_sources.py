"""What `--data` names is found out from what is there, or said in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.data.shards.source import ShardedPictures
from fewstep.data.sources.folder import FolderPictures
from fewstep.data.sources.picture_files import open_picture_files
from fewstep.data.sources.remote import CacheSettings, default_cache_folder
from fewstep.data.sources.urls import expand_braces
from fewstep.errors import UserError
from written_shards import picture, shard, write_parquet


@pytest.fixture
def cache(tmp_path: Path) -> CacheSettings:
    return CacheSettings(folder=tmp_path / "cache", budget=1 << 30)


def test_braces_stand_for_numbers_of_one_width_and_for_lists():
    assert expand_braces("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert expand_braces("{9..11}") == ["9", "10", "11"]
    assert expand_braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert expand_braces("plain{x}") == ["plain{x}"]
    assert len(expand_braces("s3://bucket/{00000..01234}.tar")) == 1235
    for wrong, said in (("{5..3}", "is not a range"), ("{0..99999999}", "is not a range"),
                        ("{0..9999}{0..9999}", "1,000,000 is the most")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            expand_braces(wrong)


def test_a_name_that_exists_is_never_taken_for_a_pattern(tmp_path: Path, cache: CacheSettings):
    path = shard(tmp_path / "{a,b}[1]*.tar", ["x"])
    assert expand_braces(str(path)) == [str(path)]
    assert len(open_picture_files(str(path), None, cache)) == 1
    assert len(open_picture_files(path.as_uri().replace("%7B", "{").replace("%7D", "}").replace("%5B", "[")
                           .replace("%5D", "]").replace("%2A", "*").replace("%2C", ","), None, cache)) == 1  # fmt: skip


def test_each_kind_is_found_from_what_is_in_the_folder(tmp_path: Path, add: Callable[..., Path], cache: CacheSettings):
    add(tmp_path / "pictures", "a.png", "one")
    shard(tmp_path / "tars/0.tar", ["a"])
    write_parquet(tmp_path / "tars/0.parquet", key=["a"], caption=["x"])
    write_parquet(tmp_path / "tables/0.parquet", image=[picture()], text=["a"])
    add(tmp_path / "files", "00000/a.jpg", "one")  # as img2dataset's `files` format, its metadata above
    write_parquet(tmp_path / "files/00000.parquet", key=["a"], caption=["x"])
    for folder, kind, key in (
        ("pictures", FolderPictures, "a.png"), ("tars", ShardedPictures, "0.tar/a.jpg"),
        ("tables", ShardedPictures, "0.parquet/0"), ("files", FolderPictures, "00000/a.jpg"),
    ):  # fmt: skip
        source = open_picture_files(str(tmp_path / folder), None, cache)
        assert isinstance(source, kind), folder
        assert source.key(0) == key


def test_several_names_and_patterns_make_one_source(tmp_path: Path, cache: CacheSettings):
    for name in ("a/0", "a/1", "b/0", "c/7"):
        shard(tmp_path / f"{name}.tar", [name.replace("/", "-")])
    write_parquet(tmp_path / "a/0.parquet", key=["a-0"], caption=["x"])
    source = open_picture_files(
        [str(tmp_path / "{a,b}/0.tar"), str(tmp_path / "a/*"), str(tmp_path / "c")], None, cache
    )
    assert [source.shard_name(i) for i in range(4)] == ["a/0.tar", "b/0.tar", "a/1.tar", "c/7.tar"]


def message(data: str | list[str], cache: CacheSettings) -> str:
    with pytest.raises(UserError) as caught:
        open_picture_files(data, None, cache)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def test_what_cannot_be_a_source_is_said_in_one_line(tmp_path: Path, add: Callable[..., Path], cache: CacheSettings):
    (tmp_path / "empty").mkdir()
    assert "is a folder with neither pictures nor .tar nor .parquet in it; expected" in message(
        str(tmp_path / "empty"), cache
    )
    assert "does not exist; give a folder of pictures" in message(str(tmp_path / "absent"), cache)
    (tmp_path / "notes.md").write_text("words")
    assert "is neither a folder nor a .tar or .parquet file" in message(str(tmp_path / "notes.md"), cache)
    assert "no file matches" in message(str(tmp_path / "*.tar"), cache)
    for name in ("0.tar.gz", "0.tgz"):
        (tmp_path / name).write_bytes(b"")
        assert "is compressed" in message(str(tmp_path / name), cache)
    tar, table = shard(tmp_path / "0.tar", ["a"]), write_parquet(tmp_path / "1.parquet", image=[picture()], text=["a"])
    assert "data is 1 .tar, 1 .parquet; one source is of one kind" in message([str(tar), str(table)], cache)
    assert "data is nothing" in message([], cache)
    add(tmp_path / "both", "a.png", "one")
    shard(tmp_path / "both/0.tar", ["a"])
    assert "has captioned pictures and .tar files in it; name the files you mean" in message(
        str(tmp_path / "both"), cache
    )
    message(str(tmp_path / "two\nlines"), cache)


def test_the_cache_stands_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "mine"))
    assert default_cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("FEWSTEP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_folder() == tmp_path / "xdg" / "fewstep"
