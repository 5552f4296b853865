"""Tar shards as img2dataset writes them: captions, scores, hostile and damaged archives, changes during a run."""

from __future__ import annotations

import io
import os
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fewstep.data.sources.base import DroppedError, Source
from fewstep.data.sources.filters import Filters, Reason
from fewstep.data.sources.fitting import PictureLimits
from fewstep.data.sources.picture_files import open_picture_files
from fewstep.data.sources.remote import CacheSettings
from fewstep.data.sources.selection import Selection
from fewstep.errors import UserError
from written_shards import picture, sample, shard, write_parquet, write_tar


@pytest.fixture
def cache(tmp_path: Path) -> CacheSettings:
    return CacheSettings(folder=tmp_path / "cache", budget=1 << 30)


def captions_of(source: Source) -> dict[str, str]:
    return {source.key(i): source.caption(i) for i in range(len(source))}


def test_shards_are_read_in_order_each_picture_under_a_name_that_stays(tmp_path: Path, cache: CacheSettings):
    data = tmp_path / "data"
    shard(data / "00001.tar", ["000010000"])
    shard(data / "00000.tar", ["000000000", "000000001"])
    shard(data / "more" / "00002.tar", [])
    source = open_picture_files(str(data), None, cache)
    assert source.shard_sizes == (2, 1, 0)
    assert [source.shard_name(i) for i in range(3)] == ["00000.tar", "00001.tar", "more/00002.tar"]
    assert captions_of(source) == {
        "00000.tar/000000000.jpg": "caption of 000000000",
        "00000.tar/000000001.jpg": "caption of 000000001",
        "00001.tar/000010000.jpg": "caption of 000010000",
    }
    example = source.read(2)
    assert (example.image.mode, example.image.size, example.caption) == ("RGB", (40, 30), "caption of 000010000")
    assert source.report.format_summary() == "data: 3 pictures found, 3 used, 0 dropped"
    for index in (-1, 3):
        with pytest.raises(IndexError):
            source.read(index)


def test_every_picture_is_its_own_and_any_order_of_asking_gives_the_same(tmp_path: Path, cache: CacheSettings):
    colours = [(10 * i, 255 - 10 * i, 7) for i in range(20)]
    for number in range(4):
        members: dict[str, bytes] = {}
        for i in range(number * 5, number * 5 + 5):
            members |= sample(f"{i:04}", f"picture {i}", picture(colours[i]))
        write_tar(tmp_path / "d" / f"{number}.tar", members)
    source = open_picture_files(str(tmp_path / "d" / "{0..3}.tar"), None, cache)
    for index in [*range(19, -1, -1), *range(0, 20, 3)]:
        example = source.read(index)
        assert np.asarray(example.image)[0, 0].tolist() == list(colours[index])
        assert example.caption == f"picture {index}"


def test_a_caption_is_in_the_text_else_in_the_json_else_in_the_parquet_beside(tmp_path: Path, cache: CacheSettings):
    one = tmp_path / "d" / "0.tar"
    write_tar(one, {
        "a.jpg": picture(), "a.txt": b" from\n text ", "a.json": b'{"caption": "from json"}',
        "b.PNG": picture(), "b.json": b'{"TEXT": "from json"}',
        "c.jpg": picture(), "c.json": b'{"url": "x"}',
        "d.jpg": picture(), "d.txt": b"\xff", "e.jpg": picture(), "e.txt": b" ",
        "f.jpg": picture(), "f.json": b"{", "g.jpg": picture(), "g.txt": b"kept", "g.json": b"{",
        "h.gif": picture(), "notes.md": b"no picture", "i.webp": picture(kind="WEBP"),
    })  # fmt: skip
    source = open_picture_files(str(one), None, cache)
    assert captions_of(source) == {"0.tar/a.jpg": "from text", "0.tar/b.PNG": "from json", "0.tar/g.jpg": "kept"}
    assert source.report.names == {
        "unsupported format": ["0.tar/h.gif"],
        "without caption": ["0.tar/c.jpg", "0.tar/i.webp"],
        "empty caption": ["0.tar/e.jpg"],
        "caption not UTF-8": ["0.tar/d.jpg"],
        "unreadable metadata": ["0.tar/f.jpg"],
    }
    write_parquet(tmp_path / "d" / "0.parquet", key=["c", "i"], caption=["from parquet", None])
    source = open_picture_files(str(one), None, cache)
    assert captions_of(source)["0.tar/c.jpg"] == "from parquet"
    assert source.report.names["without caption"] == ["0.tar/i.webp"]


