"""Latents that `fewstep prepare --out URL` wrote, learnt from where they are."""

import json
from pathlib import Path

import fsspec
import pytest

import fewstep
from fewstep.commands.inspect import Inspect, inspect
from fewstep.commands.prepare import prepare
from fewstep.data.shards.manifest import MANIFEST, is_prepared
from fewstep.data.shards.prepared import PreparedShards
from fewstep.data.sources import urls as sources_urls
from fewstep.data.sources.picture_files import open_picture_files
from fewstep.data.sources.remote import CacheSettings
from fewstep.errors import UserError
from fewstep.recipes.prepare import Prepare


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The URL of eight scenes in two shards; the folder with the same."""
    folder, url = tmp_path_factory.mktemp("latents"), "memory://bucket/latents"
    for out in (str(folder), url):
        prepare(Prepare(data="scenes", model="scenes", pictures=8, part=4, workers=1, out=Path(out)))
    return url, folder


def train(out, data):
    config = fewstep.configure(
        "distill", "scenes", data=str(data), steps=3, batch_size=4, sample_every=0, log_every=1, out=out, device="cpu"
    )
    fewstep.distill(config, quiet=True)
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_the_same_behind_a_url_and_fetches_each_file_once(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    url, folder = bucket
    memory, fetched = fsspec.filesystem("memory"), []
    get = type(memory).get_file
    monkeypatch.setattr(
        type(memory),
        "get_file",
        lambda self, path, *rest, **more: fetched.append(path) or get(self, path, *rest, **more),
    )
    assert train(tmp_path / "far", url) == train(tmp_path / "near", folder)
    names = [path.name for path in folder.iterdir() if path.name != ".lock"]
    assert sorted(path.rpartition("/")[2] for path in fetched) == sorted(names)


def test_what_is_not_all_there_is_told_by_name(bucket, tmp_path):
    url, _ = bucket
    memory, cache = fsspec.filesystem("memory"), CacheSettings(folder=tmp_path)
    memory.copy(url, "memory://bucket/half", recursive=True)
    shards = PreparedShards("memory://bucket/half", cache=cache)
    lost = shards.names[1]
    memory.rm(f"/bucket/half/{lost}.parquet")
    with pytest.raises(UserError, match=rf"memory://bucket/half/{lost}.parquet cannot be read"):
        shards.read_row(1, 0)


def test_a_list_that_names_what_is_elsewhere_is_refused(bucket, tmp_path):
    url, _ = bucket
    memory = fsspec.filesystem("memory")
    held = json.loads(memory.cat_file(f"{url}/{MANIFEST}"))
    held["shards"] = {f"../latents/{name}": count for name, count in held["shards"].items()}
    memory.pipe_file("memory://bucket/forged/" + MANIFEST, json.dumps(held).encode())
    with pytest.raises(UserError, match="leads out of it"):
        PreparedShards("memory://bucket/forged", cache=CacheSettings(folder=tmp_path)).read_row(0, 0)


def test_only_what_may_be_a_folder_is_asked_for(bucket):
    url, folder = bucket
    assert is_prepared(url)
    assert is_prepared(f"file://{folder}")
    assert not is_prepared("memory://bucket")
    assert not is_prepared("nosuchscheme://host/pictures-{000..999}.tar")  # which would raise if it were opened


def test_a_folder_may_be_called_as_a_file_is_and_a_query_goes_behind_each_file(bucket, tmp_path, monkeypatch):
    url, folder = bucket
    fsspec.filesystem("memory").copy(url, "memory://bucket/latents.v2", recursive=True)
    assert is_prepared("memory://bucket/latents.v2")
    shards = PreparedShards("memory://bucket/latents.v2", cache=CacheSettings(folder=tmp_path))
    assert shards.read_row(1, 0) == PreparedShards(folder).read_row(1, 0)
    asked = []
    monkeypatch.setattr(sources_urls, "find_versions", lambda given: asked.extend(given) or {})
    with pytest.raises(UserError, match="is not completely prepared"):
        PreparedShards("https://host/latents?token=a", cache=CacheSettings(folder=tmp_path))
    assert asked == [f"https://host/latents/{MANIFEST}?token=a"]


def test_a_damaged_copy_is_called_by_the_name_of_what_it_is_a_copy_of(bucket, tmp_path):
    url, _ = bucket
    memory = fsspec.filesystem("memory")
    memory.copy(url, "memory://bucket/cut", recursive=True)
    shards = PreparedShards("memory://bucket/cut", cache=CacheSettings(folder=tmp_path))
    file = f"memory://bucket/cut/{shards.names[0]}.safetensors"
    memory.pipe_file(file, memory.cat_file(file)[:-50])
    with pytest.raises(UserError, match=rf"^{file} is damaged"):
        shards.read_row(0, 0)


@pytest.mark.usefixtures("bucket")
def test_a_mistyped_url_is_said_to_hold_nothing(tmp_path):
    with pytest.raises(UserError, match=r"^nothing lies behind memory://bucket/latent, ") as caught:
        open_picture_files("memory://bucket/latent", None, CacheSettings(folder=tmp_path))
    assert f"looked for {MANIFEST}" in str(caught.value)
    assert "folder with neither" not in str(caught.value)


def test_inspect_tells_what_a_url_holds(bucket, capsys):
    url, folder = bucket

    def show(place):
        inspect(Inspect(path=Path(place)))
        return capsys.readouterr().out

    assert show(url) == show(folder).replace(str(folder), url)
    assert show(url).startswith("prepared: 8 latents in 2 shards\n")
    assert show(f"file://{folder}") == show(folder)


@pytest.mark.usefixtures("bucket")
def test_inspect_says_what_it_can_of_a_url_that_holds_no_latents():
    fsspec.filesystem("memory").pipe_file("memory://models/one/model_index.json", b"{}")
    for url, held in (("memory://bucket/latent", ""), ("memory://models/one", ", but model_index.json")):
        with pytest.raises(UserError, match=f"^{url} has no {MANIFEST}{held}; .*`fewstep prepare --out`"):
            inspect(Inspect(path=Path(url)))
