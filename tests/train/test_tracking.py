"""What trackers hold of a run, by their own readers, in their modes that ask no network."""

import dataclasses
import importlib.util
import json
import os
import re
import struct
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fewstep.cli import main, parse_training
from fewstep.commands.distill import distill
from fewstep.commands.finetune import finetune
from fewstep.commands.train_lora import train_lora
from fewstep.errors import UserError
from fewstep.recipes.distill import Distill
from fewstep.recipes.finetune import Finetune
from fewstep.recipes.train_lora import TrainLora
from fewstep.train.config import LoopConfig, fingerprint
from fewstep.train.loop import fit
from fewstep.train.tracking import Tracking
from regression import Regression

BASE = LoopConfig(steps=12, batch_size=8, lr=0.01, log_every=5, checkpoint_every=4)
SCORES = {"fd": 2.5, "fd_low": 2.0, "guidance_scale": 5.0}


class KilledError(Exception):
    pass


def observe(folder, *, dies_at=0):
    """Does as a run's observers: samples and scores, whole and once, after updates 4, 8 and 12."""

    def act(step):
        if step % 4 == 0 and not (folder / "samples" / f"step-{step:07d}.png").exists():
            (folder / "samples").mkdir(exist_ok=True)
            Image.new("RGB", (8, 6), (step, 0, 0)).save(folder / "samples" / f"step-{step:07d}.png")
            with (folder / "evaluations.jsonl").open("a") as file:
                file.writelines(json.dumps({"step": step, "steps": n, **SCORES}) + "\n" for n in (1, 4))
        if step == dies_at:
            raise KilledError

    return act


def pass_a_second():
    """TensorBoard reads its files in the order of their names, which two of one process and second need not have."""
    time.sleep(1)


def run_in_two_lives(folder, *names):
    """Trains to update 11, of which the last checkpoint has 8, and then to the end; returns the lines of metrics."""
    config = dataclasses.replace(BASE, report_to=names)
    with pytest.raises(KilledError):
        fit(Regression(ema=False), config, folder, "test", observe(folder, dies_at=11))
    if "tensorboard" in names:
        pass_a_second()
    fit(Regression(ema=False), config, folder, "test", observe(folder))
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def test_tensorboard_has_all_of_a_run_once_however_often_it_was_killed(tmp_path):
    lines = run_in_two_lives(tmp_path, "tensorboard")
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "lr"):
        assert [(event.step, event.value) for event in board.Scalars(name)] == [
            (line["step"], pytest.approx(line[name])) for line in lines
        ]
    for name in ("fd/1", "fd/4"):
        assert [(event.step, event.value) for event in board.Scalars(name)] == [(4, 2.5), (8, 2.5), (12, 2.5)]
    assert {"fd_low/1", "guidance_scale/1"} & set(board.Tags()["scalars"]) == set()
    assert [(event.step, event.width, event.height) for event in board.Images("samples")] == [
        (4, 8, 6), (8, 8, 6), (12, 8, 6),
    ]  # fmt: skip
    (settings,) = board.Tensors("configuration/text_summary")
    assert "    lr: 0.01\n" in settings.tensor_proto.string_val[0].decode()


def test_a_line_of_the_checkpoints_own_update_is_shown_once(tmp_path):
    config = dataclasses.replace(BASE, log_every=4, report_to=("tensorboard",))
    with pytest.raises(KilledError):
        fit(Regression(ema=False), config, tmp_path, "test", observe(tmp_path, dies_at=10))
    pass_a_second()
    fit(Regression(ema=False), config, tmp_path, "test", observe(tmp_path))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [4, 8, 12]


