"""A real server on a port of its own."""

import contextlib
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time

import httpx
import pytest
import torch
from PIL import Image

from fewstep import assets
from fewstep.commands.serve import list_vocabulary
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.adapters import attach
from fewstep.models.lora.file import Pair
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.serve.app import make_app
from fewstep.serve.engine import Engine
from fewstep.serve.jobs import EngineLimits
from fewstep.serve.server import make_server
from fewstep.serve.service import PaintService
from fewstep.serve.settings import ServerSettings
from warm_command import Warm

PROMPT = "a small red star above a blue ring on a white background"


class Serving:
    """The engine, and where it is reached."""

    def __init__(self, service, url):
        self.service, self.engine, self.url = service, service.engine, url
        self.http = httpx.Client(base_url=url, timeout=60)

    def post(self, path, status=200, **body):
        answer = self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()


@contextlib.contextmanager
def serving(pipeline, limits=None, loras=(), aliases=(), lora_aliases=None, **settings):
    """`loras` are registered under the names of their adapters, at scale 1."""
    settings = ServerSettings(**settings)
    engine = Engine(pipeline, {name: name for name in loras}, limits or EngineLimits())
    service = PaintService(engine, settings, dict.fromkeys(loras, 1.0), lora_aliases, aliases)
    app = make_app(service, list_vocabulary(pipeline))
    server = make_server(app, "127.0.0.1", 0, service, 5)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive()
    engine.start()
    port = server.servers[0].sockets[0].getsockname()[1]
    served = Serving(service, f"http://127.0.0.1:{port}")
    try:
        yield served
    finally:
        served.http.close()
        server.should_exit = True
        thread.join(20)
        assert engine.close(20)


@pytest.fixture(scope="package")
def bundled():
    return load_pipeline(assets.SCENES_LCM, "cpu")


@pytest.fixture(scope="package")
def served(bundled):
    with serving(bundled) as served:
        yield served


def with_loras(text=False):
    """The bundled model with two random adapters on it, lora0 and lora1; with `text` lora0 on its text encoder too."""
    model = load_latent_model(assets.SCENES_LCM, torch.device("cpu"))
    for i, name in enumerate(("attn1.to_q", "ff.net.2")):
        place = f"down_blocks.0.attentions.0.transformer_blocks.0.{name}"
        weight = model.network.backbone.get_submodule(place).weight
        generator = torch.Generator().manual_seed(i)
        down = torch.randn(4, weight.shape[1], generator=generator)
        up = 0.3 * torch.randn(weight.shape[0], 4, generator=generator)
        pairs = {f"unet.{place}": Pair(down, up, 4.0)}
        if text and i == 0:
            (part,) = model.conditioner.encoders
            module = next(name for name, _ in model.parts[part].named_modules() if name.endswith("layers.0.mlp.fc1"))
            fc1 = model.parts[part].get_submodule(module).weight
            down, up = (torch.randn(shape, generator=generator) for shape in ((4, fc1.shape[1]), (fc1.shape[0], 4)))
            pairs[f"{part}.{module}"] = Pair(down, up, 4.0)
        attach(model.parts, pairs, f"lora{i}", 1.0)
    return model


class Command:
    """A process that serves."""

    def __init__(self, *more, descriptors=None):
        """With `descriptors`, the process may open so many files."""
        command = [sys.executable, "-m", "fewstep", "serve", "--port", "0", *map(str, more)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if descriptors is not None:
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (descriptors, descriptors))
        line = self.process.stdout.readline()
        assert " at http://" in line, self.process.stderr.read()
        self.url = line.split(" at ")[1].strip()

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def wait(self):
        """Returns its status, what it said after it began, and what it said of errors."""
        said, wrong = self.process.communicate(timeout=60)
        return self.process.returncode, said, leave_out_loading(wrong)

    def end(self, number=signal.SIGTERM):
        self.send_signal(number)
        return self.wait()


class WarmCommand(Command):
    """The same in a process that has everything imported as it begins: where its memory is not measured."""

    def __init__(self, *more, port=0):
        self._warm = Warm(("serve", "--port", port, *more), daemon=True)
        self.process = self._warm.process
        while " at http://" not in (said := self._warm.said()[0]) or not said.endswith("\n"):
            assert self.process.is_alive(), self._warm.said()
            time.sleep(0.01)
        self.url = said.split(" at ")[1].strip()

    def wait(self):
        done = self._warm.wait(60)
        return done.returncode, done.stdout.partition("\n")[2], leave_out_loading(done.stderr)


def leave_out_loading(said):
    """Returns what was said on stderr after the line that tells what is loaded."""
    first, _, rest = said.partition("\n")
    assert first.startswith("loading "), said
    return rest


def read_answer(message):
    (length,) = struct.unpack(">I", message[:4])
    return json.loads(message[4 : 4 + length]), Image.open(io.BytesIO(message[4 + length :]))


def ask(page, seq, **more):
    page.send(json.dumps({"seq": seq, "prompt": PROMPT, "seed": 3, **more}))
