"""What is fetched from the Hub, and what is said where it is not: against a Hub on this machine, over real HTTP."""

import errno
import os
import shutil
import socket
import threading

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants

from fake_hub import serve_hub
from fewstep.data.worlds.scenes import Scenes
from fewstep.errors import UserError
from fewstep.models import scenes_model
from fewstep.models.hub import TRIES
from fewstep.models.loading import load_latent_model
from fewstep.models.model_files import INDEX, SMALL_FILES
from fewstep.models.options import Overrides
from fewstep.models.pipeline_loading import load_pipeline
from miniatures import save_miniature

CPU = torch.device("cpu")
MODEL, ALONE = "somebody/model", "somebody/alone"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A pipeline with every variant and a pickle beside them, and a UNet alone."""
    root = tmp_path_factory.mktemp("repositories")
    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    folder = save_miniature("sd15", tokenizer, root / MODEL)
    for file in list(folder.rglob("*.safetensors")):
        for variant in ("fp16", "non_ema"):
            shutil.copy(file, file.with_name(f"{file.stem}.{variant}.safetensors"))
        file.with_suffix(".bin").write_bytes(b"pickle")
    for name in ("README.md", "unet/code.py", "unet/words.txt", "unet/more.json", "vae/x.safetensors.index.json"):
        (folder / name).write_text("{}")
    shutil.copytree(folder / "unet", root / ALONE)
    (root / ALONE / "diffusion_pytorch_model.safetensors").unlink()
    return root


@pytest.fixture
def hub(repositories, tmp_path, monkeypatch):
    with serve_hub(repositories) as served:
        go_online(monkeypatch, served.url, tmp_path / "cache")
        yield served


def go_online(monkeypatch, url, cache):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)  # as the command has it
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def refusal(source=MODEL):
    with pytest.raises(UserError) as caught:
        load_latent_model(source, CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_variant_of_a_repository_is_fetched_once(hub, repositories, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    model = load_latent_model(MODEL, CPU)
    weights = sorted(name for name in hub.fetched if name.rpartition("/")[2] not in {*SMALL_FILES, INDEX})
    assert weights == [
        "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    here = load_latent_model(repositories / MODEL, CPU)
    for name, value in here.network.backbone.state_dict().items():
        assert torch.equal(model.network.backbone.state_dict()[name], value)
    hub.fetched.clear()
    load_latent_model(MODEL, CPU)
    assert hub.fetched == []
    hub.status = 503
    load_latent_model(MODEL, CPU)  # the Hub's trouble is none of what lies here
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load_latent_model(MODEL, CPU)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.status, hub.trouble = 0, "missing"
    assert "has no such model or does not show it to you" in refusal()


def test_a_unet_alone_is_fetched_in_its_bases_place(hub):
    load_latent_model(MODEL, CPU, overrides=Overrides(unet=ALONE))
    weights = sorted(name for name in hub.fetched if name.endswith(".safetensors"))
    assert weights == [
        "diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert "holds no diffusers pipeline (it has no model_index.json); give one that does, or a UNet" in refusal(ALONE)


@pytest.mark.parametrize(
    ("trouble", "status", "said"),
    [
        ("gated", 0, "is gated: accept its conditions at http://127.0.0.1:"),
        ("missing", 0, "check the name, or `hf auth login` for a private one"),
        ("", 401, "`hf auth login`"), ("", 403, "your token may not read it"), ("", 429, "too many requests"),
        ("", 500, "the trouble is there: try again later"),
    ],
)  # fmt: skip
def test_a_no_of_the_hub_is_one_true_line(trouble, status, said, hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # clients wait before they ask again
    hub.trouble, hub.status = trouble, status
    answer = refusal()
    assert said in answer
    assert TRIES not in answer  # which the storage alone heeds


def test_a_storage_that_fails_over_and_over_is_asked_a_few_times_and_then_named(hub, monkeypatch):
    monkeypatch.delenv(TRIES, raising=False)
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "1ms")  # of the real client, which waits in its own threads
    hub.storage = 500
    assert "answers 500; the trouble is there: try again later, what has come is kept" in refusal()
    assert os.environ[TRIES] == "3"
    assert len(hub.asked) == 9 * (1 + 3)  # for nine files; by its own count the client would have asked 54 times
    monkeypatch.setenv(TRIES, "7")
    assert f"{TRIES}=10" in refusal()
    assert os.environ[TRIES] == "7"  # a person's own


def test_a_hub_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        go_online(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}", tmp_path)
        said = refusal()
        assert "could not be fetched from http://127.0.0.1:" in said
        assert "check the connection, or give a folder or file that is here" in said
        monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:9")
        said = refusal()
    assert "through the proxy 127.0.0.1:9" in said
    assert "secret" not in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set and it was not fetched before" in refusal()


def test_a_hub_that_does_not_answer_in_time(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.delay = threading.Event()
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    assert "does not answer in time" in refusal()
    hub.delay.set()


@pytest.mark.usefixtures("hub")
def test_a_disk_that_is_full(monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert "is full; make room, or set HF_HOME to another disk" in refusal()


@pytest.mark.usefixtures("hub")
def test_a_name_that_is_none():
    assert "nor a name that the Hub could have" in refusal("some body/a b")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_shown_on_a_terminal(is_terminal, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    load_latent_model(MODEL, CPU)
    assert ("etching" in capsys.readouterr().err) == is_terminal


@pytest.mark.parametrize(
    "header",
    [
        {"fewstep.teacher": MODEL}, {"fewstep.teacher": "scenes", "fewstep.unet": ALONE},
        {"fewstep.teacher": "scenes", "fewstep.base_config": MODEL},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_lora_names_is_fetched_only_where_that_is_allowed(header, hub, tmp_path):
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "pytorch_lora_weights.safetensors", header)
    with pytest.raises(UserError, match=r"names somebody/\w+, which is not here .*--allow-download"):
        load_pipeline(tmp_path, "cpu")
    assert hub.fetched == []
    with pytest.raises(UserError, match=r"does not fit this base|has a UNet of 4 input|leave --base-config out"):
        load_pipeline(tmp_path, "cpu", allow_download=True)
    assert hub.fetched or "fewstep.base_config" in header


def test_a_name_that_no_disk_holds_is_refused_in_a_line(tmp_path):
    header = {"fewstep.teacher": "a" * 300}
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "pytorch_lora_weights.safetensors", header)
    for allowed in (False, True):
        with pytest.raises(UserError, match=r"names a{60}…, which is not a name of a file or of a repository"):
            load_pipeline(tmp_path, "cpu", allow_download=allowed)
