"""What of a user's folder is used, and what is counted or said when it cannot be."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fewstep.data.sources import folder_metadata
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.filters import Filters, Reason
from fewstep.data.sources.folder import open_folder
from fewstep.data.sources.selection import Selection
from fewstep.data.sources.squares import SquarePictures
from fewstep.errors import UserError
from spoiled_pictures import seeds, spoil


def write_metadata(folder: Path, *lines: object) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_text(text + "\n", encoding="utf-8")


def test_the_order_is_that_of_the_paths_and_not_of_the_writing(tmp_path: Path, add: Callable[..., Path]):
    names = ["b.png", "a/z.png", "a.png", "B.png", "a-1.png", "c/d/e.png", "10.png", "9.png"]
    for folder, order in ((tmp_path / "one", names), (tmp_path / "two", names[::-1])):
        for name in order:
            add(folder, name, name)
    one, two = open_folder(tmp_path / "one"), open_folder(tmp_path / "two")
    assert one.samples == two.samples
    assert [file for file, _ in one.samples] == sorted(names)


def test_a_caption_is_utf8_and_white_space_in_it_becomes_single_spaces(tmp_path: Path, add: Callable[..., Path]):
    add(tmp_path, "a.png", "  un café\r\n\n à\tParis \n")
    add(tmp_path, "b.png", b"\xef\xbb\xbfwritten with a byte order mark")
    assert [caption for _, caption in open_folder(tmp_path).samples] == [
        "un café à Paris",
        "written with a byte order mark",
    ]


def test_metadata_goes_before_text_files_which_fill_its_gaps(tmp_path: Path, add: Callable[..., Path]):
    add(tmp_path, "a.png", "from the text file")
    add(tmp_path, "b.png", "from the text file")
    add(tmp_path, "sub/c.png", None)
    add(tmp_path, "d.png", None)
    write_metadata(
        tmp_path,
        {"file_name": "a.png", "text": " from \n metadata ", "more": 1},
        "",
        {"file_name": "./sub/c.png", "text": "zwölf"},
    )
    data = open_folder(tmp_path)
    assert dict(data.samples) == {"a.png": "from metadata", "b.png": "from the text file", "sub/c.png": "zwölf"}
    assert data.report.names == {"without caption": ["d.png"]}


def test_metadata_may_name_pictures_by_where_they_lie(tmp_path: Path, add: Callable[..., Path]):
    (tmp_path / "real").mkdir()
    folder = tmp_path / "linked"
    folder.symlink_to("real")
    for name in ("a.png", "sub/b.png", "c.png"):
        add(folder, name, None)
    real = tmp_path / "real"
    write_metadata(folder, {"file_name": str(folder / "a.png"), "text": "by a link"},
                   {"file_name": str(real / "sub/../c.png"), "text": "by way of another"})  # fmt: skip
    write_metadata(folder / "sub", {"file_name": str(real / "sub/b.png"), "text": "for real"},
                   {"file_name": str(real / "c.png"), "text": "of another folder"})  # fmt: skip
    data = open_folder(folder)
    assert dict(data.samples) == {"a.png": "by a link", "sub/b.png": "for real"}
    assert data.report.names["outside the folder"] == ["metadata.jsonl line 2", "sub/metadata.jsonl line 2"]


@pytest.mark.parametrize("name", ["METADATA.JSONL", "Metadata.Csv"])
def test_metadata_in_capitals_is_read(tmp_path: Path, add: Callable[..., Path], name: str):
    add(tmp_path, "a.png", None)
    line = "file_name,text\na.png,a word\n" if name.endswith("Csv") else '{"file_name": "a.png", "text": "a word"}\n'
    (tmp_path / name).write_text(line)
    assert dict(open_folder(tmp_path).samples) == {"a.png": "a word"}


def test_every_bad_metadata_line_is_counted_and_names_its_number(tmp_path: Path, add: Callable[..., Path]):
    for name in ("a.png", "b.png", "c.png"):
        add(tmp_path, name, None)
    add(tmp_path.parent, "outside.png", "not ours")
    (tmp_path / "d.gif").write_bytes(b"GIF89a")
    write_metadata(
        tmp_path,
        {"file_name": "a.png", "text": "good"},
        '{"file_name": "b.png", "text"',
        ["b.png", "text"],
        "7",
        {"file_name": "b.png"},
        {"text": "no name"},
        {"file_name": "b.png", "text": 3},
        {"file_name": 3, "text": "b"},
        {"file_name": "b.png", "text": None},
        '{"file_name": "b.png", "text": "half a pair \\ud800"}',
        "[" * 100_000,
        {"file_name": "absent.png", "text": "b"},
        {"file_name": "nul\0.png", "text": "b"},
        {"file_name": "", "text": "b"},
        {"file_name": "../outside.png", "text": "b"},
        {"file_name": "sub/../../outside.png", "text": "b"},
        {"file_name": str(tmp_path.parent / "outside.png"), "text": "b"},
        {"file_name": "..\\outside.png", "text": "b"},
        {"file_name": "C:\\outside.png", "text": "b"},
        {"file_name": "./a.png", "text": "said again"},
        {"file_name": "c.png", "text": " \t "},
        {"file_name": "d.gif", "text": "counted as a file already"},
    )
    with (tmp_path / "metadata.jsonl").open("ab") as file:
        file.write(b'{"file_name": "b.png", "text": "\xff"}')
    data = open_folder(tmp_path)
    assert data.samples == (("a.png", "good"),)

    def lines(*numbers: int) -> list[str]:
        return [f"metadata.jsonl line {number}" for number in numbers]

    assert data.report.names == {
        "bad metadata line": lines(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 23),
        "missing picture": lines(12, 13, 14),
        "outside the folder": lines(15, 16, 17, 18, 19),
        "repeated metadata line": lines(20),
        "empty caption": ["c.png"],
        "unsupported format": ["d.gif"],
        "without caption": ["b.png"],
    }
    assert data.report.found == 24
    assert data.report.format_summary().startswith("data: 24 pictures and other entries found, 1 used, 23 dropped (")


def test_a_metadata_file_may_begin_with_a_byte_order_mark(tmp_path: Path, add: Callable[..., Path]):
    add(tmp_path, "a.png", None)
    (tmp_path / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "a.png", "text": "first"}\r\n')
    assert open_folder(tmp_path).samples == (("a.png", "first"),)


def test_metadata_beyond_a_limit_is_refused_and_not_cut(
    tmp_path: Path, add: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    add(tmp_path, "a.png", None)
    line = '{"file_name": "a.png", "text": "first"}\n'
    (tmp_path / "metadata.jsonl").write_text(line)
    monkeypatch.setattr(folder_metadata, "_MAX_METADATA", len(line))
    assert len(open_folder(tmp_path)) == 1
    monkeypatch.setattr(folder_metadata, "_MAX_METADATA", len(line) - 1)
    with pytest.raises(UserError, match=r"metadata\.jsonl has more than 39 bytes; split the pictures into folders"):
        open_folder(tmp_path)


def test_every_picture_that_cannot_be_used_is_counted_once(
    tmp_path: Path,
    photographs: list[Image.Image],
    add: Callable[..., Path],
    png_that_claims: Callable[[int, int], bytes],
):
    add(tmp_path, "good.jpg", "a temple", photographs[0])
    for name in ("cut.jpg", "cut.png", "cut.webp"):
        path = add(tmp_path, name, "cut", photographs[0])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    add(tmp_path, "zero.jpg", "no bytes").write_bytes(b"")
    add(tmp_path, "text.png", "no picture").write_bytes(b"<html>404</html>" * 50)
    add(tmp_path, "flipped.png", "flipped bits").write_bytes(flip_bits((tmp_path / "good.jpg"), tmp_path))
    shutil.copy(add(tmp_path, "other.gif", None), add(tmp_path, "renamed.png", "a GIF"))
    add(tmp_path, "without.png", None)
    add(tmp_path, "without and broken.png", None).write_bytes(b"")
    add(tmp_path, "empty.png", " \n")
    add(tmp_path, "latin.png", "café".encode("latin-1"))
    add(tmp_path, "utf16.png", "café".encode("utf-16-le"))
    add(tmp_path, "bomb.png", "too large").write_bytes(png_that_claims(8001, 8000))
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "dangling.txt").write_text("a link to nothing")
    (tmp_path / "directory.png").mkdir()
    add(tmp_path, "caption is a folder.png", None).with_suffix(".txt").mkdir()
    (tmp_path / "notes.md").write_text("no picture, so not counted")
    data = open_folder(tmp_path)
    report = data.report
    assert report.names == {
        "broken picture": ["cut.jpg", "cut.png", "cut.webp", "renamed.png", "text.png", "zero.jpg"],
        "too large": ["bomb.png"],
        "unreadable file": ["caption is a folder.png", "dangling.png"],
        "unsupported format": ["other.gif"],
        "without caption": ["without and broken.png", "without.png"],
        "empty caption": ["empty.png"],
        "caption not UTF-8": ["latin.png", "utf16.png"],
    }
    assert report.dropped == {reason: len(files) for reason, files in report.names.items()}
    assert (report.found, report.used) == (17, 2)
    assert report.format_summary() == (
        "data: 17 pictures found, 2 used, 15 dropped (6 broken pictures, 1 too large, 2 unreadable files, "
        "1 unsupported format, 2 without caption, 1 empty caption, 2 caption not UTF-8)"
    )
    # Header and end are whole, so that only decoding can tell.
    with pytest.raises(DroppedError, match=r"flipped\.png: broken picture"):
        data.read(0)


def flip_bits(source: Path, folder: Path) -> bytes:
    """A PNG of `source` with one byte of its compressed pixels changed, which its checksum shows."""
    path = folder / "whole.tmp"
    with Image.open(source) as image:
        image.save(path, "PNG")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


def test_any_mixture_of_troubles_adds_up(
    tmp_path: Path, add: Callable[..., Path], png_that_claims: Callable[[int, int], bytes]
):
    rng = random.Random(1)
    add(tmp_path, "sure.png", "one that is whole")
    written = 1
    for i in range(60):
        path = add(tmp_path, f"{rng.choice('abc')}/{i}.png", rng.choice(["words", "", None, b"\xff"]))
        if rng.random() < 0.3:
            path.write_bytes(rng.choice([b"", b"junk", png_that_claims(9000, 9000)]))
        written += 1
    report = open_folder(tmp_path).report
    assert report.found == written == report.used + sum(report.dropped.values())
    listed = [file for files in report.names.values() for file in files]
    assert len(set(listed)) == len(listed)


def test_spoiled_pictures_in_a_folder_are_each_counted_once(tmp_path: Path, add: Callable[..., Path]):
    whole = seeds()
    suffixes = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp"}
    for i in range(500):
        content = whole[i % len(whole)]
        (tmp_path / f"{i}{suffixes[content[:2]]}").write_bytes(spoil(content, random.Random(i)))
        (tmp_path / f"{i}.txt").write_text("spoiled")
    add(tmp_path, "sure.png", "whole")
    report = open_folder(tmp_path).report
    assert report.found == 501
    assert report.used == 501 - sum(report.dropped.values()) > 50
    assert set(report.dropped) <= {Reason.BROKEN, Reason.TOO_LARGE}


def test_links_are_read_in_the_folder_and_counted_where_they_lead_out(tmp_path: Path, add: Callable[..., Path]):
    elsewhere = tmp_path / "elsewhere"
    picture = add(elsewhere, "b.png", "elsewhere")
    folder = tmp_path / "data"
    add(folder, "a.png", "here")
    add(folder, "d.png", None)
    for name, target in {"b.png": picture, "c.png": "a.png", "d.txt": elsewhere / "b.txt", "e.png": "e.png"}.items():
        (folder / name).symlink_to(target)
    for name in ("b", "c", "e"):
        (folder / f"{name}.txt").write_text("linked")
    (folder / "more").symlink_to(elsewhere)
    (folder / "round").symlink_to(folder)
    data = open_folder(folder)
    assert data.samples == (("a.png", "here"), ("c.png", "linked"))
    assert data.report.names == {
        "unreadable file": ["e.png"], "linked outside the folder": ["b.png", "d.png"],
        "unsearched folder": ["more", "round"],
    }  # fmt: skip
    assert "  linked outside the folder: b.png, d.png (--follow-links reads them)" in data.report.format_report()
    followed = open_folder(folder, Selection(follow_links=True))
    assert [name for name, _ in followed.samples] == ["a.png", "b.png", "c.png", "d.png", "more/b.png"]
    assert followed.report.names == {"unreadable file": ["e.png"], "unsearched folder": ["round"]}
    assert followed.read(3).caption == "elsewhere"
    assert open_folder(folder).samples == data.samples  # whatever was seen meanwhile
    for name in ("a.png", "c.png"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="--follow-links reads what is linked outside the folder"):
        open_folder(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_block(tmp_path: Path, add: Callable[..., Path]):
    add(tmp_path, "a.png", "here")
    add(tmp_path, "c.png", None)
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("a pipe")
    os.mkfifo(tmp_path / "c.txt")
    assert open_folder(tmp_path).report.names == {"unreadable file": ["b.png", "c.png"]}


def test_what_the_system_refuses_to_open_is_counted(
    tmp_path: Path, add: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    for name in ("a.png", "no.png", "closed/b.png", "open/c.png"):
        add(tmp_path, name, "words")
    opened, scanned = os.open, os.scandir

    def refuse(path: str, *given: int, **more: int) -> int:
        if os.fspath(path).endswith("no.png"):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *given, **more)

    def refuse_folder(path: str) -> object:
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scanned(path)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "scandir", refuse_folder)
    data = open_folder(tmp_path)
    assert [file for file, _ in data.samples] == ["a.png", "open/c.png"]
    assert data.report.names == {"unreadable file": ["no.png"], "unsearched folder": ["closed"]}


def message(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_folder(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def test_what_cannot_be_opened_is_said_in_one_line(tmp_path: Path, add: Callable[..., Path]):
    file = add(tmp_path, "a.png", None)
    assert f"{tmp_path / 'absent'} does not exist" in message(tmp_path / "absent")
    assert f"{file} is not a folder" in message(file)
    (tmp_path / "empty").mkdir()
    text = message(tmp_path / "empty")
    assert "0 pictures found" in text
    assert all(wanted in text for wanted in (".jpg", ".jpeg", ".png", ".webp", ".txt", "metadata.jsonl"))
    message(tmp_path / "two\nlines")
    (tmp_path / "metadata.jsonl").mkdir()
    assert "metadata.jsonl cannot be read" in message(tmp_path)


def test_when_all_pictures_are_dropped_the_error_gives_the_counts(tmp_path: Path, add: Callable[..., Path]):
    for i in range(3):
        add(tmp_path, f"{i}.png", None)
    add(tmp_path, "zero.jpg", "no bytes").write_bytes(b"")
    text = message(tmp_path)
    assert "4 pictures found, 0 used, 4 dropped (1 broken picture, 3 without caption)" in text
    assert str(tmp_path) in text


def test_a_picture_that_vanishes_or_breaks_later_is_named(tmp_path: Path, add: Callable[..., Path]):
    gone, broken = add(tmp_path, "gone\n.png", "a"), add(tmp_path, "broken.png", "b")
    data = open_folder(tmp_path)
    gone.unlink()
    broken.write_bytes(b"")
    for i, (name, reason) in enumerate([("broken.png", Reason.BROKEN), ("gone\n.png", Reason.UNREADABLE)]):
        with pytest.raises(DroppedError) as dropped:
            data.read(i)
        assert (dropped.value.key, dropped.value.reason) == (name, reason)
        with pytest.raises(UserError) as caught:
            SquarePictures(data, 16)[i]
        assert len(str(caught.value).splitlines()) == 1
        assert name.split("\n")[0] in str(caught.value)
        assert reason in str(caught.value)


def test_a_folder_is_one_shard_whose_pictures_are_whole(tmp_path: Path, add: Callable[..., Path]):
    folder = tmp_path / "cats"
    add(folder, "a/one.png", "first")
    add(folder, "two.png", "second", Image.new("RGB", (7, 5)))
    data = open_folder(folder)
    assert (data.shard_sizes, len(data), data.shard_name(0)) == ((2,), 2, "cats")
    assert [data.key(i) for i in range(2)] == ["a/one.png", "two.png"]
    assert [data.caption(i) for i in range(2)] == ["first", "second"]
    assert [data.read(i).image.size for i in range(2)] == [(40, 30), (7, 5)]


def test_captions_may_stand_in_another_field_which_is_then_the_only_place(tmp_path: Path, add: Callable[..., Path]):
    add(tmp_path, "a.png", "from the text file")
    add(tmp_path, "b.png", "from the text file")
    write_metadata(tmp_path, {"file_name": "a.png", "text": "plain", "Blip": "told anew"})
    assert open_folder(tmp_path).samples == (("a.png", "plain"), ("b.png", "from the text file"))
    data = open_folder(tmp_path, Selection(captions=("blip",)))
    assert data.samples == (("a.png", "told anew"),)
    assert data.report.dropped == {"without caption": 1}


def test_scores_in_the_metadata_and_the_true_sides_are_filtered(tmp_path: Path, add: Callable[..., Path]):
    for name in ("low.png", "high.png", "none.png"):
        add(tmp_path, name, "words")
    add(tmp_path, "small.png", "words", Image.new("RGB", (40, 29)))
    lines = [("low.png", 4.0), ("high.png", 6.5), ("small.png", 9)]
    write_metadata(tmp_path, *({"file_name": name, "text": "t", "AESTHETIC_SCORE": score} for name, score in lines))
    data = open_folder(tmp_path, Selection(filters=Filters(min_aesthetic=6, min_side=30)))
    assert [name for name, _ in data.samples] == ["high.png"]
    assert data.report.names == {
        "without aesthetic score": ["none.png"],
        "aesthetic score below 6": ["low.png"],
        "shorter side below 30": ["small.png"],
    }
