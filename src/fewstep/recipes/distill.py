"""`fewstep distill`: a teacher and captioned pictures in, a few-step model out (Latent Consistency Distillation)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fewstep import assets
from fewstep.consistency.distance import DistanceName, l2, pseudo_huber
from fewstep.consistency.path import TeacherPath, Times
from fewstep.consistency.step import Method
from fewstep.consistency.weight import WeightName, loss_weight
from fewstep.data.folder import open_folder
from fewstep.data.scene_drawing import SIDE
from fewstep.data.scenes import SceneExamples, Scenes
from fewstep.diffusion.solvers import SOLVERS, SolverName
from fewstep.errors import UserError
from fewstep.evaluate.grid import labelled_grid
from fewstep.models.encoding import PictureSource, encode
from fewstep.models.export import save_student
from fewstep.models.latent_model import LatentModel, load_latent_model, pick_device
from fewstep.models.network import UNetNetwork, student_of
from fewstep.models.pipeline import Pipeline
from fewstep.recipes.run_folder import claim_run_folder
from fewstep.train.config import LoopConfig
from fewstep.train.distill_task import DistillTask, TimeAndGuidance
from fewstep.train.loop import fit

SAMPLE_STEPS = (1, 2, 4, 8)
SAMPLE_PROMPTS = 6


@dataclass(frozen=True, kw_only=True)
class Distill(LoopConfig):
    """Turns a teacher into a model that paints in 1 to 8 steps."""

    teacher: str = assets.SCENES
    """`scenes` (bundled), a diffusers folder in Stable Diffusion's layout, or a Hub id."""
    data: str = assets.SCENES
    """`scenes` (drawn on the fly), or a folder of pictures with .txt captions or a metadata.jsonl."""
    out: Path = Path("runs/scenes")
    """Run folder. The same command again goes on where it stopped."""
    pictures: int = 8192
    """How many scenes are drawn; a folder is always used whole."""
    resolution: int = 0
    """Side of the pictures in pixels; 0 takes the teacher's own."""
    guidance_range: tuple[float, float] = (3.0, 9.0)
    """Guidance the model is trained for, in diffusers' convention (ω + 1, so 1 is none)."""
    guidance_scale: float = 5.0
    """Guidance the model uses when none is asked for, in diffusers' convention; lies in `guidance_range`."""
    solver: SolverName = "ddim"
    """How the teacher steps from t to s."""
    skip: int = 20
    """k = t − s, in the schedule's whole times."""
    times: Times = "grid"
    """`grid`: t where LCM samplers land; `any`: every t ≥ k, as the paper's algorithm 1 is written."""
    distance: DistanceName = "huber"
    """How two answers are compared."""
    huber_c: float = 0.03
    """Width of pseudo-Huber's quadratic bottom, in units of the latent."""
    loss_weight: WeightName = "constant"
    """λ(t) of the loss."""
    sample_every: int = 200
    """Updates between two sample grids; 0 draws none."""
    keep_gib: float = 4.0
    """Latents and texts are encoded once and kept when they need at most this many GiB."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.guidance_range
        if not 1 <= low <= self.guidance_scale <= high:
            raise UserError(
                f"guidance_range is {low:g} to {high:g} and guidance_scale {self.guidance_scale:g}; "
                "needed is 1 ≤ low ≤ guidance_scale ≤ high"
            )
        if not 1 <= self.skip <= 100:
            raise UserError(f"skip is {self.skip}; allowed are 1 to 100")
        if self.pictures < 1:
            raise UserError(f"pictures is {self.pictures}; it must be at least 1")
        if self.huber_c <= 0:
            raise UserError(f"huber_c is {self.huber_c}; it must be above 0")


def distill(config: Distill) -> None:
    """Trains and exports to `config.out / "model"`."""
    teacher = load_teacher(config)
    check_skip(config.skip, teacher.schedule.num_steps)
    resolution = config.resolution or teacher.resolution
    if resolution % teacher.pixels_per_latent:
        raise UserError(f"resolution is {resolution}; the teacher needs a multiple of {teacher.pixels_per_latent}")
    pictures = open_pictures(config, resolution)
    claim_run_folder(config.out, config)
    task = make_task(config, teacher, pictures, resolution)
    captions = [pictures[i].caption for i in range(min(SAMPLE_PROMPTS, len(pictures)))]
    fit(task, config, config.out, "distil", _sampler(config, teacher, task, captions))
    save_student(config.out / "model", teacher, exported(task), grid_size(config, teacher), model_details(config))


def check_skip(skip: int, num_steps: int) -> None:
    """LCM samplers choose from {k'−1, 2k'−1, …} with k' = T // (T // k); training must land there too."""

    def usable(k: int) -> bool:
        return 0 < k < num_steps and num_steps // (num_steps // k) == k

    if not usable(skip):
        near = min((k for k in range(1, min(num_steps, 101)) if usable(k)), key=lambda k: abs(k - skip))
        raise UserError(
            f"skip is {skip}, where no sampler of {num_steps} times lands; the nearest that works is {near}"
        )


