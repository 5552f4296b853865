"""Ten thousand shards of ten thousand pictures, whose indexes were made before, are opened in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from fewstep.data.shards.formats import NamedShard, TarShards
from fewstep.data.shards.index import Entry, IndexBuilder
from fewstep.data.shards.source import ShardIndexer
from fewstep.data.shards.summaries import ShardSummary, save_summaries, summary_path
from fewstep.data.sources.filters import NO_SCORES
from fewstep.data.sources.remote import CacheSettings, Shard, ShardCache
from fewstep.data.sources.selection import Selection
from fewstep.data.sources.urls import find_versions

SHARDS, PICTURES = 10_000, 10_000

OPEN = r"""
import json, re, sys, time
from pathlib import Path
from fewstep.data.sources.remote import CacheSettings
from fewstep.data.sources.picture_files import open_picture_files
start = time.perf_counter()
source = open_picture_files(sys.argv[1], None, CacheSettings(folder=Path(sys.argv[2])))
seconds = time.perf_counter() - start
last = len(source) - 1
start = time.perf_counter()
captions = [source.caption(i) for i in (0, last, last - 5000)]
# getrusage counts what the process held that this one came from, too
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]
print(json.dumps({
    "seconds": seconds, "first_captions": time.perf_counter() - start, "length": len(source),
    "shards": len(source.shard_sizes), "captions": captions, "key": source.key(last),
    "line": source.report.format_summary(), "mib": int(peak) / 1024,
}))
"""


def synthetic(folder: Path, settings: CacheSettings) -> None:
    """Files that are there, what is known of each, and whole indexes of the first and the last."""
    folder.mkdir()
    urls = [str(folder / f"{number:05}.tar") for number in range(SHARDS)]
    for url in urls:
        Path(url).write_bytes(b"tiny")
    indexer = ShardIndexer(TarShards(), Selection(), settings, ShardCache(settings))
    versions = find_versions(urls)
    shards = [NamedShard(Shard(url, versions[url]), Path(url).name) for url in urls]
    dropped = {"without caption": 2, "broken picture": 1}
    names = {"without caption": ["a", "b"], "broken picture": ["c"]}
    counts = {indexer.stamp(named): ShardSummary(PICTURES, dropped, names) for named in shards}
    save_summaries(summary_path(urls, indexer.format, indexer.selection, settings), counts)
    for number in (0, SHARDS - 1):
        builder = IndexBuilder()
        for row in range(PICTURES):
            builder.add(Entry(f"{row:09}.jpg", row * 512, 512, f"picture {row} of {number}", ""), NO_SCORES)
        builder.build().save(indexer.index_path(shards[number]))


def test_a_hundred_million_pictures_are_planned_in_seconds_and_in_little_memory(tmp_path: Path):
    settings = CacheSettings(folder=tmp_path / "cache")
    synthetic(tmp_path / "shards", settings)
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(tmp_path / "shards"), str(settings.folder)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(found)
    assert (found["length"], found["shards"]) == (SHARDS * PICTURES, SHARDS)
    assert found["key"] == "09999.tar/000009999.jpg"
    assert found["captions"] == [f"picture {row} of {shard}" for row, shard in ((0, 0), (9999, 9999), (4999, 9999))]
    assert found["line"] == (
        "data: 100030000 pictures found, 100000000 used, 30000 dropped (10000 broken pictures, 20000 without caption)"
    )
    assert found["seconds"] < 10
    assert found["mib"] < 2048
