"""`fewstep serve`: a web page that paints while you type, and an HTTP API, on this machine."""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import tyro

from fewstep import assets
from fewstep.data.worlds.scene import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES
from fewstep.errors import UserError, show
from fewstep.files import read_safetensors_header
from fewstep.models.lora.file import DIFFUSERS_FILE
from fewstep.models.lora.source import name_of, parse_lora
from fewstep.models.options import PainterOptions
from fewstep.models.pipeline import Pipeline, check_options
from fewstep.runs.unfinished import load_painter
from fewstep.train.config import check_between, check_values

_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Serve(PainterOptions):
    """Serves a web page that paints while you type, and an HTTP API, until it is stopped."""

    lora: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A LoRA file or run folder, with its scale after a colon, as in `style.safetensors:0.8`; without one the scale is
    1. Clients see it by the name of its file or run, or by one given as in `NAME=FILE:0.8`, and may choose another
    scale. May be given several times."""
    host: str = "127.0.0.1"
    """Address to listen on. One that other machines can reach needs a --token."""
    port: int = 7860
    """Port to listen on; 0 takes one that is free."""
    token: str = ""
    """Secret that clients must send; `random` makes one up and prints it. By default none is needed."""
    allowed_host: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Further host name by which clients may reach the server; may be given several times."""
    allowed_origin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Origin of a page on another server that may ask this one, as `http://localhost:3000`; `*` allows any. May be
    given several times."""
    alias: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another name by which clients may ask for the model, as `dall-e-3` or `dall-e-3=scenes-lcm`, for clients that
    send a fixed one. May be given several times."""
    batch: int = 16
    """Most pictures that are painted together."""
    waiting: int = 64
    """Most pictures that may wait in the queue; further ones are refused with status 429."""
    deadline: float = 60.0
    """Seconds in which a picture must be finished; else its client gets status 504."""
    connections: int = 512
    """Most connections at a time; fewer where the system lets the process open too few files. For a further one, a
    connection that waits for its client goes, or it is refused with status 503."""
    address_connections: int = 256
    """Most of them from one address. Behind a proxy all clients have one: give as many as connections."""
    body_memory: int = 512
    """Most MiB of memory for what clients send and what is made of it: bodies, decoded pictures, answers. What does not
    fit is refused with status 503."""
    replica: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Serve as one of several behind a load balancer that may send each request to another one: what this one alone
    would know, pictures behind links and how far it has come, is refused. Leave it out where each client stays with
    one."""

    def __post_init__(self) -> None:
        check_values(self)
        self.check_engine()
        check_between(self, 0, 65535, "port")
        check_between(self, 1, 1 << 20, "connections", "address_connections")
        check_between(self, 64, 1 << 20, "body_memory")
        if self.batch < 1 or self.waiting < 1 or self.deadline <= 0:
            raise UserError(
                f"batch is {self.batch}, waiting {self.waiting}, deadline {self.deadline:g}; all must be above 0"
            )
        for origin in self.allowed_origin:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", origin):
                raise UserError(
                    f"allowed_origin is {origin!r}; give scheme, host and port alone, as http://localhost:3000, or *"
                )
        if self.host not in _LOCAL and not self.token:
            raise UserError(
                f"host {self.host} lets other machines in: give --token random, or a token of your own, or leave --host"
            )


def serve(config: Serve) -> None:
    """Prints the address and serves until SIGTERM or Ctrl-C; what was accepted is finished."""
    from fewstep.serve.budget import use_one_heap

    use_one_heap()
    service, app, token = make_service(config)
    from fewstep.serve.listening import listen
    from fewstep.serve.server import make_server

    pipeline, engine = service.pipeline, service.engine
    server = make_server(app, config.host, config.port, service, config.deadline)
    listening = listen(config.host, config.port)
    port = listening.getsockname()[1]
    host = f"[{config.host}]" if ":" in config.host else config.host
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn takes them over, and raises them again once it has ended
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    link = f"?token={quote(token, safe='')}" if token else ""
    print(f"{show(pipeline.name, 200)} at http://{host}:{port}/{link}", flush=True)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # strangers' faults are told to strangers
    gc.freeze()  # what is loaded stays: to look through it for garbage would stop all clients for a tenth of a second
    engine.start()
    try:
        server.run(sockets=[listening])
    finally:
        is_done = engine.close(0 if server.force_exit else config.deadline) and not server.force_exit
    print(f"fewstep: stopped; what was accepted is {'done' if is_done else 'not all done'}", flush=True)


def make_service(config: Serve) -> tuple[Any, Any, str]:
    """Returns the PaintService of a configuration, whose engine does not run yet, its application and its token."""
    from fewstep.serve.app import make_app
    from fewstep.serve.service import PaintService
    from fewstep.serve.settings import ServerSettings

    pipeline, engine, scales, lora_aliases = _make_engine(config)
    aliases = _split_aliases(config.alias, pipeline.name)
    token = secrets.token_urlsafe(16) if config.token == "random" else config.token
    local = ServerSettings().hosts
    names = (*local, f"[{config.host}]" if ":" in config.host else config.host, *config.allowed_host)
    hosts = ("*",) if config.host in ("0.0.0.0", "::") and not config.allowed_host else names
    settings = ServerSettings(
        token=token, hosts=hosts, origins=config.allowed_origin, connections=config.connections,
        address_connections=config.address_connections, memory_bytes=config.body_memory << 20,
        alone=not config.replica,
    )  # fmt: skip
    service = PaintService(engine, settings, scales, lora_aliases, aliases)
    return service, make_app(service, list_vocabulary(pipeline)), token


def _make_engine(config: Serve) -> tuple[Pipeline, Any, dict[str, float], dict[str, str]]:
    """Returns the model, its engine, the scales of its LoRAs by name, and other names of these."""
    from fewstep.serve.engine import Engine
    from fewstep.serve.jobs import EngineLimits

    named = [_split_name(given) for given in config.lora]
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise UserError(f"two LoRAs have one name ({', '.join(names)}); give --lora NAME=FILE:SCALE")
    loras = [parse_lora(given) for _, given in named]
    check_options(config)
    print(describe_loading(config, names), file=sys.stderr, flush=True)  # stdout begins with the address
    pipeline = load_painter(
        config.model,
        config.device,
        loras,
        config.base_config,
        engine=config.engine,
        precision=config.precision,
        calibration_prompts=config.calibration_prompts,
        offload=config.offload,
        tiny_decoder=config.tiny_decoder,
        overrides=config,
        allow_download=config.allow_download,
    )
    pipeline.use_sampler(config.sampler)
    pipeline.compile(config.compile)
    sliders = {} if config.engine == "openvino" else {name: f"lora{i}" for i, name in enumerate(names)}
    scales = {name: scale for name, (_, scale) in zip(names, loras, strict=True) if name in sliders}
    limits = EngineLimits(batch=config.batch, waiting=config.waiting, deadline=config.deadline)
    other_names = _list_other_names({name: path for name, (path, _) in zip(names, loras, strict=True)})
    return pipeline, Engine(pipeline, sliders, limits), scales, {} if config.engine == "openvino" else other_names


def describe_loading(config: Serve, loras: Sequence[str]) -> str:
    """Says what is loaded before anybody can be served, and what the first clients will wait for."""
    beside = f" with {', '.join(loras)}" if loras else ""
    compiles = config.engine == "openvino" or config.compile != "off"
    later = "; the first pictures of each size will wait while it is compiled" if compiles else ""
    return show(f"loading {config.model}{beside} …{later}", 400)


def _list_other_names(paths: Mapping[str, Path]) -> dict[str, str]:
    """Lists the names by which tags in prompts may mean a LoRA: its file's, and the one that its trainer wrote into it.

    One that two LoRAs would have is none.
    """
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        written = None
        with contextlib.suppress(UserError):  # it was loaded, from wherever it came
            written = read_safetensors_header(path).metadata.get("ss_output_name")
        for other in (path.name, path.stem, written):
            if other and other not in paths and path.name != DIFFUSERS_FILE:
                found.setdefault(other, set()).add(name)
    return {other: names.copy().pop() for other, names in found.items() if len(names) == 1}


def _split_aliases(given: Sequence[str], model: str) -> list[str]:
    """Returns other names of the model, out of `NAME` or `NAME=MODEL`. Raises UserError for another model."""
    aliases = []
    for each in given:
        alias, equals, name = each.partition("=")
        if not alias or (equals and name != model):
            raise UserError(f"alias is {each!r}, and the model that is served is {model!r}; give NAME={model}")
        aliases.append(alias)
    return aliases


def _split_name(given: str) -> tuple[str, str]:
    """Splits `NAME=FILE:SCALE`; without a name it is that of the file or of its run."""
    name, equals, rest = given.partition("=")
    if equals and re.fullmatch(r"[\w.-]+", name):
        return name, rest
    path, _ = parse_lora(given)
    return name_of(path), given


def list_vocabulary(pipeline: Pipeline) -> dict[str, list[str]]:
    """Lists the words that the bundled world's models know, in groups; of other models nothing is known."""
    data = pipeline.model.card.data
    if (
        data not in (assets.SCENES, assets.SCENES_LEANING)
        and assets.find_name(pipeline.model.source) not in assets.MODELS
    ):
        return {}
    return {
        "sizes": list(SIZES), "colours": list(COLOURS), "shapes": list(SHAPES), "relations": list(RELATIONS),
        "backgrounds": [f"on a {name} background" for name in BACKGROUNDS],
    }  # fmt: skip