def load_teacher(config: Distill) -> LatentModel:
    """The teacher, frozen; refuses a model that is already few-step."""
    source = assets.scenes_teacher() if config.teacher == assets.SCENES else config.teacher
    teacher = load_latent_model(source, pick_device(config.device))
    if teacher.network.unet.config.time_cond_proj_dim is not None:
        raise UserError(f"{config.teacher} is already a few-step model; give the teacher that it was made from")
    return teacher


def open_pictures(config: Distill, resolution: int) -> PictureSource:
    """The training set; of a folder it prints what was used and what was dropped."""
    if config.data != assets.SCENES:
        pictures = open_folder(Path(config.data), resolution)
        print(pictures.report.line(), flush=True)
        return pictures
    if resolution != SIDE:
        raise UserError(
            f"scenes are {SIDE} pixels wide and resolution is {resolution}; give your own pictures with --data"
        )
    return SceneExamples(Scenes(seed=config.seed), config.pictures)


def make_task(config: Distill, teacher: LatentModel, pictures: PictureSource, resolution: int) -> DistillTask:
    """The seams of the method, set as the configuration says."""
    schedule = teacher.schedule
    method = Method(
        schedule=schedule,
        path=TeacherPath(teacher.network, schedule, teacher.encode_text([""]), SOLVERS[config.solver]),
        distance=l2 if config.distance == "l2" else pseudo_huber(config.huber_c),
        weight=loss_weight(config.loss_weight, schedule),
    )
    low, high = config.guidance_range
    drawn = TimeAndGuidance(skip=config.skip, times=config.times, omega_range=(low - 1, high - 1))
    source = encode(teacher, pictures, resolution, config.keep_gib)
    student = student_of(teacher.network, resolution // teacher.pixels_per_latent)
    return DistillTask(student, method, source, drawn, config.ema_decay > 0, config.seed)


def exported(task: DistillTask) -> nn.Module:
    """The averaged weights where there are any."""
    return task.averaged if task.averaged is not None else task.student


def grid_size(config: Distill, teacher: LatentModel) -> int:
    """T/k, from which LCM samplers choose their times."""
    return teacher.schedule.num_steps // config.skip


def model_details(config: Distill) -> dict[str, object]:
    """What is recorded beside the weights."""
    names = ("teacher", "data", "steps", "batch_size", "lr", "ema_decay", "solver", "skip", "guidance_scale", "seed")
    return {
        "name": config.out.resolve().name,
        "method": "LCD",
        **{name: getattr(config, name) for name in names},
        "guidance_range": list(config.guidance_range),
    }


def student_pipeline(config: Distill, teacher: LatentModel, network: nn.Module) -> Pipeline:
    """The network as it would be exported, without a detour over the disk."""
    assert isinstance(network, UNetNetwork)
    scheduler_config = {**teacher.scheduler_config, "original_inference_steps": grid_size(config, teacher)}
    return Pipeline(
        dataclasses.replace(
            teacher, source=str(config.out), network=network, scheduler_config=scheduler_config,
            details=model_details(config),
        )
    )  # fmt: skip


def _sampler(
    config: Distill, teacher: LatentModel, task: DistillTask, captions: list[str]
) -> Callable[[int], None] | None:
    if config.sample_every < 1:
        return None
    pipeline = student_pipeline(config, teacher, exported(task))
    allowed = [steps for steps in SAMPLE_STEPS if steps <= pipeline.grid_size]

    def sample(step: int) -> None:
        if step % config.sample_every and step != config.steps:
            return
        file = config.out / "samples" / f"step-{step:07d}.png"
        if file.exists():
            return
        file.parent.mkdir(exist_ok=True)
        rows = [(f"{steps} steps", pipeline(captions, steps=steps)) for steps in allowed]
        draft = file.with_suffix(".tmp")
        labelled_grid(rows, captions).save(draft, format="png")
        draft.rename(file)

    return sample
