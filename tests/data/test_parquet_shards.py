"""Parquet files: pictures in a column of bytes, in Hugging Face's struct, or as paths beside the file."""

from __future__ import annotations

import contextlib
import random
import resource
import tarfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fewstep.data.shards import parquet_index
from fewstep.data.sources.base import DroppedError, Source
from fewstep.data.sources.filters import Filters, Reason
from fewstep.data.sources.picture_files import open_picture_files
from fewstep.data.sources.remote import CacheSettings
from fewstep.data.sources.selection import Selection
from fewstep.errors import UserError
from warm_command import FORK, start_server
from written_shards import picture, write_parquet


@pytest.fixture
def cache(tmp_path: Path) -> CacheSettings:
    return CacheSettings(folder=tmp_path / "cache", budget=1 << 30)


def captions_of(source: Source) -> dict[str, str]:
    return {source.key(i): source.caption(i) for i in range(len(source))}


def colours(count: int) -> list[tuple[int, int, int]]:
    return [(9 * i, 250 - 9 * i, 40) for i in range(count)]


@pytest.mark.parametrize("group", [1, 7, 100])
def test_bytes_in_a_column_are_found_whatever_the_row_groups(tmp_path: Path, cache: CacheSettings, group: int):
    rows = colours(20)
    write_parquet(
        tmp_path / "d/a.parquet", group, image=[picture(c) for c in rows[:12]], text=[f"n {i}" for i in range(12)]
    )
    write_parquet(
        tmp_path / "d/b.parquet", group, JPG=[picture(c) for c in rows[12:]], TEXT=[f"n {i}" for i in range(12, 20)]
    )
    source = open_picture_files(str(tmp_path / "d"), None, cache)
    assert source.shard_sizes == (12, 8)
    assert source.key(13) == "b.parquet/1"
    for index in (19, 0, 11, 12, 5, 13):
        example = source.read(index)
        assert (example.image.getpixel((0, 0)), example.caption) == (rows[index], f"n {index}")


def test_hugging_faces_struct_of_bytes_and_path_is_read(tmp_path: Path, cache: CacheSettings):
    (tmp_path / "beside.png").write_bytes(picture("blue"))
    images = [
        {"bytes": picture("red"), "path": "one.png"}, {"bytes": None, "path": "beside.png"},
        {"bytes": None, "path": "absent.png"}, {"bytes": None, "path": None}, None,
    ]  # fmt: skip
    path = write_parquet(tmp_path / "train-00000.parquet", image=images, caption=list("abcde"))
    source = open_picture_files(str(path), None, cache)
    assert list(captions_of(source))[:2] == ["train-00000.parquet/one.png", "train-00000.parquet/beside.png"]
    assert [source.read(i).image.getpixel((0, 0)) for i in range(2)] == [(255, 0, 0), (0, 0, 255)]
    for index, reason in ((2, Reason.UNREADABLE), (3, Reason.MISSING), (4, Reason.MISSING)):
        with pytest.raises(DroppedError) as caught:
            source.read(index)
        assert caught.value.reason == reason
        assert caught.value.key.startswith("train-00000.parquet/")


@pytest.mark.parametrize("column", ["file_name", "path", "key"])
def test_paths_lead_to_pictures_beside_the_file_and_not_elsewhere(tmp_path: Path, cache: CacheSettings, column: str):
    (tmp_path / "outside.png").write_bytes(picture())
    (tmp_path / "d/in").mkdir(parents=True)
    (tmp_path / "d/in/a.png").write_bytes(picture("red"))
    (tmp_path / "d/b.webp").write_bytes(picture("blue", kind="WEBP"))
    names = ["in/a.png", "b", "absent.png", "../outside.png", str(tmp_path / "outside.png"), None, "in"]
    path = write_parquet(tmp_path / "d/metadata.parquet", text=list("abcdefg"), **{column: names})
    source = open_picture_files(str(path), None, cache)
    assert captions_of(source) == {"metadata.parquet/in/a.png": "a", "metadata.parquet/b": "b"}
    assert source.read(0).image.getpixel((0, 0)) == (255, 0, 0)
    assert source.report.dropped == {"missing picture": 3, "outside the folder": 2}
    (tmp_path / "d/in/a.png").unlink()
    with pytest.raises(DroppedError, match="unreadable file"):
        source.read(0)


