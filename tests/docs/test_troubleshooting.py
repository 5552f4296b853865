"""The messages that docs/troubleshooting.md quotes are those that the code has."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = [quoted for line in PAGE.splitlines() if line.startswith('"*') for quoted in re.findall(r'"\*(.*?)\*"', line)]


def spell(node: ast.AST) -> str:
    """A text of the code with … for what it fills in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(spell(part) for part in node.values)
    return f"{spell(node.left)}{spell(node.right)}" if isinstance(node, ast.BinOp) else "…"


@functools.cache
def list_texts() -> str:
    """Every text of the package, one a line."""
    kinds = (ast.JoinedStr, ast.Constant, ast.BinOp)
    trees = (ast.parse(file.read_text()) for file in sorted((ROOT / "src" / "fewstep").rglob("*.py")))
    texts = {spell(node) for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)}
    return "\n".join(sorted(" ".join(text.split()) for text in texts))


def is_said(quoted: str) -> bool:
    """Whether a line of the package has the pieces of a quoted message, in their order."""
    pieces = [re.escape(piece.strip()) for piece in quoted.split("…") if re.search(r"\w", piece)]
    return re.search(r"[^\n]*".join(pieces), list_texts()) is not None


def test_the_page_quotes_many():
    assert len(QUOTED) == len(set(QUOTED)) > 70


@pytest.mark.parametrize("quoted", QUOTED)
def test_every_quoted_message_is_in_the_code(quoted):
    assert is_said(quoted)


def test_a_message_that_nobody_says_is_found_out():
    assert not is_said("… is finished: its picture is …")
