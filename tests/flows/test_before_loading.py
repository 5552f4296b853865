"""What a family has no place for is refused by a model's small files alone: not a weight is read for it."""

import shutil

import pytest

import fewstep
from fewstep.commands.bench_generate import BenchGenerate, bench_generate
from fewstep.commands.distill import distill
from fewstep.commands.finetune import finetune
from fewstep.commands.generate import Generate, generate
from fewstep.commands.serve import Serve, make_service
from fewstep.errors import UserError
from fewstep.models.engines import openvino
from fewstep.models.families import find_family
from fewstep.recipes.distill import Distill
from fewstep.recipes.finetune import Finetune
from flow_miniatures import TRANSFORMERS
from flow_runs import make_run

JUNK = "damaged or not a safetensors file"


def spoil(folder):
    """Puts junk in the place of weights, which are links."""
    for file in folder.rglob("*.safetensors"):
        file.unlink()
        file.write_bytes(b"junk")
    return folder


@pytest.fixture(params=TRANSFORMERS)
def spoilt(request, copy_flow):
    """A family and its miniature, whose weights are none."""
    return find_family(request.param), spoil(copy_flow(request.param))


def list_painters(folder):
    """Lists what paints with a model, to be given options."""
    return (
        lambda **more: generate(Generate(model=str(folder), prompt=("a",), device="cpu", **more)),
        lambda **more: make_service(Serve(model=str(folder), device="cpu", **more)),
        lambda **more: fewstep.load(folder, "cpu", **more),
    )


def test_an_engine_and_a_tiny_decoder(spoilt, tiny_decoder):
    family, folder = spoilt
    alone = f"--engine torch alone computes a {family.transformer_class.__name__}; leave --engine out"
    known = family.name in ("sd3", "flux", "zimage", "pixart")
    for paint in list_painters(folder):
        with pytest.raises(UserError, match=alone):
            paint(engine="openvino")
        with pytest.raises(UserError, match=JUNK if known else "no tiny decoder knows"):
            paint(tiny_decoder=str(tiny_decoder))
    with pytest.raises(UserError, match=alone):
        bench_generate(BenchGenerate(model=str(folder), device="cpu", engines=("torch", "openvino")))


def test_what_a_student_has_no_place_for(spoilt, flow_pictures, tmp_path):
    family, folder = spoilt
    given = {"data": str(flow_pictures), "out": tmp_path / "run", "device": "cpu"}
    single = {"guidance_range": (4.0, 4.0), "guidance_scale": 4.0}
    whole = {"guided_from": 300, **single} if family.guided_inside else {"guidance_range": (2.0, 9.0)}
    said = "guided_from is 300 and" if family.guided_inside else "has no input for guidance and guidance_range is 2 to"
    for changes, message in (
        (whole, said), ({"family": "sdxl", **single}, f"is of {family.name} "), ({"guided_from": 0, **single}, JUNK),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            distill(Distill(teacher=str(folder), **given, **changes))
    if not family.guided_inside:
        with pytest.raises(UserError, match=said):
            finetune(Finetune(model=str(folder), **given, guidance_range=(2.0, 9.0)))


def test_a_run_that_has_not_ended(make_flow, copy_flow, flow_pictures, tmp_path):
    run = make_run(make_flow("sd3"), flow_pictures, "small-lora").folder
    going = shutil.copytree(run, tmp_path / "going", ignore=shutil.ignore_patterns("model"))
    settings = (going / "config.yaml").read_text()
    spoilt = spoil(copy_flow("sd3", "spoilt"))
    (going / "config.yaml").write_text(settings.replace(str(make_flow("sd3")), str(spoilt)))
    with pytest.raises(UserError, match="torch alone computes a SD3Transformer2DModel"):
        fewstep.load(going, "cpu", engine="openvino")
    with pytest.raises(UserError, match=JUNK):
        fewstep.load(going, "cpu")


def test_a_student_that_is_to_be_a_teacher_or_to_go_on_by_another_method(make_flow, flow_pictures, tmp_path):
    made = make_run(make_flow("sd3"), flow_pictures, "small-any-step").model
    student = spoil(shutil.copytree(made, tmp_path / "student"))
    guided = {"guidance_range": (4.0, 4.0), "guidance_scale": 4.0}
    given = {"data": str(flow_pictures), "out": tmp_path / "run", "device": "cpu", **guided}
    with pytest.raises(UserError, match="is already a few-step model; give the teacher"):
        distill(Distill(teacher=str(student), **given))
    with pytest.raises(UserError, match="was made by any-step and cannot go on by lcm"):
        finetune(Finetune(model=str(student), **given))


def test_what_no_model_has(copy_flow, flow_pictures, monkeypatch, tmp_path):
    folder = spoil(copy_flow("sd3"))
    *commands, python = list_painters(folder)
    for paint in (*commands, python):
        with pytest.raises(UserError, match="sampler is 'none'"):
            paint(sampler="none")
    monkeypatch.setenv("CXX", "no-such-compiler")
    train = {"data": str(flow_pictures), "out": tmp_path, "guidance_range": (4.0, 4.0), "guidance_scale": 4.0}
    commands.append(lambda **more: distill(Distill(teacher=str(folder), device="cpu", **train, **more)))
    for act in commands:
        with pytest.raises(UserError, match="there is no no-such-compiler"):
            act(compile="blocks")


def test_8_bits_without_instructions_for_them(random_teacher, monkeypatch, tmp_path):
    monkeypatch.setattr(openvino, "find_spec", lambda _: True)
    monkeypatch.setattr(openvino, "_read_processor_flags", lambda: {"avx2"})
    folder = spoil(shutil.copytree(random_teacher, tmp_path / "model"))
    for paint in list_painters(folder):
        with pytest.raises(UserError, match="VNNI"):
            paint(engine="openvino", precision="int8")
        with pytest.raises(UserError, match="fp32 or bf16 on a CPU and precision is fp16"):
            paint(engine="openvino", precision="fp16")
