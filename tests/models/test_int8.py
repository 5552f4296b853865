"""`--precision int8`: 8 bits in OpenVINO, calibrated once on some prompts, and refused where it is of no use."""

import importlib.util
import itertools
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from fewstep import assets
from fewstep.errors import UserError
from fewstep.models.engines import calibration
from fewstep.models.engines import openvino as engine
from fewstep.models.engines.calibration import PHOTOGRAPHS, SCENES, Calibration, Passes, read_prompts
from fewstep.models.loading import load_latent_model
from fewstep.models.options import PainterOptions
from fewstep.models.pipeline_loading import load_pipeline, make_calibration

CPU = torch.device("cpu")
PROMPTS = ["a small red star above a blue ring on a white background", "a pink heart"]


def levels(pipeline, **settings):
    return np.stack([np.asarray(image).astype(int) for image in pipeline(PROMPTS, steps=2, seed=3, **settings)])


def test_every_step_of_every_prompt_is_recorded_in_batches_of_its_size():
    model = load_latent_model(assets.SCENES_LCM, CPU)
    bundled = make_calibration(model)
    assert bundled.prompts == SCENES
    given = [torch.zeros(3, 12, 8, 8), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 32, 64), torch.zeros(3, 256)]
    samples = bundled.record(model, given)
    assert len(samples) == 3 * 4  # of eight prompts, three at a time, in four steps
    assert all([each.shape for each in sample] == [each.shape for each in given] for sample in samples)
    assert len({int(sample[1][0]) for sample in samples}) == 4
    alike = [torch.equal(samples[8][2][2], sample[2][0]) for sample in samples[::4]]
    assert alike == [True, False, False]  # the last batch is filled up with the first prompt
    wide = bundled.record(model, [torch.zeros(1, 12, 8, 16), *(each[:1] for each in given[1:])])
    assert {sample[0].shape for sample in wide} == {(1, 12, 8, 16)}


@pytest.mark.parametrize("terminal", [True, False])
def test_calibrating_shows_how_far_it_is(terminal, monkeypatch, capsys):
    """A bar on a terminal, and elsewhere a line now and then."""
    monkeypatch.setattr(calibration, "Console", lambda **more: Console(**more, force_terminal=terminal, width=100))
    monkeypatch.setattr(calibration, "_QUIET_SECONDS", 0)
    passes = Passes([1, 2, 3], "calibrating int8, measuring")
    assert [*passes] == [1, 2, 3]
    assert [*itertools.islice(passes, 3)] == [1, 2, 3]  # as NNCF takes them
    assert (len(passes), passes[1]) == (3, 2)
    said = capsys.readouterr()
    assert said.out == ""
    if terminal:
        assert re.search(r"measuring 1 .*100%.*measuring 2 .*100%", said.err, re.DOTALL)
    else:
        assert said.err.splitlines() == [
            f"calibrating int8, measuring {number} {done} of 3" for number in (1, 2) for done in range(3)
        ]
    make_calibration(model := load_latent_model(assets.SCENES_LCM, CPU)).record(
        model,
        [torch.zeros(4, 12, 8, 8), torch.zeros(4, dtype=torch.int64), torch.zeros(4, 32, 64), torch.zeros(4, 256)],
    )
    assert ("calibrating int8, painting" + " 1 of 2" * (not terminal)) in capsys.readouterr().err


def test_prompts_are_ones_own_or_those_that_the_model_knows(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n\n  a dog  \n")
    assert read_prompts(str(tmp_path / "prompts.txt")) == ["a cat", "a dog"]
    (tmp_path / "empty.txt").write_text("\n")
    for name in ("empty.txt", "none.txt"):
        with pytest.raises(UserError, match=r"^calibration_prompts is .*txt"):
            read_prompts(str(tmp_path / name))
    (tmp_path / "large.txt").write_text("a" * (2 << 20))
    with pytest.raises(UserError, match="of up to 1 MiB"):
        read_prompts(str(tmp_path / "large.txt"))
    (tmp_path / "many.txt").write_text("a cat\n" * 65)
    with pytest.raises(UserError, match=r"with 65 prompts; give .* with 1 to 64"):
        read_prompts(str(tmp_path / "many.txt"))
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts("/dev/zero")  # which has no end
    first, second = (Calibration(each, lambda *_: None).sha256 for each in (SCENES, PHOTOGRAPHS))
    assert first != second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision int8 is OpenVINO's; give --engine openvino"),
        ({"calibration_prompts": "a.txt"}, "calibration_prompts are for --engine openvino --precision int8 alone"),
    ],
)
def test_what_has_no_use_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        PainterOptions(**options).check_engine()
    with pytest.raises(UserError, match=message):
        load_pipeline(assets.SCENES_LCM, "cpu", **options)


def test_a_processor_without_vnni_is_refused_and_nncf_asked_for(monkeypatch):
    found = importlib.util.find_spec
    for flags, refused in (({"avx2"}, True), ({"avx512_vnni"}, False), ({"asimddp"}, False), (None, False)):
        monkeypatch.setattr(engine, "find_spec", lambda name: name == "nncf" or found(name))
        monkeypatch.setattr(engine, "_read_processor_flags", lambda flags=flags: flags)
        if refused:
            with pytest.raises(UserError, match=r"needs a processor .*\(VNNI.*--precision auto"):
                engine._check_int8()
        else:
            engine._check_int8()
    monkeypatch.setattr(engine, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'fewstep\[int8\]'"):
        load_pipeline(assets.SCENES_LCM, engine="openvino", precision="int8")


@pytest.mark.slow
def test_pictures_in_8_bits_are_nearly_those_in_32_and_it_calibrates_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    wanted = levels(load_pipeline(assets.SCENES_LCM, "cpu"))
    for expected in (1, 0):
        pipeline = load_pipeline(assets.SCENES_LCM, engine="openvino", precision="int8")
        found = levels(pipeline)
        said = capfd.readouterr()
        assert (said.err.count("calibrating int8, once"), said.out) == (expected, "")
        assert 0 < np.abs(found - wanted).mean() < 6
    assert pipeline.precision == "int8"
    graph = max(tmp_path.glob("openvino/*/network.xml"), key=lambda file: file.stat().st_size)
    assert graph.read_text().count("FakeQuantize") > 50
    (tmp_path / "prompts.txt").write_text("a pink heart\n")
    other = load_pipeline(
        assets.SCENES_LCM, engine="openvino", precision="int8", calibration_prompts=str(tmp_path / "prompts.txt")
    )
    assert np.abs(levels(other) - found).max() > 0
    assert capfd.readouterr().err.count("calibrating int8, once") == 1
