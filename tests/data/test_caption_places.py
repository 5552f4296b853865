"""Where captions lie as people keep them: beside pictures, in metadata, in names of folders, several of one picture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from fewstep.commands.prepare import Prepare, prepare
from fewstep.data.reading import CropSettings, PictureReader
from fewstep.data.sources.base import Source
from fewstep.data.sources.picture_files import open_picture_files
from fewstep.data.sources.remote import CacheSettings
from fewstep.data.sources.selection import Selection
from fewstep.errors import UserError
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.recipes.pictures import TrainingConfig
from fewstep.runs.material import open_material
from written_shards import picture, write_parquet, write_tar


@pytest.fixture
def cache(tmp_path: Path) -> CacheSettings:
    return CacheSettings(folder=tmp_path / "cache")


@pytest.fixture
def opened(tmp_path: Path, cache: CacheSettings) -> Callable[..., Source]:
    """Opens what lies in the folder `d`."""
    return lambda place="d", **selection: open_picture_files(str(tmp_path / place), Selection(**selection), cache)


def captions_of(source: Source) -> dict[str, str]:
    return {source.key(i): source.caption(i) for i in range(len(source))}


def jsonl(*lines: object) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def put(path: Path, content: str | bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


A_AND_B = [{"file_name": name, "text": name[0]} for name in ("a.png", "b.png")]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"train/metadata.jsonl": jsonl(*A_AND_B)}, "train"),
        ({"train/metadata.csv": "file_name,text\na.png,a\nb.png,b\n"}, "train"),
        ({"metadata.csv": "\ufefffile_name,text\r\ntrain/a.png,a\r\ntrain/b.png,b\r\n"}, "train"),
        ({"metadata.csv": 'File_Name;Prompt;n\ntrain/a.png;"a";1\ntrain\\b.png;b;2\n'}, "train"),
        ({"metadata.csv": "image\tcaption\ntrain/a.png\ta\ntrain/b.png\tb\n"}, "train"),
        ({"data/train/metadata.jsonl": jsonl(*A_AND_B)}, "data/train"),
        ({"metadata.jsonl": jsonl(*({"image": f"x/{e['file_name']}", "en_text": e["text"]} for e in A_AND_B))}, "x"),
        ({"x/a.caption": "a", "x/b.CAPTION": "b"}, "x"),
        ({"x/a.txt": "a", "x/a.caption": "not this", "x/b.caption": "b"}, "x"),
        ({"x/a.png.txt": "a", "x/b.png.caption": "b"}, "x"),
        ({"x/a.json": '{"caption": "a"}', "x/b.json": '{"Prompt": "b"}'}, "x"),
        ({"x/a.TXT": "a", "x/b.txt": "b"}, "x"),
    ],
)
def test_captions_of_a_folder_are_found(
    files: dict[str, str], expected: str, tmp_path: Path, add: Callable[..., Path], opened: Callable[..., Source]
):
    for name in ("a.png", "b.png"):
        add(tmp_path / "d" / expected, name, None)
    for name, content in files.items():
        put(tmp_path / "d" / name, content)
    source = opened()
    assert captions_of(source) == {f"{expected}/a.png": "a", f"{expected}/b.png": "b"}
    assert source.report.dropped == {}


@pytest.mark.parametrize("column", ["caption", "TEXT", "prompt", "en_text", "txt", "title", "description", "captions"])
def test_the_usual_names_of_columns_are_read_everywhere(
    column: str, tmp_path: Path, add: Callable[..., Path], opened: Callable[..., Source]
):
    add(tmp_path / "d", "a.png", None)
    put(tmp_path / "d/metadata.jsonl", jsonl({"file_name": "a.png", column: "words", "id": 7}))
    write_tar(tmp_path / "t/0.tar", {"a.png": picture(), "a.json": json.dumps({column: "words"}).encode()})
    write_parquet(
        tmp_path / "p/0.parquet", image=[{"bytes": picture(), "path": "a.png"}], id=[7], **{column: ["words"]}
    )
    for place, key in (("d", "a.png"), ("t", "0.tar/a.png"), ("p", "0.parquet/7")):
        assert captions_of(opened(place)) == {key: "words"}


def test_caption_and_text_go_before_all_other_names(tmp_path: Path, opened: Callable[..., Source]):
    write_parquet(tmp_path / "d/0.parquet", image=[picture()] * 2, prompt=["no"] * 2, text=["yes", None])
    source = opened()
    assert captions_of(source) == {"0.parquet/0": "yes"}
    assert source.report.dropped == {"without caption": 1}
    assert list(captions_of(opened(captions=("prompt",))).values()) == ["no", "no"]


def test_of_several_splits_the_training_one_is_read_and_told(
    tmp_path: Path, add: Callable[..., Path], opened: Callable[..., Source]
):
    for split in ("train", "test", "validation"):
        add(tmp_path / "d", f"{split}/a.png", None)
        put(tmp_path / f"d/{split}/metadata.jsonl", jsonl({"file_name": "a.png", "text": split}))
    source = opened()
    assert captions_of(source) == {"train/a.png": "train"}
    assert source.report.notes == ("of the splits, train is read, and 2 pictures of test, validation are not",)
    assert captions_of(opened("d/test")) == {"a.png": "test"}
    for split in ("train", "test"):  # without metadata of their own they were always one folder
        add(tmp_path / "plain", f"{split}/a.png", split)
        write_parquet(tmp_path / f"p/{split}-00000-of-00001.parquet", image=[picture()], text=[split])
    for place in ("plain", "p"):
        source = opened(place)
        assert len(source) == 2
        assert source.report.notes[0].startswith("the splits test, train are all read")


def test_files_of_arrow_are_read_as_datasets_saves_them(tmp_path: Path, opened: Callable[..., Source]):
    table = pa.table(
        {
            "image": [{"bytes": picture("red"), "path": "a.png"}, {"bytes": picture("blue"), "path": None}],
            "text": ["red", "blue"],
        }
    )
    (tmp_path / "d").mkdir()
    for name, make in (("0.arrow", pa.ipc.new_stream), ("1.arrow", pa.ipc.new_file)):
        with make(tmp_path / "d" / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    put(tmp_path / "d/2.arrow", (tmp_path / "d/0.arrow").read_bytes()[:300])
    put(tmp_path / "d/state.json", "{}")
    source = opened()
    assert list(captions_of(source).values()) == ["red", "blue", "red", "blue"]
    assert source.key(0) == "0.arrow/a.png"
    assert [source.read(i).image.getpixel((0, 0)) for i in range(4)] == [(255, 0, 0), (0, 0, 255)] * 2
    assert source.report.names == {"damaged shard": ["2.arrow"]}


def draws_of(source: Source, seed: int = 0, count: int = 90) -> list[str]:
    """The captions at the first positions of a run."""
    reader = PictureReader([source], [1.0], CropSettings(resolution=8), seed)
    return [square.caption for square in reader.read_squares(range(count))]


def test_of_several_captions_one_is_drawn_by_position(
    tmp_path: Path, add: Callable[..., Path], opened: Callable[..., Source]
):
    add(tmp_path / "d", "a.png", None)
    put(tmp_path / "d/metadata.jsonl", jsonl({"file_name": "a.png", "captions": ["x", "", "y", None, "z"]}))
    write_tar(tmp_path / "t/0.tar", {"a.png": picture(), "a.json": b'{"captions": ["x", "y", "z"]}'})
    write_parquet(tmp_path / "p/0.parquet", image=[picture()], caption=[["x", "y", None, "z"]])
    write_parquet(tmp_path / "s/0.parquet", image=[picture()], sentences=[[{"raw": each, "id": 1} for each in "xyz"]])
    add(tmp_path / "l", "a.png", "x\n\n y\r\nz\n")
    drawn = draws_of(opened())
    assert all(15 < count < 50 for count in Counter(drawn).values())
    assert set(drawn) == {"x", "y", "z"}
    assert drawn != draws_of(opened(), seed=1)
    for place, asked in (("t", {}), ("p", {}), ("s", {}), ("l", {"lines": "draw"})):
        source = opened(place, **asked)
        assert draws_of(source) == drawn
        reader = PictureReader([source], [1.0], CropSettings(resolution=8), 0, workers=2, ahead=10)
        assert [square.caption for square in reader.read_squares(range(70, 80))] == drawn[70:80]


def test_lines_are_joined_unless_they_are_to_be_drawn_or_the_first_taken(
    tmp_path: Path, add: Callable[..., Path], opened: Callable[..., Source]
):
    add(tmp_path / "d", "a.png", "one\ntwo\n")
    add(tmp_path / "d", "b.png", "three\n")
    write_tar(tmp_path / "t/0.tar", {"a.png": picture(), "a.txt": b"one\ntwo\n", "b.png": picture(), "b.txt": b"three"})
    write_parquet(tmp_path / "p/0.parquet", image=[picture()] * 2, text=["one\ntwo", "three"])
    for place in ("d", "t", "p"):
        joined = opened(place)
        assert list(captions_of(joined).values()) == ["one two", "three"]
        told = "captions of several lines, joined (--caption-lines draw takes one of them at a time)"
        assert joined.report.told == {told: 1}
        assert opened(place).report.told == {told: 1}  # from what was kept
        first = opened(place, lines="first")
        assert list(captions_of(first).values()) == ["one", "three"]
        assert set(draws_of(first, count=20)) == {"one", "three"}
        drawn = opened(place, lines="draw")
        assert set(draws_of(drawn, count=40)) == {"one", "two", "three"}
        assert first.report.told == drawn.report.told == {}


def test_repeats_of_folders_are_obeyed_exactly(tmp_path: Path, add: Callable[..., Path], opened: Callable[..., Source]):
    for name in ("3_cat/a.png", "3_cat/b.png", "1_a dog/c.png"):
        add(tmp_path / "d", name, name)
    source = opened()
    assert (tuple(source.shard_sizes), source.shard_repeats, source.shard_name(0)) == ((1, 2), (1, 3), "1_a dog")
    drawn = draws_of(source, count=21)
    for epoch in range(3):
        assert Counter(drawn[7 * epoch : 7 * epoch + 7]) == {"3_cat/a.png": 3, "3_cat/b.png": 3, "1_a dog/c.png": 1}
    assert draws_of(opened(), count=21)[10:] == drawn[10:]
    assert "an epoch has 1 times the 1 of 1_a dog, 3 times the 2 of 3_cat" in source.report.notes[0]
    plain = opened(repeats=False)
    assert tuple(plain.shard_sizes) == (3,)
    assert (
        PictureReader([plain], [1.0], CropSettings(resolution=8), 0).hash_contents()
        != PictureReader([source], [1.0], CropSettings(resolution=8), 0).hash_contents()
    )


@pytest.mark.parametrize(
    "names", [("2_cat/a.png", "2_dog/b.png"), ("3_cat/a.png", "dog/b.png"), ("2019_x/a.png", "1_y/b.png")]
)
def test_folders_that_are_repeated_alike_or_only_numbered_are_one(
    names: tuple[str, ...], tmp_path: Path, add: Callable[..., Path], opened: Callable[..., Source]
):
    for name in names:
        add(tmp_path / "d", name, "words")
    assert tuple(opened().shard_sizes) == (2,)
    assert opened().report.notes == ()


def test_a_folder_of_repeats_without_captions_gives_its_name(
    tmp_path: Path, add: Callable[..., Path], opened: Callable[..., Source]
):
    for name, caption in (
        ("5_sks cat/a.png", None),
        ("2_red_dog/b.png", None),
        ("1_x/c.png", "c"),
        ("1_x/d.png", None),
    ):
        add(tmp_path / "d", name, caption)
    source = opened()
    assert captions_of(source) == {"1_x/c.png": "c", "2_red_dog/b.png": "red dog", "5_sks cat/a.png": "sks cat"}
    assert source.report.names == {"without caption": ["1_x/d.png"]}


TWIN = b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(50)
LITTER = (
    "._a.png", "._a.txt", "__MACOSX/._a.png", "__MACOSX/d/a.png", ".DS_Store", "Thumbs.db", "desktop.ini",
    ".thumbnails/a.png", "@eaDir/a.png/SYNOFILE_THUMB_M.png", "x/.ipynb_checkpoints/a-checkpoint.png", ".git/a.png",
    "._metadata.jsonl", "x/._b.caption", "._0.tar", "._0.parquet", ".Trash-1000/files/a.png", "$RECYCLE.BIN/a.png",
)  # fmt: skip


def test_what_systems_leave_beside_pictures_is_no_data(
    tmp_path: Path, add: Callable[..., Path], opened: Callable[..., Source]
):
    add(tmp_path / "d", "a.png", "a")
    whole = {"a.png": picture(), "a.txt": b"a"}
    write_tar(tmp_path / "t/0.tar", [(name, TWIN) for name in LITTER] + [("./" + n, c) for n, c in whole.items()])
    write_parquet(tmp_path / "p/0.parquet", image=[picture()], text=["a"])
    for place in ("d", "t", "p"):
        for name in LITTER:
            put(tmp_path / place / name, TWIN)
        source = opened(place)
        assert list(captions_of(source).values()) == ["a"], place
        assert (source.report.found, source.report.dropped) == (1, {})
    assert len(opened("p/*.parquet")) == 1


def test_where_nothing_is_found_the_message_names_what_was_seen(
    tmp_path: Path, add: Callable[..., Path], opened: Callable[..., Source]
):
    def message(place: str) -> str:
        with pytest.raises(UserError) as caught:
            opened(place)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    for name in ("a.heic", "b.heic", "c.mov"):
        put(tmp_path / "none" / name)
    assert "it has files ending in .heic (2), .mov (1)" in message("none")
    put(tmp_path / "notes/a.md")
    assert "with neither pictures nor .tar nor .parquet in it, but .md (1)" in message("notes")
    add(tmp_path / "d", "a.png", None)
    put(tmp_path / "d/a.xml")
    assert "1 without caption" in message("d")
    assert "ending in .xml (1), .png (1)" in message("d")
    put(tmp_path / "d/metadata.csv", "file_name,bezeichnung\na.png,ein Stern\n")
    assert "metadata.csv has the fields file_name, bezeichnung" in message("d")
    assert "--caption-fields" in message("d")
    assert len(opened("d", captions=("bezeichnung",))) == 1
    write_parquet(tmp_path / "p/0.parquet", image=[picture()], bezeichnung=["ein Stern"])
    assert "0.parquet has image, bezeichnung; --caption-fields names where captions are" in message("p")
    write_tar(tmp_path / "t/0.tar", {"a.png": picture(), "a.json": b'{"bezeichnung": "x"}', "a.cls": b"1"})
    assert "0.tar has .cls, .json, .png, bezeichnung" in message("t")


def test_pictures_smaller_than_the_resolution_are_told(
    tmp_path: Path, add: Callable[..., Path], opened: Callable[..., Source]
):
    from fewstep.data.sources.fitting import PictureLimits

    add(tmp_path / "d", "a.png", "a")
    write_parquet(tmp_path / "p/0.parquet", image=[picture()] * 2, text=["a", "b"], width=[40, None], height=[30, None])
    for place in ("d", "p"):
        assert opened(place, limits=PictureLimits(side=31)).report.told == {"smaller than 31 pixels, and enlarged": 1}
        assert opened(place, limits=PictureLimits(side=30)).report.told == {}
    assert opened("d", limits=PictureLimits(side=31)).report.format_report().splitlines()[1:] == [
        "  smaller than 31 pixels, and enlarged: 1"
    ]


def test_metadata_of_macs_finds_pictures_whatever_the_form_of_their_letters(
    tmp_path: Path, add: Callable[..., Path], opened: Callable[..., Source]
):
    add(tmp_path / "d", "cafe\u0301.png", None)
    put(tmp_path / "d/metadata.jsonl", jsonl({"file_name": "caf\u00e9.png", "text": "coffee"}))
    assert list(captions_of(opened()).values()) == ["coffee"]


def test_kept_fresh_and_prepared_latents_draw_the_same_captions(
    tmp_path: Path, add: Callable[..., Path], random_teacher: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    model = load_latent_model(str(random_teacher), pick_device("cpu"))
    for name, caption in (("3_x/a.png", "a red star\na blue circle\na star"), ("1_y/b.png", "a green square")):
        add(tmp_path / "d", name, caption)
    given = {"data": str(tmp_path / "d"), "caption_lines": "draw"}
    prepare(Prepare(model=str(random_teacher), out=tmp_path / "p", workers=1, device="cpu", batch_size=2, **given))
    plain = [
        open_material(TrainingConfig(**fields), model).latents()
        for fields in ({**given}, {**given, "keep_gib": 0.0}, {"data": str(tmp_path / "p")})
    ]
    noise = torch.zeros(24, *plain[0].shape_at(range(1)))
    kept, fresh, prepared = (latents.batch(range(24), noise) for latents in plain)
    assert len({tuple(text.flatten().tolist()) for text in fresh.cond["text"]}) == 4
    for other in (kept, prepared):
        assert torch.allclose(other.cond["text"], fresh.cond["text"], atol=1e-5)
        assert torch.allclose(other.z_0, fresh.z_0, atol=1e-2)
    assert plain[0].keys(range(24)) == plain[1].keys(range(24)) == plain[2].keys(range(24))
