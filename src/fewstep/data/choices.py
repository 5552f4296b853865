"""What a person may choose of how pictures and captions are read."""

from __future__ import annotations

from typing import Literal

Crop = Literal["middle", "random"]
"""Which square of a picture that is not square is taken."""
Buckets = Literal["off", "on"]
"""Whether pictures become squares, or keep about the aspect that they have."""
CaptionLines = Literal["join", "draw", "first"]
"""What becomes of a caption of several lines: one line, one of them drawn at each position, or the first alone."""
