"""Shards that lie elsewhere: a real web server on this machine, and fsspec's memory."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from fewstep.data.sources import remote, urls
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.filters import Reason
from fewstep.data.sources.picture_files import open_picture_files
from fewstep.data.sources.remote import CacheSettings, Shard, ShardCache
from fewstep.data.sources.urls import FileVersion
from fewstep.errors import UserError
from written_shards import picture, shard, write_parquet


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, counts what is asked for, and fails or falls silent when told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.failures = folder, Counter[str](), Counter[str]()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def translate_path(self, path: str) -> str:
        return str(self.server.folder) + path.partition("?")[0]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked[path] += 1
        if self.server.failures[path] > 0:
            self.server.failures[path] -= 1
            self.send_error(503)
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    with Server(tmp_path / "served") as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "WAITS", (0.01, 0.01, 0.01))


@pytest.fixture
def cache(tmp_path: Path) -> CacheSettings:
    return CacheSettings(folder=tmp_path / "cache", budget=1 << 30)


def kept(cache: CacheSettings) -> list[Path]:
    return sorted((cache.folder / "shards").glob("*"))


def test_shards_behind_a_pattern_are_brought_once_and_read_from_the_disk(server: Server, cache: CacheSettings):
    for number in range(3):
        shard(server.folder / f"{number:05}.tar", [f"{number}a", f"{number}b"])
    write_parquet(server.folder / "00001.parquet", key=["1a", "1b"], caption=["x", "y"], status=["success"] * 2)
    source = open_picture_files(server.url + "/{00000..00002}.tar", None, cache)
    assert source.shard_sizes == (2, 2, 2)
    assert source.key(4) == "00002.tar/2a.jpg"
    assert [source.read(i).image.size for i in range(6)] == [(40, 30)] * 6
    assert [server.asked[f"/{number:05}.tar"] for number in range(3)] == [1, 1, 1]
    assert len(open_picture_files(server.url + "/{00000..00002}.tar", None, cache)) == 6
    assert [server.asked[f"/{number:05}.tar"] for number in range(3)] == [1, 1, 1]


def test_a_folder_that_a_server_lists_is_a_source_too(server: Server, cache: CacheSettings):
    for number in range(2):
        write_parquet(server.folder / f"data/{number}.parquet", image=[picture()] * 2, text=["a", "b"])
    source = open_picture_files(server.url + "/data/", None, cache)
    assert source.shard_sizes == (2, 2)
    assert source.read(3).caption == "b"


def test_a_failing_server_is_asked_again_and_a_dead_one_named(server: Server, cache: CacheSettings):
    shard(server.folder / "0.tar", ["a"])
    server.failures["/0.tar"] = 2
    assert open_picture_files(server.url + "/0.tar?token=secret", None, cache).read(0).caption == "caption of a"
    server.failures["/0.tar"] = 1000
    settings = CacheSettings(folder=cache.folder / "other", budget=1 << 30)
    with pytest.raises(UserError, match=r"0\.tar cannot be read \(.*503.*4 tries\)") as caught:
        open_picture_files(server.url + "/0.tar?token=secret", None, settings)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="check that it is there for you to read and that the network works"):
        open_picture_files(server.url + "/0.tar", None, settings)


def test_shards_that_are_not_there_are_counted(server: Server, cache: CacheSettings):
    shard(server.folder / "0.tar", ["a"])
    source = open_picture_files(server.url + "/{0..2}.tar", None, cache)
    assert source.report.names == {"missing shard": ["1.tar", "2.tar"]}


def test_a_shard_that_changes_or_vanishes_elsewhere_costs_its_pictures_alone(server: Server, cache: CacheSettings):
    for number in range(3):
        shard(server.folder / f"{number}.tar", ["a"])
    source = open_picture_files(server.url + "/{0..2}.tar", None, cache)
    for file in kept(cache):
        file.unlink()
    (server.folder / "0.tar").unlink()
    shard(server.folder / "1.tar", ["a", *(f"{i}" for i in range(20))])
    for index, reason in enumerate((Reason.MISSING_SHARD, Reason.CHANGED_SHARD)):
        with pytest.raises(DroppedError) as caught:
            source.read(index)
        assert (caught.value.reason, caught.value.key) == (reason, f"{index}.tar/a.jpg")
    assert source.read(2).caption == "caption of a"
    assert open_picture_files(server.url + "/1.tar", None, cache).shard_sizes == (21,)


def test_a_changed_remote_shard_is_brought_anew(server: Server, cache: CacheSettings):
    path = shard(server.folder / "0.tar", ["a"])
    assert len(open_picture_files(server.url + "/0.tar", None, cache)) == 1
    shard(path, ["b", "c"])
    os.utime(path, (0, 0))  # a web server tells seconds
    source = open_picture_files(server.url + "/0.tar", None, cache)
    assert [source.read(i).caption for i in range(2)] == ["caption of b", "caption of c"]


def serve_shards(server: Server, count: int) -> int:
    """Shards of one size, which is returned."""
    paths = [shard(server.folder / f"{number}.tar", ["a"]) for number in range(count)]
    (size,) = {path.stat().st_size for path in paths}
    return size


def sizes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_the_cache_stays_within_its_budget_and_the_one_used_longest_ago_goes(server: Server, tmp_path: Path):
    size = serve_shards(server, 4)
    settings = CacheSettings(folder=tmp_path / "cache", budget=2 * size + size // 2)
    cache = ShardCache(settings)
    found = urls.find_versions([f"{server.url}/{number}.tar" for number in range(4)])
    shards = [Shard(url, version) for url, version in found.items()]
    for number in (0, 1, 0, 2, 0, 3):
        with cache.open(shards[number]) as file:
            assert len(file.read()) == size
        assert sizes_of(settings.folder / "shards") <= settings.budget
        time.sleep(0.02)  # so that times of use differ
    assert [server.asked[f"/{number}.tar"] for number in range(4)] == [1, 1, 1, 1]  # 0 was never the oldest
    with cache.open(shards[1]) as file:
        assert len(file.read()) == size
    assert server.asked["/1.tar"] == 2


def test_a_shard_in_use_stays_whatever_the_budget(server: Server, tmp_path: Path):
    size = serve_shards(server, 3)
    settings = CacheSettings(folder=tmp_path / "cache", budget=size)
    cache = ShardCache(settings)
    found = urls.find_versions([f"{server.url}/{number}.tar" for number in range(3)])
    shards = [Shard(url, version) for url, version in found.items()]
    with cache.open(shards[0]) as first:
        path = Path(first.name)
        for other in shards[1:]:
            with cache.open(other) as file:
                assert len(file.read()) == size
            assert path.exists()
        assert len(first.read()) == size
    with cache.open(shards[1]):
        pass
    with cache.open(shards[2]):
        pass
    assert not path.exists()


def test_a_shard_larger_than_the_budget_is_said(server: Server, tmp_path: Path):
    shard(server.folder / "0.tar", ["a"])
    settings = CacheSettings(folder=tmp_path / "cache", budget=100)
    with pytest.raises(UserError, match=r"0\.tar has [0-9,]+ bytes and the cache of shards at most 100; allow it more"):
        open_picture_files(server.url + "/0.tar", None, settings)


def test_what_a_killed_process_left_half_done_is_never_taken_for_a_shard(server: Server, cache: CacheSettings):
    shard(server.folder / "0.tar", ["a"])
    (cache.folder / "shards").mkdir(parents=True)
    old, fresh = (cache.folder / "shards" / f"{name}.tmp-machine-1-2" for name in ("old", "fresh"))
    for file in (old, fresh):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert open_picture_files(server.url + "/0.tar", None, cache).read(0).caption == "caption of a"
    assert (old.exists(), fresh.exists()) == (False, True)


def test_threads_that_want_one_shard_bring_it_once_and_read_the_same(server: Server, cache: CacheSettings):
    keys = [f"{i:03}" for i in range(40)]
    for number in range(2):
        shard(server.folder / f"{number}.tar", keys)
    source = open_picture_files(server.url + "/{0..1}.tar", None, cache)
    for file in kept(cache):
        file.unlink()
    server.asked.clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: source.read(index).caption, range(80)))
    assert found == [f"caption of {key}" for key in keys * 2]
    assert [server.asked[f"/{number}.tar"] for number in range(2)] == [1, 1]


def test_a_cached_shard_that_lost_its_end_is_brought_anew(server: Server, cache: CacheSettings):
    shard(server.folder / "0.tar", ["a"])
    source = open_picture_files(server.url + "/0.tar", None, cache)
    (file,) = kept(cache)
    file.write_bytes(file.read_bytes()[:1000])
    assert source.read(0).caption == "caption of a"
    assert server.asked["/0.tar"] == 2


def test_what_went_wrong_once_is_not_remembered(server: Server, cache: CacheSettings, monkeypatch: pytest.MonkeyPatch):
    for number in range(2):
        shard(server.folder / f"{number}.tar", ["a"])

    def gone(shard: Shard, target: Path) -> None:
        if shard.url.endswith("1.tar"):
            raise DroppedError(Reason.MISSING_SHARD)
        download(shard, target)

    download = remote._download
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_download", gone)
        source = open_picture_files(server.url + "/{0..1}.tar", None, cache)
    assert (source.shard_sizes, source.report.names) == ((1, 0), {"missing shard": ["1.tar"]})
    assert open_picture_files(server.url + "/{0..1}.tar", None, cache).shard_sizes == (1, 1)


READ_ALL = """
import sys
from pathlib import Path
from fewstep.data.sources.remote import CacheSettings
from fewstep.data.sources.picture_files import open_picture_files
url, folder, budget = sys.argv[1:]
source = open_picture_files(url, None, CacheSettings(folder=Path(folder), budget=int(budget)))
for _ in range(3):
    for i in range(len(source)):
        assert source.read(i).caption == "caption of a", i
