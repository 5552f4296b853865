"""`generate --engine openvino` and `--tiny-decoder`, as the command."""

import numpy as np
from PIL import Image

from warm_command import Warm


def paint(out, *more):
    given = ("generate", "--prompt", "a pink heart", "--seed", 3, "--out", out, *more)
    done = Warm(given, env={"FEWSTEP_CACHE": str(out / "cache")}).wait()
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("*.png")
    with Image.open(file) as image:
        return np.asarray(image).astype(int), image.info["parameters"], done.stderr


def test_what_computes_is_chosen_and_recorded(tmp_path, tiny_decoder):
    plain, text, _ = paint(tmp_path / "plain")
    assert "Engine" not in text
    assert "Tiny decoder" not in text
    compiled, text, said = paint(tmp_path / "compiled", "--engine", "openvino")
    assert "Engine: openvino" in text
    assert said.count("compiling for OpenVINO") == 2
    assert len(list((tmp_path / "compiled" / "cache" / "openvino").glob("*/network.xml"))) == 2
    assert np.abs(compiled - plain).mean() < 4
    tiny, text, _ = paint(tmp_path / "tiny", "--tiny-decoder", tiny_decoder)
    assert f"Tiny decoder: {tiny_decoder}" in text
    assert np.abs(tiny - plain).mean() > 4


def test_what_is_no_decoder_or_no_processor_is_refused(fewstep_command, tmp_path):
    (tmp_path / "tiny.safetensors").write_bytes(b"none")
    for more, message in (
        (("--tiny-decoder", tmp_path / "tiny.safetensors"), "is damaged or not a safetensors file"),
        (("--engine", "onnx"), "onnx"),
    ):
        done = fewstep_command("generate", "--prompt", "a pink heart", "--out", tmp_path, *more)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
