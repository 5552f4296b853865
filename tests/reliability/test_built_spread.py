"""A network that is spread is built where it ends: each process reads its rows, and holds no more than them."""

import contextlib
import json
import shutil
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from fewstep.commands.distill import distill
from fewstep.commands.train_lora import train_lora
from fewstep.data.worlds.scenes import Scenes
from fewstep.errors import UserError
from fewstep.files import replace_folder
from fewstep.method.named import METHODS
from fewstep.models import scenes_model, spreading
from fewstep.models.export import save_pipeline
from fewstep.models.loading import load_latent_model
from fewstep.models.network import hash_weights
from fewstep.models.options import Overrides
from fewstep.models.stock_scheduler import make_scheduler
from fewstep.parallel.world import current_world, gather_tensor, is_spread
from fewstep.recipes.distill import Distill
from fewstep.recipes.train_lora import TrainLora
from fewstep.runs.unfinished import load_painter
from flow_miniatures import TRANSFORMERS
from miniatures import save_miniature
from peak import Peak
from ranks import run_ranks
from single_files import save_single_file

CPU = torch.device("cpu")


class Counted:
    """An open safetensors file that counts the bytes that are taken out of it."""

    def __init__(self, file, taken):
        self._file, self._taken = file, taken

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def keys(self):
        return self._file.keys()

    def get_slice(self, name):
        return CountedSlice(self._file.get_slice(name), self._taken)

    def get_tensor(self, name):
        value = self._file.get_tensor(name)
        self._taken.append(value.nbytes)
        return value


class CountedSlice:
    def __init__(self, rows, taken):
        self._rows, self._taken = rows, taken

    def get_shape(self):
        return self._rows.get_shape()

    def __getitem__(self, where):
        value = self._rows[where]
        self._taken.append(value.nbytes)
        return value


def count_reads(monkeypatch):
    taken, plain = [], spreading.open_safetensors
    monkeypatch.setattr(spreading, "open_safetensors", lambda path: Counted(plain(path), taken))
    return taken


def save_wide(tokenizer, folder, widths, **settings):
    save_miniature("sd15", tokenizer, folder)
    config = {**UNet2DConditionModel.load_config(folder / "unet"), "block_out_channels": widths, "layers_per_block": 2}
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet", **settings)
    return folder


def whole_state(network):
    state = {name: gather_tensor(value.detach()) for name, value in network.backbone.state_dict().items()}
    return state if current_world().main or not is_spread(network) else None


def check_same(spread, whole):
    state = whole_state(spread)
    if state is not None:
        wanted = whole.backbone.state_dict()
        assert state.keys() == wanted.keys()
        assert all(value.dtype == wanted[name].dtype for name, value in state.items())
        assert [name for name, value in state.items() if not torch.equal(value, wanted[name])] == []
        beside = dict(spread.backbone.named_buffers())
        for name, value in whole.backbone.named_buffers():
            assert torch.equal(beside[name], value), name


def build(folders):
    with pytest.MonkeyPatch.context() as patched:
        for folder in folders:
            whole = load_latent_model(folder, CPU)
            taken = count_reads(patched)
            model = spreading.load_spread(folder, CPU)
            patched.undo()
            assert is_spread(model.network)
            assert not any(value.requires_grad for value in model.network.parameters())
            assert len(taken) > 10
            assert not model.network.backbone.training
            check_same(model.network, whole.network)
            assert hash_weights(model.network.backbone) == hash_weights(whole.network.backbone)
            for told in (False, True):
                student = model.network.to_student(8, told_end=told)
                again = whole.network.to_student(8, told_end=told)
                assert all(value.requires_grad for value in student.parameters())
                assert student.takes_end is told
                assert student.backbone.training is again.backbone.training
                check_same(student, again)
                assert dict(student.backbone.config) == dict(again.backbone.config)
                check_same(spreading.copy_spread(student), again)
            model.network.backbone.to("meta")
            assert all(value.to_local().is_meta for value in model.network.parameters())


@pytest.fixture(scope="module")
def tokenizer():
    return scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))


def test_spread_networks_are_bit_for_bit_what_whole_ones_are(tokenizer, tmp_path):
    folders = [save_miniature("sdxl", tokenizer, tmp_path / "sdxl")]
    folders += [TRANSFORMERS[name](tokenizer, tmp_path / name) for name in ("sd3", "qwen")]
    run_ranks(3, build, folders)


