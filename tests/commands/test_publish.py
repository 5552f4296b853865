"""What is sent to the Hub, by its real client, to a Hub on this machine; and that nothing else is."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCardData, constants
from PIL import Image

from fewstep.cli import main
from fewstep.commands.distill import distill
from fewstep.commands.train_lora import train_lora
from fewstep.data.infotext import Infotext, build_png_info
from fewstep.errors import UserError
from fewstep.files import read_safetensors, read_safetensors_header
from fewstep.models.card import read_card
from fewstep.recipes.distill import Distill
from fewstep.recipes.train_lora import TrainLora
from hub_cache import put_in_cache
from hub_to_write import serve_writable_hub

ROOT = Path(__file__).parents[2]
REPO = "somebody/few"
SMALL = {"steps": 1, "batch_size": 2, "pictures": 4, "device": "cpu", "report_to": ()}


@pytest.fixture
def hub(monkeypatch):
    with serve_writable_hub() as served:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", served.url, raising=False)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", served.url, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield served


@pytest.fixture(scope="module")
def run(random_teacher, tmp_path_factory):
    """A whole student, of a teacher that lies on this machine."""
    out = tmp_path_factory.mktemp("runs") / "student"
    distill(Distill(teacher=str(random_teacher), sample_every=1, out=out, **SMALL))
    return out


@pytest.fixture(scope="module")
def lora(random_teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "style"
    train_lora(TrainLora(model=str(random_teacher), data="scenes", out=out, lora_rank=2, **SMALL))
    return out


def head_of(hub, repo=REPO):
    text = hub.files[repo]["README.md"].decode()
    return yaml.safe_load(text.split("---\n")[1]), text


def painted(file, prompt):
    text = str(Infotext(prompt, "", {"Model": "/home/me/secret", "Steps": "4"}))
    Image.new("RGB", (8, 8), (9, 9, 9)).save(file, pnginfo=build_png_info(text))
    return str(file)


def test_a_run_is_sent_whole_and_private_with_a_card_that_the_widget_reads(hub, run, tmp_path, capsys):
    picture = painted(tmp_path / "a.png", 'a "red" star')
    main(["publish", str(run), REPO, "--license", "openrail++", "--base-model", "somebody/base", "--picture", picture])
    said = capsys.readouterr().out
    assert f"published: {hub.url}/{REPO}" in said
    assert hub.private == {REPO: True}
    files = hub.files[REPO]
    own = {path.relative_to(run / "model").as_posix() for path in (run / "model").rglob("*") if path.is_file()}
    assert set(files) == own | {"images/1.png", "images/samples.png"}
    for name in own - {"README.md", "fewstep.json"}:
        held = (run / "model" / name).read_bytes()
        if files[name] != held:  # diffusers writes where a network was loaded from
            was, sent = json.loads(held), json.loads(files[name])
            assert sent.pop("_name_or_path") != was.pop("_name_or_path")
            assert sent == was
    assert {line.split()[-1] for line in said.splitlines() if line.startswith("   ")} == set(files)
    head, text = head_of(hub)
    assert head["license"] == "openrail++"
    assert head["base_model"] == "somebody/base"
    assert head["base_model_relation"] == "finetune"
    assert head["pipeline_tag"] == "text-to-image"
    assert head["library_name"] == "diffusers"
    assert {"text-to-image", "diffusers", "few-step", "fewstep", "latent-consistency-model"} <= set(head["tags"])
    assert head["inference"] == {"parameters": {"num_inference_steps": 4, "guidance_scale": 5.0}}
    assert head["widget"] == [{"text": 'a "red" star', "output": {"url": "images/1.png"}}]
    ModelCardData(**head)  # the client's own reading
    assert f'from_pretrained("{REPO}")' in text
    assert "![samples along the training](images/samples.png)" in text
    assert files["images/samples.png"] == (run / "samples/step-0000001.png").read_bytes()
    assert json.loads(files["fewstep.json"])["teacher"] == "somebody/base"
    assert json.loads(files["scheduler/scheduler_config.json"])["_class_name"] == "LCMScheduler"
    shown = Image.open(io.BytesIO(files["images/1.png"]))
    assert shown.info == {}
    assert shown.getpixel((0, 0)) == (9, 9, 9)


def test_no_path_of_this_machine_leaves(hub, run, lora, random_teacher):
    for source, base in ((run, []), (lora, []), (lora, ["--base-model", "somebody/base"])):
        hub.files.clear()
        main(["publish", str(source), REPO, "--license", "mit", *base])
        for name, content in hub.files[REPO].items():
            assert str(random_teacher).encode() not in content, name
            assert str(source.parent).encode() not in content, name


def test_a_lora_names_its_base_and_its_words_and_keeps_its_tensors(hub, lora, tmp_path):
    given = ["--license", "mit", "--base-model", "somebody/base", "--instance-prompt", "in TOK style"]
    main(["publish", str(lora / "model"), REPO, *given])
    head, text = head_of(hub)
    assert head["instance_prompt"] == "in TOK style"
    assert head["base_model_relation"] == "adapter"
    assert "lora" in head["tags"]
    assert "inference" not in head  # a style says nothing of steps
    assert 'from_pretrained("somebody/base")' in text
    assert f'load_lora_weights("{REPO}"' in text
    for name in ("pytorch_lora_weights.safetensors", "lora-kohya.safetensors"):
        sent = tmp_path / name
        sent.write_bytes(hub.files[REPO][name])
        before, after = read_safetensors(lora / "model" / name), read_safetensors(sent)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert read_safetensors_header(sent).metadata["fewstep.teacher"] == "somebody/base"
    assert "images/samples.png" not in hub.files[REPO]


def test_the_base_that_is_given_stands_for_the_bundled_teacher(hub, tmp_path):
    train_lora(TrainLora(model="scenes", data="scenes", out=tmp_path / "style", lora_rank=2, **SMALL))
    main(["publish", str(tmp_path / "style"), REPO, "--license", "mit", "--base-model", "somebody/base"])
    head, text = head_of(hub)
    assert head["base_model"] == "somebody/base"
    assert 'DiffusionPipeline.from_pretrained("somebody/base")' in text
    assert "| base | somebody/base |" in text
    assert "| data | scenes |" in text
    assert "assets" not in text
    assert json.loads(hub.files[REPO]["fewstep.json"])["teacher"] == "somebody/base"
    (tmp_path / "sent.safetensors").write_bytes(hub.files[REPO]["pytorch_lora_weights.safetensors"])
    assert read_safetensors_header(tmp_path / "sent.safetensors").metadata["fewstep.teacher"] == "somebody/base"


def test_a_relative_path_is_no_base_model_wherever_the_command_is_started(hub, random_teacher, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(random_teacher, tmp_path / "models/base")
    monkeypatch.chdir(tmp_path)
    distill(Distill(teacher="models/base", sample_every=0, out=Path("runs/student"), **SMALL))
    train_lora(TrainLora(model="models/base", data="scenes", out=Path("runs/style"), lora_rank=2, **SMALL))
    monkeypatch.chdir(tmp_path / "elsewhere")
    card = tmp_path / "runs/student/model/fewstep.json"
    assert json.loads(card.read_text())["teacher"] == "./models/base"  # which no repository is called
    for moved in (False, True):
        if moved:
            (tmp_path / "models").rename(tmp_path / "elsewhere/others")
        readme = tmp_path / "runs/student/model/README.md"
        if not moved:
            readme.write_text(readme.read_text() + "\nSee https://example.org/models/base-xl and /models/base.\n")
        for name in ("student", "style"):
            main(["publish", str(tmp_path / "runs" / name), REPO, "--license", "mit"])
            assert "base_model" not in head_of(hub)[0]
            held = {file: content.replace(b"org/models/base-xl", b"") for file, content in hub.files[REPO].items()}
            if name == "student":
                assert held["README.md"] != hub.files[REPO]["README.md"]  # another's address stays
                assert held["README.md"].endswith(b" and /models/base.\n")
                held["README.md"] = held["README.md"].replace(b"/models/base.", b"")
            assert not [file for file, content in held.items() if b"models/base" in content]
    (tmp_path / "elsewhere/others").rename(tmp_path / "models")
    card.write_text(card.read_text().replace('"./models/base"', '"models/base"'))  # as an earlier version had it
    main(["publish", str(tmp_path / "runs/student"), REPO, "--license", "mit"])
    assert "base_model" not in head_of(hub)[0]
    assert json.loads(hub.files[REPO]["fewstep.json"])["teacher"] == "base"


def test_a_path_in_the_head_of_a_card_is_no_base_model(hub, run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "model")
    (tmp_path / "model/README.md").write_text("---\nbase_model: /home/me/base\nlanguage: en\n---\n\nMy words.\n")
    main(["publish", str(tmp_path / "model"), REPO, "--license", "mit"])
    head, _ = head_of(hub)
    assert "base_model" not in head
    assert head["language"] == "en"


@pytest.mark.parametrize("base", ["/home/me/base", "here/base"])
def test_a_path_is_refused_as_the_base_that_is_given(hub, run, base, tmp_path, monkeypatch, capsys):
    (tmp_path / "here/base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["publish", str(run), REPO, "--license", "mit", "--base-model", base])
    assert f"base_model is {base}, a path here; give the base's repository, as OWNER/NAME" in capsys.readouterr().err
    assert hub.files == {}


def test_a_copy_here_of_the_recorded_base_does_not_hide_that_it_is_on_the_hub(hub, run, tmp_path, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    card = json.loads((model / "fewstep.json").read_text())
    (model / "fewstep.json").write_text(json.dumps({**card, "teacher": "them/base"}))
    (tmp_path / "them/base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    main(["publish", str(model), REPO, "--license", "mit", "--base-model", "them/base"])
    assert head_of(hub)[0]["base_model"] == "them/base"


def test_a_dry_run_asks_nobody_and_lists_all(hub, run, capsys):
    main(["publish", str(run), REPO, "--dry-run"])
    said = capsys.readouterr().out
    assert hub.asked == []
    assert f"to {REPO} (private): " in said
    assert "unet/diffusion_pytorch_model.safetensors" in said
    assert "pipeline_tag: text-to-image" in said
    assert said.endswith("nothing was sent; to send it, a license is needed: --license, as apache-2.0 or openrail++\n")
    main(["publish", str(run), REPO, "--dry-run", "--license", "mit"])
    assert capsys.readouterr().out.endswith("nothing was sent\n")


def test_public_is_asked_for_by_name(hub, run, capsys):
    main(["publish", str(run), REPO, "--license", "mit", "--public"])
    assert hub.private == {REPO: False}
    hub.files.clear()
    with pytest.raises(SystemExit):
        main(["publish", str(run), REPO, "--license", "mit"])
    assert f"{REPO} is there and open to all; give --public, or another name" in capsys.readouterr().err
    assert hub.files == {}


def test_a_terminal_is_asked_for_the_license(hub, run, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal("apache-2.0\n"))
    main(["publish", str(run), REPO])
    assert head_of(hub)[0]["license"] == "apache-2.0"
    assert "Under which license" in capsys.readouterr().err
    hub.files.clear()
    for answer in ("My own!\n", ""):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        with pytest.raises(SystemExit):
            main(["publish", str(run), REPO])
        assert "give the Hub's name of one" in capsys.readouterr().err
    assert hub.files == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", REPO], "nothing is published without a license"),
        (["RUN"], "give what is published and where"),
        (["RUN", "no name/at all", "--license", "mit"], "is no name that a repository could have"),
        (
            ["STOPPED", REPO, "--license", "mit"],
            "stopped before its first checkpoint; it goes on with: fewstep distill",
        ),
        (["RUN", REPO, "--license", "MIT License"], "give the Hub's name of one"),
        (["nowhere", REPO, "--license", "mit"], "nowhere holds no model"),
        (["RUN", REPO, "--license", "mit", "--picture", "plain.png"], "does not say its prompt"),
        (["RUN", REPO, "--license", "mit", "--picture", "broken.png"], "cannot be read as a PNG"),
    ],
)
def test_what_cannot_be_published_is_refused_in_words_and_nothing_sent(
    hub, run, words, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("plain.png")
    Path("broken.png").write_bytes(b"no picture")
    Path("STOPPED").mkdir()
    shutil.copy(run / "config.yaml", "STOPPED")
    with pytest.raises(SystemExit):
        main(["publish", *(str(run) if word == "RUN" else word for word in words)])
    assert message in capsys.readouterr().err
    assert hub.files == hub.private == {}


def test_who_is_not_logged_in_is_told_before_anything_is_done(hub, run, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SystemExit):
        main(["publish", str(run), REPO, "--license", "mit"])
    assert "`hf auth login`, or set HF_TOKEN" in capsys.readouterr().err
    assert hub.asked == ["GET /api/whoami-v2"]


def test_damaged_weights_are_not_sent(hub, run, tmp_path, capsys):
    model = shutil.copytree(run / "model", tmp_path / "model")
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(SystemExit):
        main(["publish", str(model), REPO, "--license", "mit"])
    assert f"{file} is damaged or not a safetensors file" in capsys.readouterr().err
    assert REPO not in hub.files


def test_a_copy_in_the_hubs_cache_is_sent_as_its_newest_files(hub, run, lora, tmp_path):
    for model in (run / "model", lora / "model"):
        main(["publish", str(model), REPO, "--license", "mit"])
        wanted = dict(hub.files[REPO])
        hub.files.clear()
        cached = put_in_cache(model, tmp_path, f"models--org--{model.parent.name}")
        main(["publish", str(cached), REPO, "--license", "mit"])
        # A header's words have no order.
        assert {name: len(held) for name, held in hub.files[REPO].items()} == {
            name: len(held) for name, held in wanted.items()
        }
        hub.files.clear()


def test_a_link_out_of_the_folder_is_not_followed(hub, run, tmp_path, capsys):
    shutil.copytree(run / "model", tmp_path / "model")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "model" / "notes.txt").symlink_to(tmp_path / "secret")
    (tmp_path / "model" / ".env").write_text("secret")
    with pytest.raises(SystemExit):
        main(["publish", str(tmp_path / "model"), REPO, "--license", "mit"])
    assert "leads out of the folder" in capsys.readouterr().err
    (tmp_path / "model" / "notes.txt").unlink()
    main(["publish", str(tmp_path / "model"), REPO, "--license", "mit"])
    assert ".env" not in hub.files[REPO]


def test_a_card_that_somebody_wrote_keeps_its_words_and_its_head(hub, run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlanguage: en\ntags: [mine]\n---\n\nMy words.\n")
    main(["publish", str(tmp_path / "model"), REPO, "--license", "mit"])
    head, text = head_of(hub)
    assert head["language"] == "en"
    assert "mine" in head["tags"]
    assert "My words." in text


@pytest.mark.usefixtures("hub")
def test_a_head_or_a_configuration_that_is_spoilt_is_named(run, tmp_path, capsys):
    shutil.copytree(run / "model", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\na: [\n---\n")
    (tmp_path / "model" / "unet" / "config.json").write_text("{")
    for name in ("unet cannot be published: config.json", "the head of README.md"):
        with pytest.raises(SystemExit):
            main(["publish", str(tmp_path / "model"), REPO, "--license", "mit"])
        assert name in capsys.readouterr().err
        (tmp_path / "model" / "unet" / "config.json").write_text("{}")


def test_a_training_sends_its_model_at_the_end(hub, random_teacher, tmp_path, capsys):
    config = Distill(
        teacher=str(random_teacher), sample_every=1, out=tmp_path / "run", push_to_hub=REPO, license="mit", **SMALL
    )
    distill(config)
    assert f"published: {hub.url}/{REPO}" in capsys.readouterr().out
    assert "unet/diffusion_pytorch_model.safetensors" in hub.files[REPO]
    assert head_of(hub)[0]["license"] == "mit"
    assert read_card(tmp_path / "run" / "model").teacher == str(random_teacher)


def test_a_training_that_cannot_send_says_so_before_it_begins_or_how_to_do_it_later(
    hub, random_teacher, tmp_path, monkeypatch
):
    config = Distill(
        teacher=str(random_teacher), sample_every=0, out=tmp_path / "run", push_to_hub=REPO, license="mit", **SMALL
    )
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="hf auth login"):
        distill(config)
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    hub.status = 403
    with pytest.raises(UserError, match=f"answers 403.*later: fewstep publish .*run {REPO} --license mit"):
        distill(config)
    assert (tmp_path / "run" / "model" / "model_index.json").exists()
    hub.status = 0
    main(["publish", str(tmp_path / "run"), REPO, "--license", "mit"])
    assert "model_index.json" in hub.files[REPO]


def test_the_same_command_sends_what_could_not_be_sent(hub, random_teacher, tmp_path, capsys):
    """Its model is whole, so that nothing is left to do but that."""
    trainings = {
        distill: Distill(teacher=str(random_teacher), out=tmp_path / "a run", sample_every=0, push_to_hub=REPO,
                         license="mit", **SMALL),
        train_lora: TrainLora(model=str(random_teacher), data="scenes", out=tmp_path / "a lora", lora_rank=2,
                              push_to_hub=REPO, license="mit", **SMALL),
    }  # fmt: skip
    for train, config in trainings.items():
        hub.files.clear()
        hub.status = 403
        with pytest.raises(UserError, match=f"later: fewstep publish '.*/a [a-z]*' {REPO}"):
            train(config)
        hub.status = 0
        train(config)
        assert "is finished" in capsys.readouterr().out
        assert "README.md" in hub.files[REPO]


@pytest.mark.parametrize("name", ["somebody/..", "somebody/model.git", f"somebody/{'m' * 97}", "some--body/model"])
@pytest.mark.usefixtures("hub")
def test_what_no_repository_can_be_called_is_said_before_the_training(random_teacher, tmp_path, name):
    config = Distill(teacher=str(random_teacher), out=tmp_path / "run", push_to_hub=name, license="mit", **SMALL)
    with pytest.raises(UserError, match="is no name that a repository could have"):
        distill(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [{"license": "mit"}, {"public": True}])
def test_what_is_for_the_hub_alone_is_refused_without_it(given):
    with pytest.raises(UserError, match="give --push-to-hub OWNER/NAME too"):
        Distill(**given)


def test_the_commands_of_the_documents(hub, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "runs/mine")
    Path("pictures").mkdir()
    painted(Path("pictures/a-red-star-seed0.png"), "a red star")
    page = (ROOT / "docs/publishing.md").read_text()
    commands = re.findall(r"^fewstep (publish (?:.*\\\n)*.*?)(?: +#.*)?$", page, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        main(command.replace("\\\n", " ").split())
    assert hub.files.keys() == {"me/mine"}
