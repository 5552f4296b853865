"""Adapters that learn on the base itself."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Cond, Network, Prediction
from fewstep.models.card import LORA_FILE, StudentCard, read_method
from fewstep.models.family import LatentModel
from fewstep.models.lora.adapters import AdaptedNetwork, AdapterWeights
from fewstep.models.lora.export import save_lora
from fewstep.models.lora.file import LoraFile, list_written, read_lora
from fewstep.parallel.world import current_world, is_spread
from fewstep.precision import Quantisation
from fewstep.train.learner import Learner, as_student, replicate


class LoraWeights:
    """Adapters learn; the base serves teacher and student alike, so that there is one copy of it in memory."""

    def __init__(  # how a base is held
        self, model: LatentModel, card: StudentCard, *, ema: bool, target_decay: float | None = None,
        checkpointing: bool = False, frozen: torch.dtype = torch.float32, quantisation: Quantisation | None = None,
        start: LoraFile | None = None,
    ) -> None:  # fmt: skip
        """Hangs adapters on `model`, and which are those of `start` if there are any; with an input for the end where
        its method tells it. The base is stored in `frozen`, the weights of its blocks by `quantisation` if there is
        one, and every process may hold a part of it. `card` is as `save_lora` wants it."""
        assert card.lora_rank is not None
        assert card.lora_alpha is not None
        assert card.seed is not None
        if read_method(card, model.source).told_end and not model.network.takes_end:
            model.network.hang_end()
        if quantisation:
            # imported only where a run wants it
            importlib.import_module("fewstep.models.quantised").quantise(model.network, quantisation, model.device)
        if is_spread(model.network):
            model.network.backbone.to(frozen)
        self._adapted = AdaptedNetwork(
            model.network, card.lora_rank, card.lora_alpha, model.family.lora.targets, frozen, card.seed
        )
        if start is not None:
            self._adapted.take_over(start.pairs, "the LoRA to start from", start.end)
        self._average = self._adapted.copy_of_weights() if ema else None
        self._target = self._average if target_decay is None else self._adapted.copy_of_weights()
        if checkpointing:
            model.network.backbone.enable_gradient_checkpointing()
        self.base: Network = self._adapted.teacher
        self.learner = Learner(
            weights=self._adapted.weights, student=self._adapted.student, averaged=self._average,
            target=self._answer_as_target if self._target is not None else None,
            target_average=None if target_decay is None else self._target, target_decay=target_decay or 0.0,
        )  # fmt: skip
        if current_world().size > 1:
            self.learner = replicate(self.learner, some_unused=model.network.leaves_some_unused)
        self.model, self.card, self.frozen = model, card, frozen

    @property
    def is_spread(self) -> bool:
        return is_spread(self.model.network)

    def base_alone(self) -> AbstractContextManager[None]:
        return self._adapted.alone()

    def freeze_copy(self) -> Network:
        rank, alpha = self._adapted.rank, self._adapted.alpha
        targets = self.model.family.lora.targets
        last = AdaptedNetwork(self.model.network, rank, alpha, targets, self.frozen, name="last")
        last.take_over(self._adapted.pairs(self._adapted.weights), "the student")
        last.weights.requires_grad_(False)
        return last.student

    def _answer_as_target(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Prediction:
        with self._using(self._target):
            return self._adapted.student(z_t, t, cond, omega)

    def _using(self, average: AdapterWeights | None) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if average is None else self._adapted.using(average)

    @contextlib.contextmanager
    def exported(self) -> Iterator[LatentModel]:
        with self._adapted.acting(), self._using(self._average), self.model.awake():
            yield as_student(self.model, self.card, self.model.network)

    def save(self, folder: Path) -> None:
        exported = self._average or self._adapted.weights
        pairs, end = self._adapted.pairs(exported), self._adapted.end(exported)
        if current_world().main:
            difference = save_lora(folder, self.model, pairs, self.card, end)
            spelt = "in two spellings" if len(list_written(self.model.family.lora, end)) > 1 else "for diffusers"
            if end:
                spelt = "without kohya's spelling, whose readers have no place for the end,"
            print(f"LoRA written {spelt} and read back: largest difference {difference:g}", flush=True)
        current_world().wait()

    def reload(self, folder: Path) -> None:
        read_lora(folder / LORA_FILE, self.model.parts, self.model.family.lora)
