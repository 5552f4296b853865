"""Readers of pictures and captions: folders, tables, tars, settings within pictures."""

from __future__ import annotations

import base64
import io
import os
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from copying import copy_folder, exhaust, point_outside, take_file
from corpus import Corpus
from mutations import OUTSIDE, dump, make_value, mutate_bytes, mutate_json, mutate_lines, mutate_settings
from mutations_of_files import mutate_png

from fewstep.commands.inspect import describe
from fewstep.data.infotext import read_infotext
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.decoding import decode_to_fit
from fewstep.data.sources.inspection import look_at_picture
from fewstep.data.sources.picture_files import open_picture_files
from fewstep.data.sources.remote import CacheSettings
from fewstep.serve.budget import Budget
from fewstep.serve.client_pictures import read_parameters
from fewstep.serve.reading import ReadingTask
from fewstep.serve.settings import ServerSettings


def _read_all(data: Path, folder: Path) -> None:
    source = open_picture_files(str(data), None, CacheSettings(folder=folder / "cache"))
    for index in range(min(6, len(source))):
        source.key(index)
        try:
            source.read(index)
        except DroppedError as dropped:
            str(dropped)
    source.report.format_report()


_OF_FOLDERS = {
    ".txt": mutate_bytes,
    ".json": mutate_json,
    ".jsonl": mutate_lines,
    ".png": mutate_png,
    ".jpg": mutate_bytes,
    ".webp": mutate_bytes,
}


def read_folder(corpus: Corpus, folder: Path, rng: Random) -> None:
    place = copy_folder(corpus, "pictures", folder / "pictures", rng, _OF_FOLDERS, many=True)
    if rng.random() < 0.3:
        (place / "metadata.jsonl").unlink(missing_ok=True)
        odd = (
            "c.webp",
            "../outside",
            OUTSIDE + "/secret.png",
            "d.png",
            "",
            "a" * 3000,
            '"',
            "\x00",
            "d.png,d.png",
            "\x1b[31m",
        )
        rows = "\n".join(f"{rng.choice(odd)},{rng.choice(odd)}" for _ in range(rng.randrange(5)))
        (place / "metadata.csv").write_bytes(
            point_outside(
                corpus,
                mutate_bytes(rng, f"file_name,text\n{rows}".encode())
                if rng.random() < 0.5
                else f"file_name,text\n{rows}".encode(),
            )
        )
    _read_all(place, folder)


def read_parquet(corpus: Corpus, folder: Path, rng: Random) -> None:
    if rng.random() < 0.4:
        _read_all(take_file(corpus, "shards/a.parquet", folder, rng, mutate_bytes), folder)
        return
    picture = (corpus / "pictures/d.png").read_bytes()
    outside = os.fspath(corpus.outside / "secret.png")
    image = [
        {"bytes": None, "path": outside},
        {"bytes": None, "path": "../OUTSIDE/secret.png"},
        {"bytes": picture, "path": "x"},
        {"bytes": mutate_png(rng, picture), "path": None},
        None,
    ]
    columns: dict[str, Any] = {
        "image": rng.choice(
            (
                [rng.choice(image), rng.choice(image)],
                [picture, mutate_png(rng, picture)],
                ["x", outside],
                [1, 2],
                [None, None],
            )
        ),
        "text": rng.choice(
            (
                ["a", "b"],
                [["a", "b"], []],
                [1, 2],
                [b"\xff", b"x"],
                [None, "x"],
                [{"x": 1}, None],
                [["\x1b[31m", None], ["b"]],
            )
        ),
        rng.choice(("width", "similarity", "punsafe", "status", "key", "url", "TEXT")): rng.choice(
            (
                [1, 2],
                ["x", "1e999"],
                [2**62, -1],
                [None, None],
                [float("nan"), float("inf")],
                [[1], []],
                [b"\xff", b""],
                [True, False],
            )
        ),
    }
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), folder / "a.parquet")
    _read_all(folder / "a.parquet", folder)


def read_tar(corpus: Corpus, folder: Path, rng: Random) -> None:
    if rng.random() < 0.4:
        _read_all(take_file(corpus, "shards/a.tar", folder, rng, mutate_bytes), folder)
        return
    picture = (corpus / "pictures/d.png").read_bytes()
    names = (
        "0.png",
        "0.txt",
        "0.json",
        "1.jpg",
        "1.txt",
        "../2.png",
        f"{corpus.outside}/secret.png",
        "a/0.png",
        "\x1b[31m.png",
        "x" * 300 + ".png",
        ".png",
        "0",
        "0.cls",
    )
    contents = (
        picture,
        b"words",
        b"",
        b"{}",
        dump(make_value(rng)),
        b"\xff\xfe",
        mutate_png(rng, picture),
        b"a" * 10**5,
    )
    with tarfile.open(
        folder / "a.tar", "w", format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    ) as archive:
        for _ in range(rng.randrange(7)):
            info = tarfile.TarInfo(rng.choice(names))
            info.type = rng.choice(
                (tarfile.REGTYPE,) * 6
                + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"S")
            )
            info.linkname = rng.choice(("", f"{corpus.outside}/secret.png", "../secret.png"))
            content = rng.choice(contents)
            info.size = len(content) if info.type == tarfile.REGTYPE else 0
            try:
                archive.addfile(info, io.BytesIO(content))
            except ValueError:  # more than the format has room for
                continue
    if rng.random() < 0.3:
        (folder / "a.tar").write_bytes(mutate_bytes(rng, (folder / "a.tar").read_bytes()))
    _read_all(folder / "a.tar", folder)


def read_picture(corpus: Corpus, folder: Path, rng: Random) -> None:
    name = rng.choice(("a.png", "b.jpg", "c.webp", "d.png"))
    path = take_file(corpus, f"pictures/{name}", folder, rng, mutate_png)
    look_at_picture(str(path), path.stat().st_size)
    decode_to_fit(path.read_bytes())


def read_settings(corpus: Corpus, _: Path, rng: Random) -> None:
    content = mutate_settings(rng, (corpus / "pictures/infotext.txt.settings").read_bytes())
    found = read_infotext(content.decode("utf-8", "replace"))
    read_infotext(str(found))


def read_painted(corpus: Corpus, folder: Path, rng: Random) -> None:
    path = take_file(corpus, "pictures/a.png", folder, rng, mutate_png)
    if rng.random() < 0.5:
        exhaust(describe(path))
    else:
        read_parameters(base64.b64encode(path.read_bytes()).decode(), ServerSettings(), ReadingTask(Budget(2**29), 5))
