"""What data name is read in its own folder, after links are followed: in folders, lists, tables and behind URLs."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from fewstep.data.shards.manifest import MANIFEST
from fewstep.data.shards.prepared import PreparedShards
from fewstep.data.sources import urls
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.filters import Reason
from fewstep.data.sources.picture_files import open_picture_files
from fewstep.data.sources.places import Place
from fewstep.data.sources.remote import CacheSettings
from fewstep.data.sources.selection import Selection
from fewstep.errors import UserError
from fewstep.recipes.pictures import TrainingConfig
from fewstep.roots import OutsideError, Root, open_regular
from fewstep.runs.picture_material import describe_pictures, open_source
from written_shards import picture, shard, write_parquet

FOLLOWING = Selection(follow_links=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheSettings:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return CacheSettings()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a picture of its own, beside a secret to which links lead."""
    (tmp_path / "secret/etc").mkdir(parents=True)
    (tmp_path / "secret/etc/passwd").touch()
    (tmp_path / "secret/s.png").write_bytes(picture("blue"))
    (tmp_path / "data/in").mkdir(parents=True)
    (tmp_path / "data/a.png").write_bytes(picture("red"))
    for name, target in {
        "linked.png": "../secret/s.png", "twice.png": "linked.png", "far": "../secret", "folder": tmp_path / "secret",
        "here.png": "in/../a.png", "in/up.png": "../a.png", "in/round": "..", "itself.png": "itself.png",
        "missing.png": "../secret/none.png", "again.png": tmp_path / "data/folder/s.png",
    }.items():  # fmt: skip
        (tmp_path / "data" / name).symlink_to(target)
    return tmp_path / "data"


OUT = [
    "../secret/s.png", "in/../../secret/s.png", "..", "/etc/passwd", "//host/share", "\\\\host\\share",
    "..\\secret\\s.png", "C:\\s.png", "c:s.png", "file:///etc/passwd", "http://127.0.0.1/s.png", "in/http://127.0.0.1/s.png",
]  # fmt: skip
LINKED = ["linked.png", "twice.png", "far/etc/passwd", "folder/s.png", "missing.png", "again.png", "folder", "far/"]
INSIDE = ["a.png", "here.png", "in/up.png", "in/round/a.png", "./a.png", "in//up.png", "in/round/in/round/a.png"]


@pytest.mark.parametrize("name", [*OUT, *LINKED])
def test_what_leads_out_of_a_folder_is_refused(data: Path, name: str):
    with pytest.raises(OutsideError) as caught:
        Root(str(data)).resolve(name)
    assert caught.value.linked is (name in LINKED)
    with pytest.raises(DroppedError, match="linked outside" if name in LINKED else "outside the folder"):
        Place(str(data)).resolve(name)
    if name in LINKED:
        assert Place(str(data), follow_links=True).resolve(name)
    else:
        with pytest.raises(OutsideError):
            Root(str(data), follow_links=True).resolve(name)


@pytest.mark.parametrize("name", INSIDE)
def test_what_lies_in_a_folder_is_found_through_links(data: Path, name: str):
    assert os.path.realpath(Root(str(data)).resolve(name)) == str((data / "a.png").resolve())
    (data.parent / "door").symlink_to(data)  # the folder itself may be a link: its user named it
    assert os.path.samefile(Root(str(data.parent / "door")).resolve(name), data / "a.png")


@pytest.mark.parametrize("name", ["nul\0.png", "n" * 5000, "n/" * 3000, "itself.png", "in", "pipe", "socket", "null"])
def test_what_is_no_regular_file_is_never_opened(data: Path, name: str):
    os.mkfifo(data / "pipe")
    (data / "null").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(data / "socket"))
        with pytest.raises(OSError):  # noqa: PT011  # the system has a word for each
            open_regular(Root(str(data), follow_links=True).resolve(name))


def test_the_hubs_cache_keeps_files_elsewhere_and_they_are_inside(tmp_path: Path, cache: CacheSettings):
    repository = tmp_path / "datasets--me--cats"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots/abc/data").mkdir(parents=True)
    write_parquet(tmp_path / "one.parquet", image=[picture()], text=["one"]).rename(repository / "blobs/0123")
    (repository / "snapshots/abc/data/train.parquet").symlink_to("../../../blobs/0123")
    for place in ("snapshots/abc", "snapshots/abc/data", "snapshots/abc/data/train.parquet"):
        assert len(open_picture_files(str(repository / place), None, cache)) == 1
    (repository / "snapshots/abc/data/train.parquet").unlink()
    (repository / "snapshots/abc/data/train.parquet").symlink_to("../../../../cats.parquet")
    with pytest.raises(UserError, match="is a link out of its folder"):
        open_picture_files(str(repository / "snapshots/abc"), None, cache)
    (repository / "blobs").rename(tmp_path / "blobs")
    (repository / "blobs").symlink_to("/")  # which a stranger's archive may hold
    with pytest.raises(OutsideError):
        Root(str(repository / "snapshots/abc")).resolve("../../blobs/etc/passwd")
    (repository / "snapshots/abc/x.png").symlink_to("../../blobs/etc/passwd")
    with pytest.raises(OutsideError):
        Root(str(repository / "snapshots/abc")).resolve("x.png")