def test_rows_are_counted_by_what_they_lack(tmp_path: Path, cache: CacheSettings):
    path = write_parquet(
        tmp_path / "0.parquet",
        jpg=[picture()] * 4 + [None] + [b"junk"],
        key=pa.array(range(6)),
        caption=pa.array([b"whole", b" ", b"\xff", None, b"x", b"broken"], pa.binary()).cast(pa.binary()),
        status=["success"] * 4 + ["failed_to_download", "success"],
    )
    source = open_picture_files(str(path), None, cache)
    assert captions_of(source) == {"0.parquet/0": "whole", "0.parquet/5": "broken"}
    assert source.report.dropped == {
        "without caption": 1, "empty caption": 1, "caption not UTF-8": 1, "not downloaded": 1,
    }  # fmt: skip
    with pytest.raises(DroppedError, match=r"0\.parquet/5: broken picture"):
        source.read(1)


def test_captions_in_strings_that_are_not_utf8_cost_their_row_alone(tmp_path: Path, cache: CacheSettings):
    texts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xe9\xfe", b"good"], pa.binary()).buffers())
    path = write_parquet(tmp_path / "0.parquet", image=[picture()] * 2, text=texts)
    source = open_picture_files(str(path), None, cache)
    assert captions_of(source) == {"0.parquet/1": "good"}
    assert source.report.dropped == {"caption not UTF-8": 1}


def test_the_first_caption_column_with_a_value_counts_unless_one_is_asked_for(tmp_path: Path, cache: CacheSettings):
    path = write_parquet(
        tmp_path / "0.parquet", image=[picture()] * 2, TEXT=["plain", "plain"], caption=["better", None],
        kosmos=pa.array(["long", "longer"]).dictionary_encode(),
    )  # fmt: skip
    assert list(captions_of(open_picture_files(str(path), None, cache)).values()) == ["better", "plain"]
    asked = open_picture_files(str(path), Selection(captions=("Kosmos",)), cache)
    assert list(captions_of(asked).values()) == ["long", "longer"]


def test_scores_are_taken_from_any_type_of_column(tmp_path: Path, cache: CacheSettings):
    path = write_parquet(
        tmp_path / "0.parquet", image=[picture()] * 4, text=list("abcd"),
        Aesthetic_Score_LAION_v2=pa.array([5.5, 6.5, None, 7.5], pa.float32()), pwatermark=["0.1", "0.9", "x", "0.2"],
        punsafe=[False, False, False, True],
    )  # fmt: skip
    for filters, left in (
        (Filters(min_aesthetic=6), "bd"), (Filters(max_watermark=0.5), "ad"), (Filters(max_unsafe=0.5), "abc"),
        (Filters(min_aesthetic=6, max_watermark=0.5, missing="accept"), "cd"),
    ):  # fmt: skip
        source = open_picture_files(str(path), Selection(filters=filters), cache)
        assert "".join(captions_of(source).values()) == left
        assert source.report.found == 4


def test_files_without_pictures_or_with_row_groups_too_large_are_refused(
    tmp_path: Path, cache: CacheSettings, monkeypatch: pytest.MonkeyPatch
):
    path = write_parquet(tmp_path / "0.parquet", URL=["http://x"], TEXT=["words"], n=[1])
    with pytest.raises(UserError, match=r"0\.parquet has no column of pictures .*its columns are URL, TEXT, n$"):
        open_picture_files(str(path), None, cache)
    path = write_parquet(tmp_path / "1.parquet", image=[picture()] * 100, text=["a"] * 100)
    monkeypatch.setattr(parquet_index, "MOST_BYTES", 50)
    with pytest.raises(UserError, match=r"bytes in one row group .* write it again with a smaller row_group_size"):
        open_picture_files(str(path), None, cache)


def open_in_little_memory(folder: str) -> None:
    """Opens what is in a folder, and reads of it, in under 2 GiB and 5 s of this process."""
    settings = CacheSettings(folder=Path(folder) / "cache", budget=1 << 30)
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    for pattern in ("*.parquet", "*.tar"):
        with contextlib.suppress(UserError):  # nothing to train on
            source = open_picture_files(f"{folder}/{pattern}", None, settings)
            for index in range(min(5, len(source))):
                with contextlib.suppress(DroppedError):
                    source.read(index)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss < 2 * 2**20  # KiB
    assert time.process_time() - started < 5