def build_in_turn(source, base_config):
    times, plain = [], spreading._load_parts

    def load_parts(*given):
        begun = time.monotonic()
        model = plain(*given)
        times.extend((begun, time.monotonic()))
        return model

    whole = load_latent_model(source, CPU, base_config)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(spreading, "_load_parts", load_parts)
        model = spreading.load_spread(source, CPU, base_config)
    assert is_spread(model.network)
    assert not any(value.requires_grad for value in model.network.parameters())
    held = sum(value.to_local().nbytes for value in model.network.parameters())
    assert held < 0.6 * sum(value.nbytes for value in whole.network.parameters())
    check_same(model.network, whole.network)
    assert model.network.takes_end == whole.network.takes_end
    assert dict(model.network.backbone.config) == dict(whole.network.backbone.config)
    check_same(spreading.copy_spread(model.network), whole.network)
    turns = sorted(current_world().gather(times))
    assert all(end <= begin for (_, end), (begin, _) in pairwise(turns))


def test_what_is_not_read_in_rows_is_read_by_one_process_at_a_time(tokenizer, tmp_path):
    """A single file, and a transformer that is told an end, which its class in diffusers has no place for."""
    folder = save_miniature("sd15", tokenizer, tmp_path / "sd15")
    run_ranks(2, build_in_turn, save_single_file("sd15", folder, tmp_path / "one.safetensors"), str(folder))
    teacher = load_latent_model(TRANSFORMERS["sd3"](tokenizer, tmp_path / "sd3"), CPU)
    told = teacher.network.to_student(8, told_end=True)
    with replace_folder(tmp_path / "told") as draft:
        save_pipeline(draft, teacher, told, make_scheduler(teacher, METHODS["any-step"], 50), few_step=True)
    run_ranks(2, build_in_turn, tmp_path / "told", "")


def refuse_to_build(source):
    with pytest.raises(UserError, match="is neither a folder nor a file"):
        spreading.load_spread(source, CPU)
    current_world().wait()


def test_what_cannot_be_loaded_is_refused_in_every_process(tmp_path):
    run_ranks(2, refuse_to_build, tmp_path / "not-there")


def refuse_what_is_broken(source, network, said):
    with pytest.raises(UserError, match=said):
        spreading.load_spread(source, CPU, overrides=Overrides(unet=network))
    current_world().wait()


@pytest.mark.parametrize(("part", "row"), [("unet", 0), ("unet", -1), ("vae", 0)])
def test_weights_that_are_no_numbers_are_named_in_every_process(tokenizer, tmp_path, part, row):
    """Whichever of them holds the row of the network in which they are."""
    plain, broken = (save_miniature("sd15", tokenizer, tmp_path / name) for name in ("plain", "broken"))
    (file,) = (broken / part).glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("conv_in.weight"))
    tensors[name][row] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    said = rf"broken is broken: NaN or infinity in {part}\.\S*conv_in\.weight; fetch the model"
    run_ranks(2, refuse_what_is_broken, broken, "", said)
    if part == "unet":
        run_ranks(2, refuse_what_is_broken, plain, str(broken), said)


def measure(folder, out):
    """Writes the bytes that this process reads of the network, and the most that it holds at a time meanwhile."""
    network_bytes = sum(
        value.nbytes for path in (folder / "unet").glob("*.safetensors") for value in load_file(path).values()
    )
    copies = []
    import torch.distributed.fsdp  # noqa: F401  # beforehand

    with pytest.MonkeyPatch.context() as patched:
        taken = count_reads(patched)
        current_world().wait()
        with Peak() as peak:
            model = spreading.load_spread(folder, CPU)
            copies.append(model.network.to_student(8))
            copies.append(spreading.copy_spread(copies[0]))
    held = sum(value.to_local().nbytes for value in model.network.parameters())
    largest = max(value.numel() * 4 for value in model.network.parameters())
    said = current_world().gather(
        {"read": sum(taken), "most": peak.most, "held": held, "largest": largest, "network": network_bytes}
    )
    if current_world().main:
        out.write_text(json.dumps(said))


SHORT = {
    "resolution": 16, "batch_size": 4, "steps": 2, "log_every": 1, "device": "cpu", "ema_decay": 0.5,
    "sample_every": 0,
}  # fmt: skip


TOLD = {"method": "any-step", "states": "data"}


def run_distill(teacher, photos, folder, distribution, changes):
    given = {
        "guidance_range": (3.0, 3.0),
        "guidance_scale": 3.0,
        "method": "any-step",
        "states": "data",
        **SHORT,
        **changes,
    }
    distill(Distill(teacher=str(teacher), data=str(photos), out=folder, distribution=distribution, **given))


def run_style(model, photos, folder, distribution):
    given = {name: value for name, value in SHORT.items() if name != "sample_every"}
    train_lora(
        TrainLora(model=str(model), data=str(photos), out=folder, lora_rank=2, distribution=distribution, **given)
    )


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]


