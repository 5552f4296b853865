"""A model whose UNet and decoder OpenVINO computes on a CPU, compiled once for every shape and kept on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.metadata
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.files import replace_folder
from fewstep.models.codec import Codec
from fewstep.models.engines.calibration import Calibration, Passes
from fewstep.models.family import LatentModel
from fewstep.models.lora.decomposed import merge_attached
from fewstep.models.network import hash_weights
from fewstep.precision import PaintPrecision

_FORMAT = 1
_WHOLE = (r".*conv_in.*", r".*conv_out.*", r".*time_emb.*")
"""Parts of a UNet that int8 leaves as they are: its two ends, and what its time goes through."""
_SMOOTH = 0.5
"""How much of the reach of what comes into a layer is moved into its weights, 0 to 1, so that both fit 8 bits."""


def on_openvino(
    model: LatentModel, precision: PaintPrecision = "auto", cache: Path | None = None,
    calibration: Calibration | None = None,
) -> LatentModel:  # fmt: skip
    """Returns `model` with its LoRAs merged in for good, its UNet and decoder compiled as they are first used.

    `auto` is bf16 where the processor has instructions for it. With `int8` the UNet's convolutions and products are in
    8 bits, scaled by what they meet as `calibration` has it paint, the rest as with `auto`. What is compiled is kept in
    `cache`, by default `~/.cache/fewstep/openvino` or $FEWSTEP_CACHE/openvino, under the hash of weights, shapes,
    precision and version.
    """
    check_openvino(model.device, precision)
    import openvino

    for part in model.parts.values():
        merge_attached(part)
    core = openvino.Core()
    can = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    compiler = _Compiler(core, cache or cache_folder(), "bf16" if can and precision != "fp32" else "f32")
    network_compiler = compiler
    if precision == "int8":
        assert calibration is not None
        network_compiler = _Quantiser(compiler, calibration, model)
    network = model.network.compiled_by(lambda module, weights: _Compiled(module, weights, network_compiler))
    codec = Codec(
        _Autoencoder(model.codec.autoencoder, compiler),
        model.codec.tiny_decoder and _Autoencoder(model.codec.tiny_decoder, compiler),
    )
    return dataclasses.replace(model, network=network, codec=codec)


def check_openvino(device: torch.device, precision: PaintPrecision) -> None:
    """Raises UserError where OpenVINO is not there, or does not compute on that device or in that format."""
    try:
        importlib.import_module("openvino")
    except ImportError as error:
        raise UserError("engine openvino needs OpenVINO: pip install 'fewstep[openvino]'") from error
    if device.type != "cpu":
        raise UserError(f"engine openvino computes on a CPU and device is {device.type}; give --device cpu")
    if precision == "fp16":
        raise UserError("engine openvino computes in fp32 or bf16 on a CPU and precision is fp16; give another")
    if precision == "int8":
        _check_int8()


def cache_folder() -> Path:
    """Returns where compiled networks are kept."""
    return Path(os.environ.get("FEWSTEP_CACHE", Path.home() / ".cache" / "fewstep")) / "openvino"


def _check_int8() -> None:
    """Raises UserError where products of 8 bits are not faster, or nothing is installed that makes them."""
    if find_spec("nncf") is None:
        raise UserError("precision int8 needs NNCF: pip install 'fewstep[int8]'")
    flags = _read_processor_flags()
    if flags is not None and not any("vnni" in each or each in ("asimddp", "i8mm") for each in flags):
        raise UserError(
            "precision int8 needs a processor whose instructions multiply 8-bit numbers (VNNI, on ARM dot products), "
            "and this one has none, so it would be slower; give --precision auto"
        )


def _read_processor_flags() -> set[str] | None:
    """Returns the names of the processor's instruction sets; None where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else None


