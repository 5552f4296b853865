"""What the engine is asked for and what it holds: pictures to paint, bounds on them, and why one may fail."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from fewstep.data.masks import Fill
from fewstep.diffusion.prediction import Cond
from fewstep.method.sampling import Kept
from fewstep.models.start import Start

OnStep = Callable[[int, Image.Image], None]
"""Takes the number of steps done and the picture of that moment."""


class BusyError(Exception):
    """The queue is full."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after
        """Estimated seconds until there is room."""


class ClosedError(Exception):
    """The engine takes no more work."""


class DeadlineError(Exception):
    """A picture was not done in time."""


class ShortOfMemoryError(Exception):
    """The device had too little memory for a batch; the engine lives on."""


class CancelledError(Exception):
    """Whoever wanted the picture has gone."""


@dataclass(frozen=True, kw_only=True)
class PictureSpec:
    """One picture to paint; whoever makes it has checked that the model allows it."""

    prompt: str
    seed: int
    steps: int
    omega: float
    """Is the guidance in the papers' convention."""
    size: tuple[int, int]
    """Is height and width in pixels."""
    loras: tuple[tuple[str, float], ...] = ()
    """Has every registered LoRA with its scale λ."""
    text_loras: tuple[tuple[str, float], ...] | None = None
    """The same on text encoders; None where they are those of `loras`."""
    start: Image.Image | Tensor | None = None
    """A picture to start from, or clean latents `[1, c, h, w]` of one."""
    mask: Image.Image | None = None
    """White where `start` may be painted anew, of its size; None for everywhere."""
    fill: Fill = "original"
    """What stands under the mask before it is painted."""
    strength: float = 1.0
    """How much to change `start`, above 0, up to 1."""
    previews: bool = False
    """Whether a picture of each step is sent too."""

    @property
    def kind(self) -> tuple[object, ...]:
        """Returns what must be equal in pictures that are painted together."""
        return (self.size, self.loras, self.text_loras)


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """Bounds on the engine's queue and batches."""

    waiting: int = 64
    """Bounds the pictures that wait in the queue."""
    batch_pixels: int = 16 * 512 * 512
    """Most pixels of all pictures that are painted together."""
    batch: int = 16
    """Most pictures that are painted together."""
    deadline: float = 60.0
    """Seconds in which a picture must be finished, from its request on."""


@dataclass(eq=False)
class PaintJob:
    """A picture in the queue or in a batch."""

    spec: PictureSpec
    end: float
    """When it must be finished, in time.monotonic's seconds."""
    on_step: OnStep | None
    future: Future[Image.Image] = field(default_factory=Future)
    times: Sequence[int] = ()
    ends: Sequence[int] = ()
    """Where the answer at each of them lands."""
    cond: Cond = field(default_factory=dict)
    z: Tensor | None = None
    """Latents; once it is done, those of its picture."""
    seen: Tensor | None = None
    """What they would be without the noise that they still have: what is shown of them."""
    begin: Start | None = None
    kept: Kept | None = None
    """What of its latents stays."""
    draw: Callable[[], Tensor] | None = None
    """Gives noise `[1, c, h, w]` of its seed at every call, once it has begun."""
    step: int = 0
    """Counts the steps done."""
    cancelled: bool = False

    @property
    def stands(self) -> int:
        """Returns the time that z stands at: noise at the first time already, and what is clean at 0."""
        if self.step:
            return self.ends[self.step - 1]
        return self.times[0] if self.spec.start is None else 0

    def noise(self) -> Tensor:
        """Draws what brings z to the next time; zeros, undrawn, where it stands there already."""
        assert self.draw is not None
        assert self.z is not None
        if self.stands == self.times[self.step]:
            return torch.zeros_like(self.z)
        noise = self.draw()
        if self.kept is not None:
            self.kept = dataclasses.replace(self.kept, noise=noise)
        return noise

    def cancel(self) -> None:
        """Leaves the batch before the next step."""
        self.cancelled = True

    def fail(self, error: Exception) -> None:
        with contextlib.suppress(InvalidStateError):  # whoever waited may leave at any moment
            self.future.set_exception(error)

    def done(self, image: Image.Image) -> None:
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(image)


@dataclass
class EngineCounts:
    """What the engine has done so far, for the metrics."""

    pictures: int = 0
    steps: int = 0
    """Evaluations of the network, each of a batch."""
    painted_together: int = 0
    """Pictures in the last batch."""
    seconds_per_step: float = 0.05
    """Is the moving average of the seconds of a step."""
    failed: dict[str, int] = field(default_factory=dict)
    """Number of failed pictures, by the name of the error."""