@pytest.mark.parametrize("name", [*OUT, *LINKED[:-2], *INSIDE[:5], "nul\0.png", "n" * 5000, ""])
def test_rows_without_bytes_name_pictures_in_the_folder_and_no_others(data: Path, name: str, cache: CacheSettings):
    """As a struct with empty bytes, where it shows when it is read; as a path alone, where it shows at opening."""
    rows = [{"bytes": picture("green"), "path": "anywhere"}, {"bytes": None, "path": name}]
    struct = write_parquet(data / "struct.parquet", image=rows, text=["first", "second"])
    paths = write_parquet(data / "paths.parquet", file_name=["a.png", name], text=["first", "second"])
    source, other = (open_picture_files(str(file), None, cache) for file in (struct, paths))
    assert source.read(0).image.getpixel((0, 0)) == (0, 128, 0)
    if name in INSIDE:
        assert source.read(1).image.getpixel((0, 0)) == other.read(1).image.getpixel((0, 0)) == (255, 0, 0)
        return
    expected = {Reason.OUTSIDE} if name in OUT else {Reason.LINKED_OUTSIDE} if name in LINKED else {
        Reason.UNREADABLE, Reason.MISSING
    }  # fmt: skip
    with pytest.raises(DroppedError) as caught:
        source.read(1)
    assert {caught.value.reason} <= expected
    assert set(other.report.dropped) <= set(map(str, expected))
    assert len(other) == 1
    if name in LINKED and name.endswith("s.png"):
        assert open_picture_files(str(struct), FOLLOWING, cache).read(1).image.getpixel((0, 0)) == (0, 0, 255)
        assert len(open_picture_files(str(paths), FOLLOWING, cache)) == 2
        assert len(open_picture_files(str(paths), None, cache)) == 1  # whatever was indexed meanwhile


def test_a_path_that_becomes_a_link_after_opening_is_not_followed(data: Path, cache: CacheSettings):
    (data / "in/up.png").unlink()
    (data / "in/up.png").write_bytes(picture())
    source = open_picture_files(str(write_parquet(data / "0.parquet", path=["in/up.png"], text=["a"])), None, cache)
    (data / "in").rename(data / "before")
    (data / "in").symlink_to(data.parent / "secret")
    (data.parent / "secret/up.png").write_bytes(picture("blue"))
    with pytest.raises(DroppedError, match="linked outside the folder"):
        source.read(0)


def test_shards_and_their_metadata_are_in_the_folder_too(tmp_path: Path, cache: CacheSettings):
    for name in ("one", "two"):
        shard(tmp_path / f"away/{name}.tar", [name])
    write_parquet(tmp_path / "away/one.parquet", key=["one"], caption=["said elsewhere"], aesthetic=[9.0])
    folder = tmp_path / "shards"
    shard(folder / "one.tar", ["one"])
    (folder / "one.parquet").symlink_to("../away/one.parquet")
    (folder / "two.tar").symlink_to("../away/two.tar")
    (folder / "more").symlink_to("../away")
    assert open_picture_files(str(folder), None, cache).report.names["unsearched folder"] == ["more"]
    (folder / "more").unlink()
    shard(folder / ".trash/old.tar", ["old"])
    for place in (str(folder), f"{folder}/*.tar", f"{folder}/**/*.tar"):
        source = open_picture_files(place, None, cache)
        assert len(source) == 1
        assert {Path(name).name for name in source.report.names["linked outside the folder"]} == {
            "one.parquet",
            "two.tar",
        }
        assert len(open_picture_files(place, FOLLOWING, cache)) == 2
    assert len(open_picture_files(str(folder / "two.tar"), None, cache)) == 1  # which the user named
    (folder / "one.tar").unlink()
    with pytest.raises(UserError, match=r"two\.tar is a link out of its folder, as all of 1 files are"):
        open_picture_files(str(folder), None, cache)


def test_metadata_that_are_a_link_out_end_the_command(data: Path, cache: CacheSettings):
    (data.parent / "secret/m.jsonl").write_text('{"file_name": "a.png", "text": "secret"}\n')
    (data / "metadata.jsonl").symlink_to("../secret/m.jsonl")
    with pytest.raises(UserError, match=r"data/metadata\.jsonl is a link out of the folder"):
        open_picture_files(str(data), None, cache)
    assert open_picture_files(str(data), FOLLOWING, cache).caption(0) == "secret"


