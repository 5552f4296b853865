"""`fewstep publish`: sends a run's model, or any model's folder, to the Hub, with a card that its widget reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fewstep.errors import UserError, show
from fewstep.models.publishing import check_account, send
from fewstep.recipes.pictures import check_license
from fewstep.runs.publishing import Publication, gather, list_files, settle_license


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Sends a model to a repository of the Hub; what, it lists first."""

    source: Annotated[Path, tyro.conf.Positional] = Path()
    """Run folder, or the folder of a model or a LoRA."""
    repo: Annotated[str, tyro.conf.Positional] = ""
    """Repository, as OWNER/NAME; one that is not there is made. `hf auth login` comes first."""
    license: str = ""
    """License that the card names, in the Hub's spelling, as apache-2.0 or creativeml-openrail-m; the base's own may
    bind you. Without it a terminal is asked."""
    public: bool = False
    """Make a new repository open to all, and send to one that is; else it is private."""
    dry_run: bool = False
    """List what would be sent, and its card, and send nothing."""
    base_model: str = ""
    """Repository of the base, as OWNER/NAME: the card, and a LoRA's header, name it in place of the teacher that the
    model was made from. A folder of this machine is never named as the base."""
    instance_prompt: str = ""
    """Words that call what a LoRA has learnt, for the Hub's widget. By default none are named."""
    picture: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """PNG that `fewstep generate` wrote, for the card and the widget, with its prompt; may be given several times. The
    last samples of a run are shown anyway."""


def publish(config: Publish) -> None:
    """Prints what is sent, sends it, and prints where it is."""
    if not config.repo:
        raise UserError("give what is published and where: fewstep publish runs/mine OWNER/NAME")
    license_name = config.license and check_license(config.license)
    if not config.dry_run:
        license_name = settle_license(license_name)
        check_account(config.repo)
    asked = Publication(
        source=config.source, repo=config.repo, license=license_name, base_model=config.base_model,
        instance_prompt=config.instance_prompt, pictures=config.picture,
    )  # fmt: skip
    files = gather(asked)
    print(*map(show, list_files(config.repo, files, public=config.public)), sep="\n", flush=True)
    if config.dry_run:
        card = files["README.md"]
        assert isinstance(card, bytes)
        missing = "" if license_name else "; to send it, a license is needed: --license, as apache-2.0 or openrail++"
        print("", show(card.decode(), 20_000), f"nothing was sent{missing}", sep="\n", flush=True)
        return
    address = send(config.repo, files, public=config.public, message="fewstep publish")
    print(f"published: {address}", flush=True)
