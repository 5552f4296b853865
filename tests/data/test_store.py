"""Where shards are kept: folders and URLs take the same bytes, whole or not at all."""

from pathlib import Path

import fsspec
import pytest
import torch

from fewstep.commands.prepare import prepare
from fewstep.data.shards.prepared import PreparedRow, check_written, write_manifest, write_shard
from fewstep.data.shards.store import FolderStore, UrlStore, find_url, open_store
from fewstep.data.sources import urls
from fewstep.errors import UserError
from fewstep.recipes.prepare import Prepare

ROWS = [PreparedRow(f"{i}", "a cat", (8, 8, 0, 0, 8, 8)) for i in range(2)]


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    for path in system.find("/shop"):
        system.rm(path)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket/latents", "s3://bucket/latents"), (Path("s3://bucket/latents"), "s3://bucket/latents"),
        (Path("simplecache::gs://b/x"), "simplecache::gs://b/x"), ("prepared", ""), ("/data/x:/y", ""), ("C:/data", ""),
        (Path("file:///data"), ""), ("./s3:/x", ""),
    ],
)  # fmt: skip
def test_a_url_is_known_though_a_path_has_taken_a_slash_from_it(given, url):
    assert find_url(given) == url


def test_a_file_url_is_a_folder_and_an_unknown_scheme_is_refused():
    assert open_store(Path("file:///data/x")).folder == Path("/data/x")
    with pytest.raises(UserError, match="nowhere://bucket cannot be opened: Protocol not known"):
        open_store("nowhere://user:secret@bucket")


def test_a_folder_and_a_url_hold_the_same(tmp_path, memory):
    held = []
    for store in (FolderStore(tmp_path), UrlStore("memory://shop/latents")):
        assert "a.safetensors" not in store
        assert store.list_names() == []
        write_shard(store, "a", ROWS, {"mean": torch.ones(2, 4, 1, 1)}, {"resolution": 8})
        write_manifest(store, ["a"], {"resolution": 8}, {"found": 2})
        assert store.list_names() == ["a.parquet", "a.safetensors", "prepared.json"]
        assert "a.safetensors" in store
        check_written(store, "a", {"resolution": 8})
        with pytest.raises(UserError, match=r"a.safetensors was prepared with resolution 8, not 16; choose another"):
            check_written(store, "a", {"resolution": 16})
        held.append({name: store.read(name) for name in store.list_names()})
        store.write("b.safetensors", b"\xff" * 20)
        with pytest.raises(UserError, match=r"b.safetensors is damaged .*; delete it and prepare it again"):
            check_written(store, "b", {})
    assert held[0] == held[1]
    assert memory.exists("/shop/latents/a.safetensors")


def test_an_upload_that_fails_leaves_nothing_and_is_tried_again(monkeypatch, memory):
    monkeypatch.setattr(urls, "WAITS", (0.0,))
    tries = []

    class Failing(type(memory)):
        cachable = False

        def _open(self, path, mode="rb", **more):
            file = super()._open(path, mode, **more)
            if mode == "wb" and len(tries) < 3:
                tries.append(path)
                file.write = lambda _: (_ for _ in ()).throw(ConnectionError("gone"))
            return file

    fsspec.register_implementation("failing", Failing, clobber=True)
    store = UrlStore("failing://shop")
    with pytest.raises(UserError, match=r"cannot be written \(ConnectionError gone, 2 tries\); check that .* to write"):
        store.write("x", b"whole")
    assert "x" not in store
    store.write("x", b"whole")
    assert len(tries) == 3
    assert store.read("x") == b"whole"


@pytest.mark.usefixtures("memory")
def test_preparing_into_a_url_makes_the_same_bytes_and_goes_on(tmp_path, capsys):
    config = {"model": "scenes", "pictures": 6, "part": 3, "batch_size": 2, "workers": 1}
    prepare(Prepare(**config, out=tmp_path / "here"))
    store = UrlStore("memory://shop/latents")
    name = sorted((tmp_path / "here").glob("*.safetensors"))[0].name
    for half in (name, name.replace("safetensors", "parquet")):
        store.write(half, (tmp_path / "here" / half).read_bytes())
    capsys.readouterr()
    prepare(Prepare(**config, out=Path("memory://shop/latents")))
    assert "2 shards of latents, 1 of them there already" in capsys.readouterr().out
    assert {name: store.read(name) for name in store.list_names()} == {
        file.name: file.read_bytes() for file in (tmp_path / "here").iterdir()
    }
    with pytest.raises(UserError, match="was prepared with crop middle, not random"):
        prepare(Prepare(**config, seed=1, crop="random", out=Path("memory://shop/latents")))