def test_a_style_on_a_spread_base_learns_what_it_does_on_a_whole_one(tokenizer, photos, tmp_path):
    model = save_miniature("sd15", tokenizer, tmp_path / "model")
    run_ranks(1, run_style, model, photos, tmp_path / "1", "ddp")
    run_ranks(2, run_style, model, photos, tmp_path / "2", "fsdp")
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)
    assert (tmp_path / "2/model/pytorch_lora_weights.safetensors").is_file()
    with pytest.raises(UserError, match="nf4 is held whole in every process; give --distribution ddp"):
        TrainLora(frozen_precision="nf4", distribution="fsdp")


def test_a_spread_run_is_tried_out(tiny, photos, tmp_path):
    """All its processes save into one folder, which goes away."""
    run_ranks(2, run_distill, tiny, photos, tmp_path / "run", "fsdp", {"dry_run": True, "steps": 9})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("changes", [{"sample_every": 2}, {"lora_rank": 2}], ids=str)
def test_what_is_told_an_end_is_built_spread_too(tokenizer, photos, tmp_path, changes):
    """Of a transformer, whose input for the end its own class has not; what a spread run exports is loaded."""
    teacher = TRANSFORMERS["sd3"](tokenizer, tmp_path / "teacher")
    run_ranks(1, run_distill, teacher, photos, tmp_path / "1", "ddp", changes)
    run_ranks(2, run_distill, teacher, photos, tmp_path / "2", "fsdp", changes)
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)
    if not changes.get("lora_rank"):
        models = [load_latent_model(tmp_path / f"{size}/model", CPU) for size in (1, 2)]
        one, two = (model.network.state_dict() for model in models)
        assert one.keys() == two.keys()
        assert any(".end." in name for name in two)
        painting = load_painter(tmp_path / "2/checkpoints/step-0000002", "cpu").model.network.state_dict()
        assert painting.keys() == two.keys()
        assert all(torch.equal(value, two[name]) for name, value in painting.items())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from /proc")
def test_each_process_reads_its_rows_and_holds_no_more(tokenizer, tmp_path):
    folder = save_wide(tokenizer, tmp_path / "wide", (128, 512), max_shard_size="40MB")
    assert len([*(folder / "unet").glob("*-of-*.safetensors")]) > 2
    run_ranks(4, measure, folder, tmp_path / "said.json")
    for said in json.loads((tmp_path / "said.json").read_text()):
        assert said["read"] <= 1.02 * said["network"] / 4
        assert said["held"] <= 1.02 * said["network"] / 4
        # Teacher, student and average are three networks, of each of which a quarter is here.
        assert said["most"] <= 3.1 * said["network"] / 4 + 2 * said["largest"] + 24 * 2**20


def export(folder, out):
    """Writes a spread student in files of 8 MiB, and notes the most that this process holds meanwhile."""
    model = spreading.load_spread(folder, CPU)
    student = model.network.to_student(8)
    plain, said = UNet2DConditionModel.save_pretrained, {}

    def save_pretrained(self, folder, **given):
        with Peak() as peak:
            plain(self, folder, **{**given, "max_shard_size": "8MB"})
        said["most"] = peak.most

    def save(network):
        with replace_folder(out) as draft:
            save_pipeline(draft, model, network, make_scheduler(model, METHODS["lcm"], 50), few_step=True)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(UNet2DConditionModel, "save_pretrained", save_pretrained)
        spreading.save_spread(student, save)
    if current_world().main:
        out.with_suffix(".json").write_text(json.dumps(said))
        whole = load_latent_model(folder, CPU).network.to_student(8)
        written = [load_file(path) for path in (out / "unet").glob("*-of-*.safetensors")]
        state = {name: value for each in written for name, value in each.items()}
        wanted = whole.backbone.state_dict()
        assert len(written) > 5
        assert state.keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name]) for name, value in state.items())
        again = UNet2DConditionModel.from_pretrained(out / "unet").state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in again.items())
    current_world().wait()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from /proc")
def test_a_spread_network_is_exported_a_file_at_a_time(tokenizer, tmp_path):
    folder = save_wide(tokenizer, tmp_path / "wide", (64, 256))
    size = sum(value.nbytes for path in (folder / "unet").glob("*.safetensors") for value in load_file(path).values())
    assert size > 70 * 2**20
    run_ranks(2, export, folder, tmp_path / "model")
    # Two files of 8 MiB, and what it takes to put a tensor together; the whole network would be 74 MiB more.
    assert json.loads((tmp_path / "model.json").read_text())["most"] < 0.75 * size


def refuse_to_export(folder):
    network = spreading.load_spread(folder, CPU).network

    def save(whole):
        assert len({*map(id, whole.backbone.state_dict().values())}) > 10
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space") if current_world().main else contextlib.nullcontext():
        spreading.save_spread(network, save)
    current_world().wait()


def test_no_process_waits_for_tensors_of_an_export_that_failed(tiny):
    run_ranks(2, refuse_to_export, tiny)