def test_captions_may_be_asked_for_in_another_field(tmp_path: Path, cache: CacheSettings):
    path = write_tar(tmp_path / "0.tar", sample("a", "alt text", Recaption="told anew") | sample("b", "alt text"))
    source = open_picture_files(str(path), Selection(captions=("recaption",)), cache)
    assert captions_of(source) == {"0.tar/a.jpg": "told anew"}
    assert source.report.dropped == {"without caption": 1}
    assert len(open_picture_files(str(path), None, cache)) == 2


def test_rows_of_the_parquet_that_have_no_picture_are_counted(tmp_path: Path, cache: CacheSettings):
    path = shard(tmp_path / "0.tar", ["a"])
    write_parquet(
        tmp_path / "0.parquet", key=["a", "b", "c"], caption=["x", "y", "z"],
        status=["success", "failed_to_download", "success"],
    )  # fmt: skip
    report = open_picture_files(str(path), None, cache).report
    assert report.names == {"missing picture": ["0.tar/c"], "not downloaded": ["0.tar/b"]}
    (tmp_path / "0.parquet").write_bytes(b"PAR1 not at all")
    report = open_picture_files(str(path), None, cache).report
    assert report.names == {"unreadable metadata": ["0.tar its .parquet"]}
    assert report.used == 1


@pytest.mark.parametrize("beside", [False, True])
def test_filters_read_the_json_or_the_parquet_and_give_their_reasons(
    tmp_path: Path, cache: CacheSettings, beside: bool
):
    scores: list[float | None] = [4.5, 6.0, None]
    members: dict[str, bytes] = {}
    for key, score in zip("abc", scores, strict=True):
        members |= sample(key, key, **({} if beside else {"AESTHETIC_SCORE": score}))
    path = write_tar(tmp_path / "0.tar", members)
    if beside:
        write_parquet(tmp_path / "0.parquet", key=list("abc"), aesthetic=pa.array(scores))
    source = open_picture_files(str(path), Selection(filters=Filters(min_aesthetic=6)), cache)
    assert captions_of(source) == {"0.tar/b.jpg": "b"}
    assert source.report.names == {
        "without aesthetic score": ["0.tar/c.jpg"], "aesthetic score below 6": ["0.tar/a.jpg"],
    }  # fmt: skip
    accepting = Selection(filters=Filters(min_aesthetic=6, missing="accept"))
    assert len(open_picture_files(str(path), accepting, cache)) == 2
    with pytest.raises(UserError, match=r"0\.tar/c\.jpg has no aesthetic score"):
        open_picture_files(str(path), Selection(filters=Filters(min_aesthetic=6, missing="error")), cache)


def test_true_sides_are_held_to_the_limit_when_metadata_is_silent_or_wrong(tmp_path: Path, cache: CacheSettings):
    members = sample("a", "a", width=600, height=600) | sample("b", "b")
    path = write_tar(tmp_path / "0.tar", members)
    source = open_picture_files(str(path), Selection(filters=Filters(min_side=100, missing="accept")), cache)
    for index, key in enumerate(("0.tar/a.jpg", "0.tar/b.jpg")):
        with pytest.raises(DroppedError) as caught:
            source.read(index)
        assert (caught.value.key, caught.value.reason) == (key, "shorter side below 100")