@pytest.mark.parametrize("name", ["pipe", "pipe.tar", "pipe.parquet", "pipe.arrow", "pipe.png"])
def test_a_pipe_given_as_data_is_refused_at_once(tmp_path: Path, name: str, cache: CacheSettings):
    os.mkfifo(tmp_path / name)
    for given in (str(tmp_path / name), (tmp_path / name).as_uri()):
        with pytest.raises(UserError, match="is a pipe, a socket or a device"):
            open_picture_files(given, None, cache)


def test_folders_that_lead_back_are_gone_through_once(tmp_path: Path):
    """Followed as often as the system lets one, two such links would be a million million folders."""
    shard(tmp_path / "d/in/0.tar", ["a"])
    for name in ("x", "y", "in/z"):
        (tmp_path / "d" / name).symlink_to(tmp_path / "d")
    for place in (str(tmp_path / "d"), f"{tmp_path}/d/**/*.tar", f"{tmp_path}/d/**"):
        config = TrainingConfig(data=place, follow_links=True)
        assert len(open_source(config, place, 64, 0)) == 1
        assert describe_pictures(config)["files"] == describe_pictures(config)["files"]


def test_links_are_followed_where_the_configuration_says_so(data: Path):
    (data / "metadata.csv").write_text("file_name,text\na.png,a\nlinked.png,b\n")
    plain = TrainingConfig(data=str(data))
    following = dataclasses.replace(plain, follow_links=True)
    assert [len(open_source(config, config.data, 8, 0)) for config in (plain, following)] == [1, 2]
    assert describe_pictures(plain) != describe_pictures(following)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "link"])
def test_prepared_latents_are_read_in_their_folder(tmp_path: Path, name: str):
    (tmp_path / "link.safetensors").symlink_to("../x.safetensors")
    (tmp_path / MANIFEST).write_text(f'{{"made_of": {{}}, "report": {{}}, "shards": {{"{name}": 1}}}}')
    with pytest.raises(UserError, match="which leads out of it"):
        PreparedShards(tmp_path).read_row(0, 0)


@pytest.fixture
def hosted() -> Iterator[Callable[[str, bytes], None]]:
    memory = fsspec.filesystem("memory")
    yield memory.pipe
    memory.rm("/host", recursive=True)


REMOTE_OUT = [
    "../s.png", "%2e%2e/s.png", "in/%2E%2e/%2e./s.png", "%252e%252e/s.png", "..%2fs.png", "..%5cs.png", "/host/s.png",
    "%2Fhost/s.png", "memory://host/s.png", "file:///etc/passwd", "https://other/s.png", "a.png::file:///etc/passwd",
    "a.png\r\nHost: other", "a%00.png", "%2525252525252e",
]  # fmt: skip


@pytest.mark.parametrize("name", REMOTE_OUT)
def test_a_neighbour_behind_a_url_is_in_the_folder(
    hosted: Callable[[str, bytes], None], name: str, cache: CacheSettings, tmp_path: Path
):
    rows = [{"bytes": None, "path": each} for each in ("a b.png", name)]
    paths = write_parquet(tmp_path / "p.parquet", file_name=["a b.png", name], text=["a", "b"]).read_bytes()
    struct = write_parquet(tmp_path / "s.parquet", image=rows, text=["a", "b"]).read_bytes()
    for file, content in {
        "d/p.parquet": paths,
        "d/s.parquet": struct,
        "d/a b.png": picture(),
        "s.png": picture(),
    }.items():
        hosted(f"/host/{file}", content)
    source = open_picture_files("memory://host/d/p.parquet", None, cache)
    assert source.read(0).caption == "a"
    assert source.report.dropped == {"outside the folder": 1}
    source = open_picture_files("memory://host/d/s.parquet", FOLLOWING, cache)
    assert source.read(0).caption == "a"
    with pytest.raises(DroppedError, match="outside the folder"):
        source.read(1)


@pytest.mark.parametrize(
    ("folder", "name", "url"),
    [
        ("https://host/d?token=1", "in/a.png", "https://host/d/in/a.png?token=1"),
        ("https://host/d", "what?.png", "https://host/d/what%3F.png"),
        ("https://host/d/", "a#1.png", "https://host/d/a%231.png"),
        ("s3://bucket/d", "what?.png", "s3://bucket/d/what?.png"),
        ("https://host/d", "a%20b.png", "https://host/d/a%20b.png"),
    ],
)
def test_a_name_is_part_of_the_path_of_a_url_alone(folder: str, name: str, url: str):
    assert Place(folder).resolve(name) == url


def test_a_folder_and_its_pattern_are_told_apart():
    assert urls.split_pattern("/a/b*/c/*.tar") == ("/a", "b*/c/*.tar")
    assert urls.split_pattern("*.tar") == (".", "*.tar")
    assert urls.split_pattern("/*.tar") == ("/", "*.tar")