print(len(source))
"""


def test_processes_that_share_a_cache_do_not_disturb_one_another(server: Server, tmp_path: Path):
    size = serve_shards(server, 5)
    command = [sys.executable, "-c", READ_ALL, server.url + "/{0..4}.tar", str(tmp_path / "cache"), str(2 * size + 1)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out.strip()) == (0, "5"), err[-2000:]
    assert not list((tmp_path / "cache").rglob("*.part-*"))


def test_fsspecs_other_places_work_alike(tmp_path: Path, cache: CacheSettings):
    memory = fsspec.filesystem("memory")
    for number in range(2):
        memory.pipe(f"/bucket/s-{number}.tar", shard(tmp_path / "x.tar", [f"{number}"]).read_bytes())
    for data in ("memory://bucket/s-{0..1}.tar", "memory://bucket/*.tar", "memory://bucket"):
        source = open_picture_files(data, None, cache)
        assert [source.read(i).caption for i in range(2)] == ["caption of 0", "caption of 1"]
        assert source.key(1) == "s-1.tar/1.jpg"
    memory.rm("/bucket", recursive=True)


def test_a_remote_folder_of_pictures_is_listed_and_read_when_asked(cache: CacheSettings):
    memory = fsspec.filesystem("memory")
    for name, content in {
        "/cats/a.png": picture("red"), "/cats/a.txt": b"a red one", "/cats/in/b.png": picture(), "/cats/c.gif": b"x",
        "/cats/d.png": b"junk", "/cats/metadata.jsonl": b'{"file_name": "d.png", "text": "junk"}\n',
    }.items():  # fmt: skip
        memory.pipe(name, content)
    source = open_picture_files("memory://cats", None, cache)
    assert [source.key(i) for i in range(len(source))] == ["a.png", "d.png"]
    assert source.report.names == {"unsupported format": ["c.gif"], "without caption": ["in/b.png"]}
    assert source.read(0).image.getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(DroppedError, match=r"d\.png: broken picture"):
        source.read(1)
    memory.rm("/cats", recursive=True)
    with pytest.raises(DroppedError, match=r"a\.png: unreadable file"):
        source.read(0)


def test_what_a_page_links_to_elsewhere_is_counted_and_not_read(server: Server, cache: CacheSettings):
    (server.folder / "cats").mkdir()
    for name in ("cats/a.png", "b.png", "cats/b.png"):
        (server.folder / name).write_bytes(picture())
    (server.folder / "cats/metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n')
    links = ["a.png", "metadata.jsonl", "/b.png", "../b.png", "%2e%2e/b.png", "../style.css", "?C=N", "../", "/"]
    (server.folder / "cats/index.html").write_text("".join(f'<a href="{link}">x</a>' for link in links))
    source = open_picture_files(server.url + "/cats", None, cache)
    assert [source.key(i) for i in range(len(source))] == ["a.png"]
    assert source.read(0).caption == "a"
    assert sorted(source.report.names["outside the folder"]) == ["%2e%2e/b.png", "../b.png"]
    assert not [path for path in server.asked if "b.png" in path]


def test_parquet_elsewhere_may_name_pictures_beside_it(server: Server, cache: CacheSettings):
    (server.folder / "a.png").write_bytes(picture("red"))
    write_parquet(server.folder / "m.parquet", file_name=["a.png", "absent.png"], text=["one", "two"])
    source = open_picture_files(server.url + "/m.parquet", None, cache)
    assert source.read(0).image.getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(DroppedError, match="missing picture"):
        source.read(1)


def test_what_no_library_opens_is_said_in_one_line(cache: CacheSettings):
    for url, said in (
        ("pipe:cat /etc/passwd.tar", "passwd.tar does not exist"),
        ("nosuch://x/0.tar", "cannot be opened"),
        ("s3://bucket/0.tar", "s3fs"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            open_picture_files(url, None, cache)
        assert len(str(caught.value).splitlines()) == 1


def test_urls_are_shown_without_their_secrets():
    assert urls.redact("https://me:word@host/a.tar?sig=secret#x") == "https://host/a.tar"
    assert urls.redact("s3://bucket/a?b.tar") == "s3://bucket/a"
    assert FileVersion(3, "x") != FileVersion(3, "y")
