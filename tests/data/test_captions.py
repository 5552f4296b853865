"""Captions from bytes and fields: one bounded line, or a reason."""

from __future__ import annotations

import pytest
from PIL import Image

from fewstep.data.sources import captions
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.filters import Reason
from fewstep.data.sources.folder import open_folder
from fewstep.data.sources.prompts import open_prompts
from fewstep.models.engines.calibration import read_prompts


def reason(action, *arguments: object) -> str:
    with pytest.raises(DroppedError) as caught:
        action(*arguments)
    return caught.value.reason


def test_white_space_becomes_single_spaces_and_long_captions_are_cut():
    assert captions.clean(" a\tred \r\n\n star ") == "a red star"
    assert captions.clean("word " * 20_000) == ("word " * 400).rstrip()
    assert len(captions.clean("x" * 100_000)) == captions.MAX_CHARACTERS


def test_what_is_no_caption_says_why():
    assert reason(captions.clean, None) == Reason.NO_CAPTION
    assert reason(captions.clean, 7) == Reason.NO_CAPTION
    assert reason(captions.clean, " \n") == Reason.EMPTY_CAPTION
    assert reason(captions.clean, "half \ud800") == Reason.CAPTION_NOT_UTF8
    assert reason(captions.parse_text, b"caf\xe9") == Reason.CAPTION_NOT_UTF8
    assert reason(captions.parse_text, b"cut \xc3") == Reason.CAPTION_NOT_UTF8
    assert reason(captions.parse_text, b"") == Reason.EMPTY_CAPTION


def test_a_text_that_is_cut_inside_a_letter_is_still_text():
    text = ("é" * captions.MAX_TEXT_BYTES).encode()
    for start in (b"", b"x"):
        assert captions.parse_text((start + text)[: captions.MAX_TEXT_BYTES]).endswith("é")
    assert captions.parse_text("\ufeffmarked".encode()) == "marked"


@pytest.mark.parametrize("kind", ["utf-16", "utf-16-be"])
def test_a_text_with_the_mark_of_utf_16_is_read_as_that(kind, tmp_path):
    """As Windows' editors and shells write it."""

    def encode(text):
        return (text if kind == "utf-16" else f"\ufeff{text}").encode(kind)

    assert captions.parse_text(encode("café\r\n")) == "café"
    assert captions.parse_json(encode('{"text": "café"}')) == {"text": "café"}
    assert reason(captions.parse_text, encode("café")[:-1]) == Reason.CAPTION_NOT_UTF8
    for name, text in (
        ("metadata.csv", "file_name\ttext\r\na.png\tcafé\r\n"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "café"}'),
    ):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        Image.new("RGB", (8, 8)).save(folder / "a.png")
        (folder / name).write_bytes(encode(text))
        assert open_folder(folder).samples == (("a.png", "café"),)
    file = tmp_path / "prompts.txt"
    for content in (encode("café\r\na star\r\n"), "\ufeffcafé\na star".encode()):
        file.write_bytes(content)
        prompts = open_prompts(str(file), 8)
        assert [prompts.caption(i) for i in range(len(prompts))] == ["café", "a star"]
        assert read_prompts(str(file)) == ["café", "a star"]


def test_json_gives_its_fields_in_lower_case_or_is_unreadable():
    assert captions.parse_json(b'{"Caption": "a", "WIDTH": 3}') == {"caption": "a", "width": 3}
    for wrong in (b"", b"[1]", b"{", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"7"):
        assert reason(captions.parse_json, wrong) == Reason.BAD_METADATA
    assert reason(captions.parse_json, b'{"a": "%s"}' % (b"x" * captions.MAX_JSON_BYTES)) == Reason.BAD_METADATA


def test_the_first_named_field_with_a_value_is_the_caption():
    fields = captions.lower_names({"TEXT": "plain", "Recaption": "anew", "caption": None})
    assert captions.find_field(fields, ()) == "plain"
    assert captions.find_field(fields, ("recaption",)) == "anew"
    assert captions.find_field(fields, ("Recaption", "text")) == "anew"
    assert captions.find_field(fields, ("absent",)) is None
    assert captions.find_columns(["Text", "URL", "CAPTION"], captions.NAMES) == ["CAPTION", "Text"]