@pytest.mark.parametrize("column", ["image", "text"])
def test_a_small_file_cannot_stand_for_gigabytes(tmp_path: Path, column: str):
    """A value that a dictionary holds once, and rows of nothing that no byte stands for."""
    shares = pa.array([1] * 10_000, pa.int32())
    values = {"image": [picture(), picture()], "text": ["a", "b"]}
    values[column][1] = b"x" * 500_000 if column == "image" else "x" * 500_000
    large = {name: pa.DictionaryArray.from_arrays(shares, each) for name, each in values.items()}
    pq.write_table(pa.table(large), tmp_path / "values.parquet", store_schema=False, dictionary_pagesize_limit=2**20)
    assert (tmp_path / "values.parquet").stat().st_size < 100_000
    nothing = {"image": pa.nulls(5_000_000, pa.binary()), "text": pa.nulls(5_000_000, pa.string())}
    pq.write_table(pa.table(nothing), tmp_path / "nothing.parquet")
    tarfile.open(tmp_path / "nothing.tar", "w").close()
    start_server()
    process = FORK.Process(target=open_in_little_memory, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_damaged_file_is_counted(tmp_path: Path, cache: CacheSettings):
    good = write_parquet(tmp_path / "d/0.parquet", image=[picture()], text=["a"]).read_bytes()
    for number, content in enumerate((b"", b"PAR1junkPAR1", good[:-20], good[: len(good) // 2]), start=1):
        (tmp_path / f"d/{number}.parquet").write_bytes(content)
    source = open_picture_files(str(tmp_path / "d"), None, cache)
    assert source.shard_sizes == (1, 0, 0, 0, 0)
    assert source.report.names == {"damaged shard": [f"{number}.parquet" for number in range(1, 5)]}


def test_damage_anywhere_is_counted_and_never_crashes(tmp_path: Path, cache: CacheSettings):
    rows = [{"bytes": picture(), "path": f"{i}.png"} for i in range(8)]
    whole = write_parquet(tmp_path / "d/sure.parquet", 3, image=rows, text=list("abcdefgh"), aesthetic=[5.0] * 8)
    content = whole.read_bytes()
    for number in range(100):
        rng, spoiled = random.Random(number), bytearray(content)
        for _ in range(rng.randint(1, 6)):
            spoiled[rng.randrange(rng.choice((0, len(content) - 900)), len(content))] = rng.randrange(256)
        (tmp_path / f"d/{number:03}.parquet").write_bytes(spoiled)
    source = open_picture_files(str(tmp_path / "d"), None, cache)
    outcomes = Counter[str]()
    for i in range(len(source)):
        try:
            source.read(i)
            outcomes["used"] += 1
        except DroppedError as dropped:
            outcomes[dropped.reason] += 1
    assert outcomes["used"] >= 8
    assert set(outcomes) <= {"used", Reason.BROKEN, Reason.MISSING, Reason.UNREADABLE, Reason.DAMAGED_SHARD}
    assert source.report.dropped["damaged shard"] > 50


def test_a_file_that_changes_or_vanishes_during_the_run_costs_its_pictures_alone(tmp_path: Path, cache: CacheSettings):
    for number in range(3):
        write_parquet(tmp_path / f"d/{number}.parquet", image=[picture()], text=[str(number)])
    source = open_picture_files(str(tmp_path / "d"), None, cache)
    (tmp_path / "d/0.parquet").unlink()
    write_parquet(tmp_path / "d/1.parquet", image=[picture()] * 3, text=["x"] * 3)
    for index, reason in enumerate((Reason.MISSING_SHARD, Reason.CHANGED_SHARD)):
        with pytest.raises(DroppedError, match=reason):
            source.read(index)
    assert source.read(2).caption == "2"


def test_threads_read_what_one_alone_would(tmp_path: Path, cache: CacheSettings):
    rows = colours(20)
    write_parquet(tmp_path / "0.parquet", 3, image=[picture(c) for c in rows], text=["x"] * 20)
    source = open_picture_files(str(tmp_path / "0.parquet"), None, cache)
    wanted = [*range(20)] * 5
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: source.read(index).image.getpixel((0, 0)), wanted))
    assert found == [rows[index] for index in wanted]
