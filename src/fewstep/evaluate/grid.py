"""Pictures side by side, with words at the edges."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MARGIN = 6
_LABEL_WIDTH = 150
_LINE = 15


def labelled_grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], headings: Sequence[str], cell: int = 96
) -> Image.Image:
    """Draws a row of pictures for each (label, pictures), under wrapped headings."""
    font = ImageFont.load_default(12)
    wrapped = [_wrap(heading, font, cell) for heading in headings]
    top = _MARGIN + _LINE * max((len(lines) for lines in wrapped), default=0) + _MARGIN
    size = (_LABEL_WIDTH + len(headings) * (cell + _MARGIN), top + len(rows) * (cell + _MARGIN))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(wrapped):
        for i, line in enumerate(lines):
            draw.text((_LABEL_WIDTH + column * (cell + _MARGIN), _MARGIN + i * _LINE), line, "black", font)
    for number, (label, pictures) in enumerate(rows):
        y = top + number * (cell + _MARGIN)
        draw.text((_MARGIN, y + cell // 2 - _LINE // 2), label, "black", font)
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((cell, cell), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (_LABEL_WIDTH + column * (cell + _MARGIN), y))
    return sheet


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