class _Compiler:
    """Compiles modules for the shapes that they are given."""

    def __init__(self, core: Any, cache: Path, precision: str) -> None:
        self.core, self.cache, self.precision = core, cache, precision

    def describe(self) -> dict[str, str]:
        """Returns what the compiled file depends on beside weights and shapes."""
        return {"precision": self.precision}

    def compile(self, module: nn.Module, given: Sequence[Tensor], weights: str) -> Any:
        """Returns a callable of arrays shaped like `given`, from the cache or compiled now; `weights` is their hash."""
        import openvino

        key = {
            "format": _FORMAT, "weights": weights, **self.describe(), "openvino": openvino.__version__,
            "given": [[str(each.dtype), *each.shape] for each in given], "torch": torch.__version__,
        }  # fmt: skip
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        graph = self.cache / name / "network.xml"
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision, "PERFORMANCE_HINT": "LATENCY", "CACHE_DIR": str(graph.parent),
        }  # fmt: skip
        if not graph.exists():
            print("compiling for OpenVINO, once for this model and shape …", file=sys.stderr, flush=True)
            self._write(module, given, graph)
        return self.core.compile_model(graph, "CPU", settings)

    def _write(self, module: nn.Module, given: Sequence[Tensor], graph: Path) -> None:
        """Writes the file whole or not at all: another process may do the same."""
        import openvino

        converted = self._convert(module, given)
        with replace_folder(graph.parent, keep_existing=True) as draft:
            openvino.save_model(converted, draft / graph.name, compress_to_fp16=self.precision != "f32")

    def _convert(self, module: nn.Module, given: Sequence[Tensor]) -> Any:
        import openvino

        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracing: shapes are constants here, and so meant
            traced = torch.jit.trace(module, tuple(given), strict=False, check_trace=False)
            converted = openvino.convert_model(traced, example_input=tuple(given))
        shapes = {number: openvino.PartialShape(list(each.shape)) for number, each in enumerate(given)}
        converted.reshape(shapes)
        return converted


class _Quantiser(_Compiler):
    """Compiles a network in 8 bits."""

    def __init__(self, compiler: _Compiler, calibration: Calibration, model: LatentModel) -> None:
        super().__init__(compiler.core, compiler.cache, compiler.precision)
        self._calibration, self._model = calibration, model

    def describe(self) -> dict[str, str]:
        return {
            **super().describe(), "quantised": f"int8, {_SMOOTH}, {_WHOLE}", "prompts": self._calibration.sha256,
            "nncf": importlib.metadata.version("nncf"),
        }  # fmt: skip

    def _convert(self, module: nn.Module, given: Sequence[Tensor]) -> Any:
        os.environ.setdefault("NNCF_CI", "1")  # else it sends how it is used to its makers
        nncf: Any = importlib.import_module("nncf")
        nncf.set_log_level(logging.ERROR)
        print("calibrating int8, once for this model and shape …", file=sys.stderr, flush=True)
        samples = [[each.numpy() for each in sample] for sample in self._calibration.record(self._model, given)]
        with contextlib.redirect_stdout(io.StringIO()):  # its bars
            smooth = nncf.AdvancedSmoothQuantParameters(convolution=_SMOOTH, matmul=_SMOOTH)
            return nncf.quantize(
                super()._convert(module, given), nncf.Dataset(Passes(samples, "calibrating int8, measuring")),
                subset_size=len(samples),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(patterns=list(_WHOLE), validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smooth),
            )  # fmt: skip


class _Compiled:
    """A module, compiled for each shape that it meets."""

    def __init__(self, module: nn.Module, hashed: nn.Module, compiler: _Compiler) -> None:
        self._module, self._hashed, self._compiler = module, hashed, compiler
        self._sha256 = ""
        self._by_shape: dict[tuple[Any, ...], Any] = {}

    def __call__(self, *given: Tensor) -> Tensor:
        shape = tuple((each.dtype, each.shape) for each in given)
        if shape not in self._by_shape:
            self._sha256 = self._sha256 or hash_weights(self._hashed)
            self._by_shape[shape] = self._compiler.compile(self._module, given, self._sha256)
        answer = self._by_shape[shape]([np.ascontiguousarray(each.numpy()) for each in given])
        return torch.from_numpy(answer[0].copy())


class _Autoencoder:
    """Decodes compiled, and encodes as before."""

    def __init__(self, vae: Any, compiler: _Compiler) -> None:
        self.config, self.dtype, self.encode, self.parameters = vae.config, torch.float32, vae.encode, vae.parameters
        self._compiled = _Compiled(_Decoder(vae), vae, compiler)

    def decode(self, z: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self._compiled(z))


class _Decoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self._vae = vae

    def forward(self, z: Tensor) -> Tensor:
        output: Tensor = self._vae.decode(z, return_dict=False)[0]
        return output
