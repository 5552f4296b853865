"""A diffusers UNet as a Network: its output converted to z_0 and ε once, here at the edge."""

from __future__ import annotations

import hashlib

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from fewstep.diffusion.prediction import Cond, Parameterisation, Prediction, to_prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.method.omega_embedding import OMEGA_WIDTH, embed_omega


class UNetNetwork(nn.Module):
    """`cond["text"]` is `[b, tokens, width]`, with `"pooled"` `[b, width]` for Stable Diffusion XL, and `"sizes"`
    `[b, 6]`, without which its sizes and crop are those of a whole picture; ω is used where the UNet has an input for
    it."""

    def __init__(
        self, unet: UNet2DConditionModel, schedule: Schedule, parameterisation: Parameterisation,
        pixels_per_latent: int = 8,
    ) -> None:  # fmt: skip
        super().__init__()
        self.unet = unet
        self.schedule = schedule.to(unet.device)
        self.parameterisation = parameterisation
        self.pixels_per_latent = pixels_per_latent

    def forward(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Prediction:
        # diffusers' own property looks at every weight, which takes longer than some layers do.
        first = next(self.unet.parameters(), None)
        dtype = torch.float32 if first is None else first.dtype
        omega_embedding = None
        if omega is not None and self.unet.config.time_cond_proj_dim is not None:
            omega_embedding = embed_omega(omega, self.unet.config.time_cond_proj_dim).to(dtype)
        output = self.unet(
            z_t.to(dtype),
            t.float() if t.is_floating_point() else t,
            encoder_hidden_states=cond["text"].to(dtype),
            timestep_cond=omega_embedding,
            added_cond_kwargs=self._sizes(z_t, cond, dtype) if "pooled" in cond else None,
        ).sample
        alpha, sigma = self.schedule.coefficients(t, z_t)
        return to_prediction(self.parameterisation, output, z_t, alpha, sigma)

    def _sizes(self, z_t: Tensor, cond: Cond, dtype: torch.dtype) -> Cond:
        """Stable Diffusion XL's added conditions: original size, crop's corner, target size (arXiv 2307.01952, 2.2)."""
        if (sizes := cond.get("sizes")) is None:
            height, width = (side * self.pixels_per_latent for side in z_t.shape[-2:])
            sizes = torch.tensor([height, width, 0, 0, height, width], device=z_t.device).expand(len(z_t), 6)
        return {"text_embeds": cond["pooled"].to(dtype), "time_ids": sizes.to(dtype)}


@torch.no_grad()
def student_of(teacher: UNetNetwork, latent_side: int) -> UNetNetwork:
    """A copy of the teacher with an input for ω that starts at zero, so that it answers as the teacher does.

    `latent_side` is what it will be trained on, and what samplers then paint by default.
    """
    unet = teacher.unet
    changes = {"time_cond_proj_dim": OMEGA_WIDTH, "sample_size": latent_side}
    # What an older config.json leaves out diffusers lists under this name, and would set to its default again.
    config = {name: value for name, value in unet.config.items() if name != "_use_default_values"}
    copy = UNet2DConditionModel.from_config({**config, **changes}).to(unet.device)
    copy.time_embedding.cond_proj.weight.zero_()
    missing, unexpected = copy.load_state_dict(unet.state_dict(), strict=False)
    assert (missing, unexpected) == (["time_embedding.cond_proj.weight"], [])
    return UNetNetwork(copy, teacher.schedule, teacher.parameterisation, teacher.pixels_per_latent)


def weights_sha256(network: nn.Module) -> str:
    """Hash of a network's weights, whatever adapters hang on it."""
    total = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if ".lora_" not in name:
            total.update(name.replace(".base_layer", "").encode())
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
