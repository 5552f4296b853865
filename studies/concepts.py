"""Draws the figures of docs/concepts.md: the noise, the paths, guidance, skipping and where steps land.

    python studies/concepts.py        # a minute

Figures: docs/concepts/. All that are drawn are of worlds whose answers are known exactly.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

import fewstep
from fewstep.data.pictures import to_images, to_pixels
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import Tabulated
from fewstep.measure.mixture import CLASSES, MEANS, STD, Mixture, follow_finely, guide

OUT = Path("docs/concepts")
GREY, BLUE, RED, GREEN = "#80868f", "#3b82f6", "#e5484d", "#2f9e68"
"""They can be read on white and on dark blue."""
DIFFUSION = Tabulated.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
TIMES = (0, 250, 500, 750, 999)


def style() -> None:
    """Sets grey axes on no background, without a date, so that a figure is the same bytes again."""
    mpl.use("Agg")
    mpl.rcParams.update({
        "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "text.color": GREY,
        "axes.edgecolor": GREY, "axes.labelcolor": GREY, "xtick.color": GREY, "ytick.color": GREY, "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "fewstep", "svg.fonttype": "none",
        "font.family": "sans-serif", "legend.frameon": False,
    })  # fmt: skip


def save(name: str) -> None:
    plt.tight_layout()
    plt.savefig(OUT / f"{name}.svg", metadata={"Date": None})
    plt.close()


def draw_noise() -> None:
    """A picture on its way to noise."""
    picture = fewstep.load()("a large red star on a white background", steps=4, seed=1)[0]
    z_0 = to_pixels([picture]).expand(len(TIMES), -1, -1, -1)
    noise = torch.randn(z_0[:1].shape, generator=torch.Generator().manual_seed(0)).expand_as(z_0)
    images = to_images(DIFFUSION.diffuse(z_0, noise, torch.tensor(TIMES)).clamp(-1, 1))
    sheet = Image.new("RGB", (128 * len(images) + 8 * (len(images) - 1), 128), "#80868f")
    for i, image in enumerate(images):
        sheet.paste(image.resize((128, 128), Image.Resampling.NEAREST), (136 * i, 0))
    sheet.quantize(128).save(OUT / "noise.png", optimize=True)


def draw_front() -> None:
    """The front page's picture: some rows of the demo's grid."""
    grid, label, cell = Image.open("docs/demo/grid.png").convert("RGB"), 150, 102
    top = grid.height - 13 * cell
    rows = (0, 1, 3, 9, 11)  # the teacher; DDIM in 1 and 4 steps; the few-step model in 1 and 4
    sheet = Image.new("RGB", (label + 6 * cell, top + len(rows) * cell), "white")
    sheet.paste(grid.crop((0, 0, sheet.width, top)))
    for i, row in enumerate(rows):
        sheet.paste(grid.crop((0, top + row * cell, sheet.width, top + (row + 1) * cell)), (0, top + i * cell))
    sheet.save(OUT / "front.png", optimize=True)


def draw_schedules() -> None:
    """α and σ of Stable Diffusion's schedule, and of a flow with shift 3."""
    _, axes = plt.subplots(1, 2, figsize=(7, 2.2), sharey=True)
    for ax, schedule, title in ((axes[0], DIFFUSION, "Stable Diffusion"), (axes[1], Flow(shift=3.0), "flow, shift 3")):
        t = torch.arange(0, schedule.last + 1)
        ax.plot(t, schedule.alpha(t), color=BLUE, label="α, of the picture")
        ax.plot(t, schedule.sigma(t), color=RED, label="σ, of the noise")
        ax.set_title(title)
        ax.set_xlabel("time t")
    axes[1].legend(loc="center right")
    save("schedules")


def follow(schedule: Tabulated, z: Tensor, teacher: Mixture) -> tuple[Tensor, Tensor]:
    """Returns times, latest first, and where the ODE leads each z at them `[times, n]`."""
    cond = {"weights": torch.full((len(z), len(teacher.means)), 1 / len(teacher.means), dtype=z.dtype)}

    def field(z_t: Tensor, t: Tensor) -> Prediction:
        return teacher(z_t, t, cond, None)

    times = torch.arange(999, -1, -9)
    places = [z]
    for t, s in itertools.pairwise(times):
        places.append(follow_finely(schedule, field, places[-1], torch.stack([t, s])))
    return times, torch.cat(places, 1).T


