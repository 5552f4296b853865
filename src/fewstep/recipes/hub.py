"""The settings by which a training sends what it made to the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fewstep.errors import UserError

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,60}")


def check_license(name: str) -> str:
    """Returns the name of a license as the Hub spells it. Raises UserError for what none is called."""
    if not _LICENSE.fullmatch(name):
        raise UserError(
            f"license is {name!r:.80}; give the Hub's name of one, as apache-2.0, creativeml-openrail-m, openrail++ or "
            "other"
        )
    return name


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """Says whether, where and under which license a training publishes its model. Nothing is sent by default."""

    push_to_hub: str = ""
    """Repository of the Hub, as OWNER/NAME, to send the model to at the end, with its card and the last samples; `hf
    auth login` comes first. By default nothing is sent; `fewstep publish` does it later, and shows before what."""
    license: str = ""
    """License that the card names, in the Hub's spelling, as apache-2.0 or creativeml-openrail-m; the base's own may
    bind you. Without it a terminal is asked, before the training begins."""
    public: bool = False
    """Make a new repository open to all, and send to one that is; else it is private."""

    def __post_init__(self) -> None:
        if self.license:
            check_license(self.license)
        if not self.push_to_hub and (self.license or self.public):
            given = "--license" if self.license else "--public"
            raise UserError(f"{given} is for what is sent to the Hub; give --push-to-hub OWNER/NAME too")