def test_files_above_the_limit_are_counted_at_opening_and_broken_ones_when_read(tmp_path: Path, cache: CacheSettings):
    path = write_tar(tmp_path / "0.tar", {
        "a.jpg": b"x" * 2000, "a.txt": b"large", "b.jpg": b"x" * 100, "b.txt": b"broken", "c.jpg": picture(),
        "c.txt": b"whole", "d.jpg": b"", "d.txt": b"nothing",
    })  # fmt: skip
    source = open_picture_files(str(path), Selection(limits=PictureLimits(max_bytes=1000)), cache)
    assert source.report.names == {"too large": ["0.tar/a.jpg"]}
    outcomes = []
    for index in range(3):
        try:
            outcomes.append(source.read(index).caption)
        except DroppedError as dropped:
            outcomes.append(f"{dropped.key} {dropped.reason}")
    assert outcomes == ["0.tar/b.jpg broken picture", "whole", "0.tar/d.jpg broken picture"]


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_links_devices_and_names_that_lead_out_are_counted_and_never_followed(tmp_path: Path, cache: CacheSettings):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        for key in ("a", "/abs", "../up", "in/../../up", "C:\\win", "\\\\server\\b"):
            for name, content in {f"{key}.png": picture(), f"{key}.txt": b"words"}.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        archive.addfile(special("soft.png", tarfile.SYMTYPE, str(secret)))
        archive.addfile(special("hard.png", tarfile.LNKTYPE, "a.png"))
        archive.addfile(special("pipe.png", tarfile.FIFOTYPE))
        archive.addfile(special("device.png", tarfile.CHRTYPE))
        archive.addfile(special("folder.png", tarfile.DIRTYPE))
    source = open_picture_files(str(path), None, cache)
    assert captions_of(source) == {"0.tar/a.png": "words"}
    assert source.report.dropped == {"outside the folder": 10, "link or device": 4}


def test_a_name_that_comes_again_is_counted_and_the_first_is_used(tmp_path: Path, cache: CacheSettings):
    path = write_tar(tmp_path / "0.tar", [
        ("a.png", picture("red")), ("a.txt", b"first"), ("a.png", picture("blue")), ("a.txt", b"second"),
    ])  # fmt: skip
    source = open_picture_files(str(path), None, cache)
    assert source.read(0).caption == "first"
    assert source.read(0).image.getpixel((0, 0)) == (255, 0, 0)
    assert source.report.dropped == {"repeated name": 2}


def test_long_and_foreign_names_are_kept(tmp_path: Path, cache: CacheSettings):
    long = "f" * 180 + "/" + "n" * 150
    path = tmp_path / "0.tar"
    for style in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(path, "w", format=style, encoding="utf-8", errors="surrogateescape") as archive:
            for name, content in {f"{long}é.png": picture(), f"{long}é.txt": b"long", "caf\udce9.png": picture(),
                                  "caf\udce9.txt": b"latin"}.items():  # fmt: skip
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        source = open_picture_files(str(path), None, cache)
        assert list(captions_of(source).values()) == ["long", "latin"]
        assert source.key(0) == f"0.tar/{long}é.png"
        assert [source.read(i).image.size for i in range(2)] == [(40, 30), (40, 30)]


