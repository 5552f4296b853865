"""Two averages: the one that answers at the earlier time, and the one that is exported."""

import dataclasses

import pytest
from safetensors.torch import load_file

from fewstep.commands.distill import load_teacher, make_path, make_student
from fewstep.recipes.distill import Distill
from fewstep.runs.consistency import make_task
from fewstep.runs.material import open_material
from fewstep.train.loop import fit


@pytest.fixture(scope="module")
def latents(random_teacher):
    config = Distill(teacher=str(random_teacher), pictures=8, device="cpu")
    return open_material(config, load_teacher(config)).latents()


@pytest.mark.parametrize("rank", [0, 2])
def test_the_targets_average_and_the_exported_one_are_two_settings(random_teacher, latents, tmp_path, rank):
    """What learns is what one average of the target's decay makes of it, whatever is exported, cut or not."""

    def learn(name, *ends, **averages):
        config = Distill(
            teacher=str(random_teacher), batch_size=2, lr=1e-2, device="cpu", log_every=4, checkpoint_every=2,
            guidance_range=(5.0, 5.0), lora_rank=rank, **averages,
        )  # fmt: skip
        for steps in ends:
            model = load_teacher(config)
            student = make_student(config, model)
            task = make_task(config, student, make_path(config, student, model), model, latents)
            fit(task, dataclasses.replace(config, steps=steps), tmp_path / name, "")
        with student.exported() as exported:
            weights = exported.network.backbone.state_dict()
        held = load_file(tmp_path / name / "checkpoints/step-0000004/state.safetensors")
        return held, {value.double().sum().item() for value in weights.values()}

    one, exported = learn("one", 4, ema_decay=0.9)
    two, otherwise = learn("two", 2, 4, ema_decay=0.5, target_decay=0.9)
    assert {name.partition(".")[0] for name in two} == {"student", "averaged", "target", "optimizer", "losses"}
    for name, value in one.items():
        average = name.replace("averaged", "target")
        assert two[average].equal(value)
    assert any(not two[name.replace("averaged", "target")].equal(two[name]) for name in two if "averaged" in name)
    assert exported != otherwise


def test_there_are_as_many_averages_as_decays(random_teacher):
    def make(**averages):
        config = Distill(teacher=str(random_teacher), device="cpu", **averages)
        student = make_student(config, load_teacher(config))
        with student.exported() as exported:
            return student.learner, exported.network

    learner, exported = make(ema_decay=0.9, target_decay=0.9)
    assert learner.target is learner.averaged is exported
    assert learner.target_average is None
    learner, exported = make(ema_decay=0.0, target_decay=0.9)
    assert learner.target is learner.target_average
    assert learner.averaged is None
    assert exported is learner.weights