def draw_paths() -> None:
    """The PF-ODE's paths, and what a consistency function answers from anywhere on one of them."""
    line = Mixture(DIFFUSION, torch.tensor([[-1.3], [0.9]]), 0.15)
    z = torch.linspace(-2, 2, 15, dtype=torch.double)[:, None]
    times, places = follow(DIFFUSION, z, line)
    _, axes = plt.subplots(1, 2, figsize=(7, 2.6), sharey=True)
    for ax in axes:
        ax.plot(times[::3], places[::3], color=GREY, linewidth=0.8, alpha=0.7)
        ax.set_xlim(1010, -25)
        ax.set_xlabel("time t: noise on the left, pictures on the right")
    axes[0].set_title("the PF-ODE leads each noise to a picture")
    axes[1].set_title("f answers with the end, from anywhere")
    one = places[:, 6]
    for i in (0, 40, 75):
        ax = axes[1]
        ax.annotate("", (0, float(one[-1])), (float(times[i]), float(one[i])),
                    arrowprops={"arrowstyle": "->", "color": BLUE, "linewidth": 1.4})  # fmt: skip
        ax.plot([float(times[i])], [float(one[i])], "o", color=BLUE, markersize=4)
    save("paths")


def draw_guidance() -> None:
    """Where the guided ODE leads the same noise, at three ω."""
    teacher = Mixture(DIFFUSION, MEANS, STD)
    z = torch.randn(250, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    cond = {"weights": CLASSES[torch.zeros(250, dtype=torch.long)].double()}
    _, axes = plt.subplots(1, 3, figsize=(7, 2.5), sharex=True, sharey=True)
    for ax, omega in zip(axes, (0.0, 2.0, 6.0), strict=True):
        field = guide(teacher, cond, torch.full((250,), omega, dtype=torch.double))
        ends = follow_finely(DIFFUSION, field, z, torch.arange(999, -1, -9))
        ax.scatter(MEANS[:2, 0], MEANS[:2, 1], s=420, color=BLUE, alpha=0.2, linewidths=0)
        ax.scatter(MEANS[2:, 0], MEANS[2:, 1], s=420, color=RED, alpha=0.2, linewidths=0)
        ax.scatter(ends[:, 0], ends[:, 1], s=5, color=BLUE)
        ax.set_title(f"ω = {omega:g}, guidance_scale {omega + 1:g}")
        ax.set_aspect("equal")
        ax.set_xlim(-2.8, 1.9)
    save("guidance")


def arc(ax: Axes, start: float, end: float, colour: str, height: float, label: str = "") -> None:
    """Draws a jump over the time axis."""
    x = torch.linspace(start, end, 40)
    y = height * (1 - ((x - (start + end) / 2) / ((start - end) / 2)) ** 2)
    ax.plot(x, y, color=colour, linewidth=1.6, label=label)
    ax.plot([end], [0], marker=">" if start > end else "<", color=colour, markersize=4, clip_on=False)


def draw_times(ax: Axes, title: str) -> None:
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set_xlim(1030, -30)
    ax.set_ylim(-0.08, 1.25)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_title(title, loc="left")


def draw_skipping() -> None:
    """What one update compares, without skipping and with k = 20 shown as 100."""
    _, axes = plt.subplots(2, 1, figsize=(7, 3.2), sharex=True)
    for ax, k, title in ((axes[0], 12, "neighbouring times: answers spread slowly"), (axes[1], 150, "k times apart")):
        draw_times(ax, title)
        t = 800
        s = t - k
        ax.plot([t, s], [0, 0], color=RED, linewidth=3, solid_capstyle="butt", label="teacher's step from t to s")
        arc(ax, t, 0, BLUE, 1.0, "student's answer at t")
        arc(ax, s, 0, GREEN, 0.75, "wanted: the average's answer at s")
    axes[1].set_xlabel("time t")
    axes[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.45), ncol=3, fontsize=8)
    save("skipping")


def draw_ends() -> None:
    """Four steps of a sampler that lands at 0 each time, and of one that goes from end to end."""
    _, axes = plt.subplots(2, 1, figsize=(7, 2.8), sharex=True)
    draw_times(axes[0], "lcm: land at 0 (blue), add noise (red), ask again")
    axes[0].set_ylim(-0.55, 1.25)
    draw_times(axes[1], "any-step and pcm: go from end to end")
    times = (999, 749, 499, 249)
    for i, t in enumerate(times):
        arc(axes[0], t, 0, BLUE, 1.0 - 0.2 * i)
        after = times[i + 1] if i < 3 else 0
        arc(axes[1], t, after, BLUE, 0.7)
        if i < 3:
            arc(axes[0], 0, after, RED, -0.45 + 0.1 * i)
    axes[1].set_xlabel("time t")
    save("ends")


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    style()
    for draw in (draw_front, draw_noise, draw_schedules, draw_paths, draw_guidance, draw_skipping, draw_ends):
        draw()
