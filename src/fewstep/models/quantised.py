"""A base that does not learn, held in 8 or 4 bits: weights are put together again where they are multiplied by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input

from fewstep.models.network import BackboneNetwork
from fewstep.precision import Quantisation

BLOCK = 64
"""Numbers of a weight that share a scale, their largest magnitude, in fp32."""
_PUT_TOGETHER_AS = (torch.float32, torch.bfloat16, torch.float16)


def quantise(network: BackboneNetwork, quantisation: Quantisation, device: torch.device) -> None:
    """Holds the weights of a network's blocks in so few bits, for good, and brings all of it to `device`.

    Linear layers and convolutions are quantised, one at a time, so that a network that rests in main memory takes no
    more on a card than it comes to. What stands outside the blocks, norms and biases stay as they are.
    """
    for block in network.blocks:
        for parent in [*block.modules()]:
            layers: list[tuple[str, Any]] = [*parent.named_children()]
            for name, layer in layers:
                if type(layer) in _KINDS and layer.weight.numel() % BLOCK == 0:
                    setattr(parent, name, _KINDS[type(layer)](layer, quantisation, device))
    network.backbone.to(device)


@cache
def _import_functions() -> Any:
    import bitsandbytes.functional  # takes two seconds

    return bitsandbytes.functional


class _Quantised(nn.Module, ABC):
    """A frozen layer that stands in the place of a plain one, under its class, its settings and its bias."""

    packed: Tensor
    scales: Tensor
    levels: Tensor | None
    bias: Any

    def __init__(self, plain: Any, quantisation: Quantisation, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({name: value for name, value in vars(plain).items() if not name.startswith("_")})
        self.register_parameter("bias", plain.bias)
        weight: Tensor = plain.weight.detach().to(device).contiguous()
        self._shape, self._dtype, levels = weight.shape, weight.dtype, None
        match quantisation:
            case "int8":  # levels are even; bitsandbytes' own favour small numbers and are half as exact on weights
                levels = _import_functions().create_linear_map(signed=True, total_bits=8).to(device)
                packed, state = _import_functions().quantize_blockwise(weight, code=levels, blocksize=BLOCK)
            case "nf4":
                packed, state = _import_functions().quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
            case _:
                assert_never(quantisation)
        self.register_buffer("packed", packed)
        # Under its bits: whoever stores a network in another format leaves the scales exact.
        self.register_buffer("scales", state.absmax.view(torch.int32))
        self.register_buffer("levels", None if levels is None else levels.view(torch.int32))

    @property
    def weight(self) -> Tensor:
        """Returns the weight, rounded as it is, in the format that it came in."""
        return self.put_together(self._dtype)

    def put_together(self, dtype: torch.dtype) -> Tensor:
        """Returns the weight in `dtype`."""
        functions, levels, made = (
            _import_functions(),
            self.levels,
            dtype if dtype in _PUT_TOGETHER_AS else torch.float32,
        )
        settings = {"absmax": self.scales.view(torch.float32), "blocksize": BLOCK, "dtype": made}
        if levels is None:
            # As rows of a block each: its kernel for CPUs knows no odd rows, as those of a convolution are.
            state = functions.QuantState(**settings, shape=(self._shape.numel() // BLOCK, BLOCK), quant_type="nf4")
            weight: Tensor = functions.dequantize_4bit(self.packed, state)
        else:
            state = functions.QuantState(**settings, code=levels.view(torch.float32))
            weight = functions.dequantize_blockwise(self.packed, state)
        return weight.view(self._shape).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Answers in the format that autocast asks for, or else in that of `x`."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        answer: Tensor = _Product.apply(x.to(dtype), self)  # type: ignore[no-untyped-call]  # torch's own
        return answer

    @abstractmethod
    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns what the plain layer would."""

    @abstractmethod
    def multiply_back(self, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """Returns the gradient by an input of that shape."""


class _Product(torch.autograd.Function):
    """Multiplies by a weight that is put together anew in the backward pass: autograd itself would keep it till then,
    and with it the whole base."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Quantised) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return layer.multiply(x, layer.put_together(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layer: _Quantised = ctx.layer
        return layer.multiply_back(gradient, layer.put_together(gradient.dtype), ctx.shape), None


class QuantisedLinear(_Quantised, nn.Linear):  # type: ignore[override]  # its weight is not to be set
    """A linear layer."""

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight, bias)

    def multiply_back(self, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        return (gradient @ weight).view(shape)


class QuantisedConv2d(_Quantised, nn.Conv2d):  # type: ignore[override]  # its weight is not to be set
    """A convolution, padded with zeros if at all."""

    def __new__(cls, plain: Any = None, *settings: Any, **named: Any) -> Any:
        """Makes a plain convolution where it is given what one is given: peft makes adapters of the class of what they
        hang on."""
        return nn.Conv2d(plain, *settings, **named) if isinstance(plain, int) else super().__new__(cls)

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        answer: Tensor = self._conv_forward(x, weight, bias)
        return answer

    def multiply_back(self, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        given: Any = (self.stride, self.padding, self.dilation, self.groups)
        back: Tensor = conv2d_input(shape, weight, gradient, *given)
        return back


_KINDS: dict[type[nn.Module], Any] = {nn.Linear: QuantisedLinear, nn.Conv2d: QuantisedConv2d}