def test_mlflow_has_a_run_in_one_piece(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    lines = run_in_two_lives(tmp_path, "mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("fewstep").experiment_id])
    assert run.info.run_name == tmp_path.name
    assert run.info.status == "FINISHED"
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"mlflow": run.info.run_id}
    assert run.data.params["lr"] == "0.01"
    told = {each.step: each.value for each in client.get_metric_history(run.info.run_id, "loss")}
    assert told == {line["step"]: line["loss"] for line in lines}
    assert {each.step for each in client.get_metric_history(run.info.run_id, "fd/4")} == {4, 8, 12}
    pictures = [each.path for each in client.list_artifacts(run.info.run_id, "samples")]
    assert pictures == [f"samples/step-{step:07d}.png" for step in (4, 8, 12)]


def test_mlflow_of_a_deleted_store_begins_anew_and_names_how_a_run_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    from mlflow.tracking import MlflowClient

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tracking.json").write_text(json.dumps({"mlflow": "0" * 32}))
    config = dataclasses.replace(BASE, report_to=("mlflow",))
    with pytest.raises(KilledError):
        fit(Regression(ema=False), config, tmp_path / "run", "test", observe(tmp_path / "run", dies_at=11))
    client = MlflowClient(tracking_uri=(tmp_path / "store").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "KILLED"
    assert not (tmp_path / "run" / "mlruns").exists()


def read_offline(file):
    """Yields the records of a file of wandb: a header of 7 bytes, and LevelDB's blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        if place + 7 + length > len(content):  # still being written
            return
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def read_runs(folder):
    """Returns values by name and update, the updates of samples, and settings, of both lives of a run of wandb."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    (identity,) = json.loads((folder / "tracking.json").read_text()).values()
    told, samples, settings = {}, [], {}
    for file in files:
        for record in read_offline(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                assert (record.run.run_id, record.run.project) == (identity, "fewstep")
                settings |= {each.key: json.loads(each.value_json) for each in record.run.config.update}
            elif kind == "history":
                row = {each.key or each.nested_key[0]: each.value_json for each in record.history.item}
                step = json.loads(row["update"])
                told |= {(name, step): json.loads(row[name]) for name in row.keys() & {"loss", "fd/4"}}
                samples += [step] if any(name.startswith("samples") for name in row) else []
    return told, samples, settings


def test_wandb_offline_has_both_lives_in_one_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    lines = run_in_two_lives(tmp_path, "wandb")
    end = time.monotonic() + 20  # its own process writes the last records soon after
    while ("loss", lines[-1]["step"]) not in (found := read_runs(tmp_path))[0] and time.monotonic() < end:
        time.sleep(0.2)
    told, samples, settings = found
    assert settings["lr"] == 0.01
    assert {step: value for (name, step), value in told.items() if name == "loss"} == {
        line["step"]: line["loss"] for line in lines
    }
    assert {step for name, step in told if name == "fd/4"} == set(samples) == {4, 8, 12}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
@pytest.mark.parametrize("command", ["distill", "finetune", "train-lora"])
def test_a_missing_package_is_refused_before_anything_is_loaded(name, command, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    kind, run = {
        "distill": (Distill, distill), "finetune": (Finetune, finetune), "train-lora": (TrainLora, train_lora),
    }[command]  # fmt: skip
    config = kind(out=tmp_path / "run", report_to=(name,), data="scenes")
    with pytest.raises(UserError, match=rf"--report-to {name} needs the package {name}: pip install 'fewstep\[{name}"):
        run(config)
    assert not (tmp_path / "run").exists()


def test_without_a_value_nobody_is_told(tmp_path):
    assert parse_training("distill", ["--report-to"]).report_to == ()
    assert parse_training("train-lora", ["--report-to", "wandb", "mlflow"]).report_to == ("wandb", "mlflow")
    fit(Regression(ema=False), dataclasses.replace(BASE, report_to=()), tmp_path, "test")
    assert not (tmp_path / "tensorboard").exists()


def test_the_command_of_the_documents_is_taken():
    page = (Path(__file__).parents[2] / "docs/training.md").read_text()
    (command,) = re.findall(r"^fewstep distill (.*--report-to.*)$", page, re.MULTILINE)
    assert parse_training("distill", command.split()).report_to == ("wandb", "mlflow", "tensorboard")


def test_another_tracker_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        main(["distill", "--report-to", "trackio"])
    assert "trackio" in capsys.readouterr().err


@pytest.mark.parametrize("when", ["record", "show", "close"])
def test_a_tracker_that_fails_is_said_once_and_the_training_is_the_same(tmp_path, when, monkeypatch, capsys):
    from fewstep.train.trackers.tensorboard import Board

    plain, told = Regression(ema=False), Regression(ema=False)
    fit(plain, dataclasses.replace(BASE, report_to=()), tmp_path / "a", "test")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Board, when, fail)
    fit(told, dataclasses.replace(BASE, report_to=("tensorboard",)), tmp_path / "b", "test", observe(tmp_path / "b"))
    assert all(torch.equal(a, b) for a, b in zip(plain.student.parameters(), told.student.parameters(), strict=True))
    said = capsys.readouterr().err
    assert said.count("tensorboard is told nothing more") == 1
    assert "No space left on device" in said


def test_a_server_that_is_not_there_costs_seconds_and_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    begun = time.perf_counter()
    fit(Regression(ema=False), dataclasses.replace(BASE, report_to=("mlflow",)), tmp_path, "test")
    assert time.perf_counter() - begun < 10
    assert capsys.readouterr().err.count("mlflow is told nothing more") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_one_tracker_that_fails_keeps_no_other_from_being_told(tmp_path, monkeypatch):
    from fewstep.train.trackers.mlflow import MlflowRun

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(MlflowRun, "record", lambda *_: 1 / 0)
    fit(Regression(ema=False), dataclasses.replace(BASE, report_to=("mlflow", "tensorboard")), tmp_path, "test")
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [5, 10, 12]


def test_who_is_told_is_no_part_of_what_is_trained():
    assert fingerprint(BASE) == fingerprint(dataclasses.replace(BASE, report_to=("wandb",)))


def test_what_a_damaged_folder_holds_ends_nothing(tmp_path):
    from fewstep.train.tracking import TrackedRun

    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step-0000004.png").write_bytes(b"no picture")
    (tmp_path / "samples" / "step-x.png").write_bytes(b"")
    (tmp_path / "evaluations.jsonl").write_text('{"step": 3}\n[]\n{"step": 1e99, "steps": 1}\n{"step": 4, "steps": 1')
    (tmp_path / "tracking.json").write_text("[]")
    said = []
    tracking = Tracking(("tensorboard",), TrackedRun(tmp_path, {}, 0), said.append)
    tracking.record(5, {"loss": 1.0})
    tracking.close(done=True)
    assert len(said) == 1
    assert "UnidentifiedImageError" in said[0]


def test_a_distillation_tells_its_settings_samples_and_losses(random_teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    config = Distill(
        teacher=str(random_teacher), steps=2, batch_size=4, pictures=8, sample_every=2, out=tmp_path / "run",
        device="cpu", report_to=("wandb", "mlflow", "tensorboard"), log_every=1,
    )  # fmt: skip
    distill(config)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs([client.get_experiment_by_name("fewstep").experiment_id])
    assert run.data.params["teacher"] == str(random_teacher)
    assert run.data.params["guidance_range"] == "3.0 9.0"
    assert set(run.data.metrics) == {"loss", "lr"}
    assert [each.path for each in client.list_artifacts(run.info.run_id, "samples")] == ["samples/step-0000002.png"]
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in board.Images("samples")] == [2]
