"""A real server on a port of its own."""

import contextlib
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from fewstep import assets
from fewstep.models.pipeline import load_pipeline
from fewstep.recipes.serve import chips
from fewstep.serve.app import make_app
from fewstep.serve.desk import Desk
from fewstep.serve.engine import Engine, Limits
from fewstep.serve.server import make_server
from fewstep.serve.settings import Settings


class Serving:
    """The engine, and where it is reached."""

    def __init__(self, engine, url):
        self.engine, self.url = engine, url
        self.http = httpx.Client(base_url=url, timeout=60)

    def post(self, path, status=200, **body):
        answer = self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()


@contextlib.contextmanager
def serving(pipeline, limits=None, **settings):
    settings = Settings(**settings)
    engine = Engine(pipeline, {}, limits or Limits())
    server = make_server(make_app(Desk(engine, settings, {}), chips(pipeline)), "127.0.0.1", 0, settings, 5)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive()
    engine.start()
    port = server.servers[0].sockets[0].getsockname()[1]
    served = Serving(engine, f"http://127.0.0.1:{port}")
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


class Command:
    """A process that serves."""

    def __init__(self, *more):
        command = [sys.executable, "-m", "fewstep", "serve", "--port", "0", *map(str, more)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert " at http://" in line, self.process.stderr.read()
        self.url = line.split(" at ")[1].strip()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        said, wrong = self.process.communicate(timeout=60)
        return self.process.returncode, said, wrong