def spoiled(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_of_a_damaged_tar_what_is_whole_before_the_damage_is_used(tmp_path: Path, cache: CacheSettings):
    whole = shard(tmp_path / "whole.tar", ["a", "b", "c"]).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        starts = {member.name: (member.offset, member.offset_data) for member in archive}
    header, data = starts["b.jpg"]
    cut = spoiled(tmp_path / "cut.tar", whole[: data + 10])
    corrupt = spoiled(tmp_path / "corrupt.tar", whole[:header] + b"\xff" * 512 + whole[header + 512 :])
    endless = spoiled(tmp_path / "no end.tar", whole[: starts["c.jpg"][0]])
    glued = spoiled(tmp_path / "glued.tar", whole + whole)
    for path, used in ((cut, 1), (corrupt, 1), (endless, 2), (glued, 3)):
        source = open_picture_files(str(path), None, cache)
        assert len(source) == used, path
        assert [source.read(i).image.size for i in range(used)] == [(40, 30)] * used
        assert source.report.dropped == {"damaged shard": 1}
        assert source.report.names["damaged shard"][0].startswith(f"{path.name} from byte ")
    assert f"from byte {header:,}" in open_picture_files(str(corrupt), None, cache).report.names["damaged shard"][0]


@pytest.mark.parametrize("content", [b"", b"junk" * 1000, b"\x1f\x8b" + b"\0" * 2000, bytes(range(256)) * 40])
def test_what_is_no_tar_is_counted_beside_those_that_are(tmp_path: Path, cache: CacheSettings, content: bytes):
    shard(tmp_path / "d" / "0.tar", ["a"])
    spoiled(tmp_path / "d" / "1.tar", content)
    source = open_picture_files(str(tmp_path / "d"), None, cache)
    assert (len(source), source.shard_sizes) == (1, (1, 0))
    assert source.report.names == {"damaged shard": ["1.tar from byte 0"]}
    with pytest.raises(UserError, match=r"nothing to train on in .*1\.tar: 1 pictures.*1 damaged"):
        open_picture_files(str(tmp_path / "d" / "1.tar"), None, cache)


def read_all(source: Source) -> dict[str, int]:
    counts: dict[str, int] = {"used": 0}
    for i in range(len(source)):
        try:
            source.read(i)
            counts["used"] += 1
        except DroppedError as dropped:
            counts[dropped.reason] = counts.get(dropped.reason, 0) + 1
    return counts


def pax(claimed: int = 100, **fields: str) -> bytes:
    info = tarfile.TarInfo("a.png")
    info.size = claimed
    info.pax_headers = fields
    return info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    "header",
    [
        pax(size="-5"), pax(size=str(1 << 62)), pax(**{"GNU.sparse.map": "0,9999999", "GNU.sparse.size": "9999999"}),
        pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "5"}),
        pax(1 << 40), pax(path="../../etc/passwd"), pax(path="/etc/passwd"),
    ],
)  # fmt: skip
def test_tricks_in_headers_read_nothing_outside_the_shard(tmp_path: Path, cache: CacheSettings, header: bytes):
    good = shard(tmp_path / "good.tar", ["z"]).read_bytes()
    content = good.rstrip(b"\0")
    content += b"\0" * (-len(content) % 512) + header + b"y" * 512 + b"\0" * 1024
    source = open_picture_files(str(spoiled(tmp_path / "0.tar", content)), None, cache)
    assert [key for key in captions_of(source) if "z.jpg" in key] == ["0.tar/z.jpg"]
    assert set(read_all(source)) <= {"used", Reason.BROKEN}
    assert source.report.found == source.report.used + sum(source.report.dropped.values())


def test_an_oversized_header_is_damage_and_is_not_read_into_memory(tmp_path: Path, cache: CacheSettings):
    good = shard(tmp_path / "0.tar", ["z"]).read_bytes().rstrip(b"\0")
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.XHDTYPE, 8 << 20
    content = good + b"\0" * (-len(good) % 512) + info.tobuf() + b"9" * (8 << 20) + b"\0" * 1024
    source = open_picture_files(str(spoiled(tmp_path / "0.tar", content)), None, cache)
    assert (len(source), source.report.dropped) == (1, {"damaged shard": 1})


def test_damage_anywhere_is_counted_and_never_crashes(tmp_path: Path, cache: CacheSettings):
    whole = shard(tmp_path / "d" / "sure.tar", ["a", "b", "c", "d"]).read_bytes()
    for number in range(60):
        rng, content = random.Random(number), bytearray(whole)
        for _ in range(rng.randint(1, 30)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
        spoiled(tmp_path / "d" / f"{number:02}.tar", bytes(content))
    source = open_picture_files(str(tmp_path / "d"), None, cache)
    used = read_all(source)
    assert used["used"] >= 4
    assert sum(used.values()) == len(source)


def test_an_index_is_kept_and_made_anew_when_the_shard_or_its_metadata_changes(
    tmp_path: Path, cache: CacheSettings, monkeypatch: pytest.MonkeyPatch
):
    path = shard(tmp_path / "0.tar", ["a"])
    open_picture_files(str(path), None, cache)
    opened: list[str] = []
    real = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: opened.append("tar") or real(*a, **k))
    source = open_picture_files(str(path), None, cache)
    assert (len(source), opened) == (1, [])
    filtered = open_picture_files(str(path), Selection(filters=Filters(min_side=30, missing="accept")), cache)
    assert (len(filtered), opened) == (1, [])  # other filters, the same index
    shard(path, ["a", "b"])
    assert len(open_picture_files(str(path), None, cache)) == 2
    made = len(opened)
    write_parquet(tmp_path / "0.parquet", key=["a"], caption=["anew"])
    open_picture_files(str(path), None, cache)
    assert len(opened) > made


