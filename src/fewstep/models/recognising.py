"""What can be told of a model by its small files, before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewstep import assets
from fewstep.models.card import LCM_LORA, StudentCard, read_card
from fewstep.models.families import recognise_file, recognise_folder
from fewstep.models.family import Family
from fewstep.models.loading import find_files
from fewstep.models.model_files import read_index, read_json
from fewstep.models.options import Overrides


@dataclass(frozen=True)
class Recognised:
    """What a model's configuration files, or the names of its tensors, say."""

    family: Family
    side: int
    """Side in pixels of its pictures; where a single file does not say, that of the family's released models."""
    few_step: bool
    """Whether it is a few-step model whose weights can go on learning as such."""
    parameterisation: str
    """What the network predicts, in diffusers' words; empty where a single file does not say."""
    card: StudentCard

    @property
    def is_few_step(self) -> bool:
        """Tells whether it paints in a few steps as it is, as `LatentModel.is_few_step` does."""
        return self.few_step or self.card.method == LCM_LORA


def recognise_family(source: str | Path) -> Family:
    """Reads what family a model is of. Raises UserError where it is of none known; of a Hub id only the configuration
    files are fetched."""
    path = Path(assets.find_folder(source))
    if path.is_file():
        return recognise_file(path)
    folder = find_files(path if path.exists() else source, Overrides(), weights=False)
    return recognise_folder(folder, read_index(folder, source), str(source))


def recognise(source: str | Path, base_config: str = "") -> Recognised:
    """Reads what `load_latent_model` would load, but for the weights. Raises UserError where it is of no known family.

    Of a Hub id only the configuration files are fetched.
    """
    path = Path(assets.find_folder(source))
    if path.is_file():
        family, folder, card = recognise_file(path), Path(base_config), StudentCard()
        folder = find_files(folder, Overrides()) if folder.is_dir() else folder
        if not (base_config and (folder / family.lora.part / "config.json").is_file()):
            return Recognised(family, family.released_side, few_step=False, parameterisation="", card=card)
    else:
        folder = find_files(path if path.exists() else source, Overrides(), weights=False)
        index = read_index(folder, source)
        family, card = recognise_folder(folder, index, str(source)), read_card(folder)
    network = read_json(folder / family.lora.part / "config.json", f"{source} is not a whole pipeline")
    codec = read_json(assets.find_part(folder, "vae") / "config.json", f"{source} is not a whole pipeline")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", f"{source} has no scheduler")
    return Recognised(
        family, family.read_side(network, codec), family.is_few_step(network) or family.records_student(card),
        family.predicts(scheduler), card,
    )  # fmt: skip