def test_a_lost_or_spoiled_index_is_made_again(tmp_path: Path, cache: CacheSettings):
    path = shard(tmp_path / "0.tar", ["a", "b"])
    source = open_picture_files(str(path), None, cache)
    for file in cache.folder.rglob("*.parquet"):
        file.write_bytes(b"spoiled")
    assert source.read(1).caption == "caption of b"
    assert len(open_picture_files(str(path), None, cache)) == 2


def test_a_shard_that_changes_or_vanishes_during_the_run_costs_its_pictures_and_no_more(
    tmp_path: Path, cache: CacheSettings
):
    for number in range(3):
        shard(tmp_path / "d" / f"{number}.tar", [f"{number}"])
    source = open_picture_files(str(tmp_path / "d"), None, cache)
    (tmp_path / "d" / "0.tar").unlink()
    shard(tmp_path / "d" / "1.tar", ["1", "other"])
    for index, (key, reason) in enumerate(
        [("0.tar/0.jpg", Reason.MISSING_SHARD), ("1.tar/1.jpg", Reason.CHANGED_SHARD)]
    ):
        with pytest.raises(DroppedError) as caught:
            source.read(index)
        assert (caught.value.key, caught.value.reason) == (key, reason)
    assert source.read(2).caption == "caption of 2"
    for file in (cache.folder / "indexes").iterdir():
        file.unlink()
    elsewhere = pickle.loads(pickle.dumps(source))  # in which no index is in memory any more
    with pytest.raises(DroppedError, match="missing shard"):
        elsewhere.read(0)
    assert elsewhere.read(2).caption == "caption of 2"


def test_a_source_goes_to_another_process_and_reads_there(tmp_path: Path, cache: CacheSettings):
    source = open_picture_files(str(shard(tmp_path / "0.tar", ["a"])), None, cache)
    source.read(0)
    again = pickle.loads(pickle.dumps(source))
    assert again.read(0).caption == "caption of a"
    assert again.report == source.report


def test_shards_that_are_named_and_not_there_are_counted(tmp_path: Path, cache: CacheSettings):
    shard(tmp_path / "00000.tar", ["a"])
    source = open_picture_files(str(tmp_path / "{00000..00002}.tar"), None, cache)
    assert source.shard_sizes == (1, 0, 0)
    assert source.report.names == {"missing shard": ["00001.tar", "00002.tar"]}


@pytest.mark.skipif(os.name == "nt", reason="no mode bits")
def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path):
    path = shard(tmp_path / "0.tar", ["a"])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be kept in") as caught:
        open_picture_files(str(path), None, CacheSettings(folder=tmp_path / "file"))
    assert len(str(caught.value).splitlines()) == 1


def test_pictures_of_all_formats_come_out_of_a_tar(tmp_path: Path, cache: CacheSettings):
    members: dict[str, bytes] = {}
    for key, kind in (("a.jpg", "JPEG"), ("b.jpeg", "JPEG"), ("c.PNG", "PNG"), ("d.webp", "WEBP")):
        members |= {key: picture(kind=kind), key.split(".")[0] + ".txt": b"words"}
    source = open_picture_files(str(write_tar(tmp_path / "0.tar", members)), None, cache)
    assert all(isinstance(source.read(i).image, Image.Image) for i in range(4))
