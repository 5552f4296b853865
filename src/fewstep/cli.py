"""The command `fewstep`: which subcommand there is, its options, and errors in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import io
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn

from fewstep import __version__
from fewstep.errors import StoppedError, UserError


@dataclass(frozen=True)
class Command:
    """Where a subcommand lives; its module is imported only when it is called."""

    module: str
    config: str
    """Name of the configuration dataclass, or of a function that gives one with its defaults."""
    run: str
    help: str


COMMANDS = {
    "demo": Command(
        "demo", "default_demo", "demo", "distil the bundled teacher, paint, and score it against baselines"
    ),
    "distill": Command("distill", "Distill", "distill", "turn a teacher into a model that paints in 1 to 8 steps"),
    "evaluate": Command(
        "evaluate", "default_evaluate", "evaluate", "score a few-step model against its teacher's samplers"
    ),
    "generate": Command("generate", "Generate", "generate", "paint pictures with a few-step model"),
    "combine": Command("combine", "Combine", "combine", "several LoRAs as one, or merged with their base"),
    "finetune": Command(
        "finetune", "default_finetune", "finetune", "a few-step model on pictures of one's own, without a teacher"
    ),
    "inspect": Command("inspect", "Inspect", "inspect", "say what a model, LoRA, run folder or picture is"),
    "plan": Command("plan", "Plan", "plan", "what of a recipe fits a GPU's memory, and the command for it"),
    "prepare": Command("prepare", "Prepare", "prepare", "encode pictures once, for trainings of any size"),
    "serve": Command("serve", "Serve", "serve", "a page that paints as one types, and an API"),
    "train-lora": Command("train_lora", "default_train_lora", "train_lora", "a style as a LoRA, from pictures of it"),
    "train-teacher": Command("train_teacher", "TrainTeacher", "train_teacher", "make the bundled teacher from nothing"),
    "bench generate": Command(
        "bench_generate", "BenchGenerate", "bench_generate", "measure how long painting takes here, part by part"
    ),
    "bench train": Command(
        "bench_train", "BenchTrain", "bench_train", "measure how fast a recipe trains here, and where its time goes"
    ),
}


IN_PROCESSES = ("distill", "finetune", "train-lora")
"""Commands whose work several processes do together."""
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; exits with status 2 on bad input and 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return
    if arguments[0] == "--version":
        print(f"fewstep {__version__}")
        return
    try:
        _run(arguments[0], arguments[1:])
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}")
    except StoppedError as stopped:
        print(f"\nfewstep: {stopped}", file=sys.stderr)
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        goes_on = {
            "generate": "", "plan": "", "inspect": "", "bench": "", "serve": "",
            "evaluate": "; the same command goes on, and paints nothing twice",
        }.get(arguments[0], "; the same command goes on from the last checkpoint, if there is one")  # fmt: skip
        print(f"\nfewstep: stopped{goes_on}", file=sys.stderr)
        sys.exit(130)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fewstep COMMAND [options]",
            "",
            "Distil a latent diffusion model into one that paints in 1 to 8 steps.",
            "",
            *lines,
            "",
            "fewstep COMMAND --help lists a command's options; fewstep --version prints the version.",
        ]
    )


def _run(name: str, arguments: list[str]) -> None:
    rest = list(arguments)
    if name == "bench" and rest:
        name = f"bench {rest.pop(0)}"
    command = COMMANDS.get(name)
    if command is None:
        raise UserError(f"{name!r} is no command; known are {', '.join(COMMANDS)}{_nearest(name, list(COMMANDS))}")
    module = _import_quietly(command)
    config = getattr(module, command.config)
    if name == "distill":
        from fewstep.recipes.named import describe, find_recipe

        recipe = rest.pop(0) if rest and not rest[0].startswith("-") else "scenes"
        parsed = _parse(find_recipe(recipe), rest, f"fewstep {name}", f" [{recipe}]", describe())
    else:
        default = config()
        if rest and rest[0].endswith((".yaml", ".yml")) and name in ("finetune", "train-lora"):
            from fewstep.recipes.plain import from_file

            default = from_file(type(default), rest.pop(0))
        parsed = _parse(default, rest, f"fewstep {name}")
    count = getattr(parsed, "processes", 1)
    if name not in IN_PROCESSES and (count > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1) and name != "prepare":
        raise UserError(f"{name} runs in one process; those that run in several are {', '.join(IN_PROCESSES)}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and name in IN_PROCESSES:
        _run_as_one_of_several(getattr(module, command.run), parsed)
    elif count > 1:
        from fewstep.parallel.processes import launch

        sys.exit(launch(count, [name, *arguments]))
    else:
        getattr(module, command.run)(parsed)


def _import_quietly(command: Command) -> ModuleType:
    """The command's module; libraries' notes and bars about themselves are not for the person at the terminal."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fewstep").setLevel(logging.INFO)
    from fewstep.models.libraries import import_without_bitsandbytes  # after the variables, which they read

    import_without_bitsandbytes()
    return importlib.import_module(f"fewstep.commands.{command.module}")


def _run_as_one_of_several(run: Callable[[Any], object], parsed: Any) -> None:
    """One process of those that torchrun, or `--processes`, started; the first alone speaks."""
    from fewstep.parallel.processes import LAUNCHER
    from fewstep.parallel.workers import exit_with_parent
    from fewstep.parallel.world import join_world

    if LAUNCHER in os.environ:
        exit_with_parent(int(os.environ[LAUNCHER]))
    with join_world(on_gpu=parsed.device != "cpu") as world, contextlib.ExitStack() as stack:
        if not world.main:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            run(parsed)
        except BaseException as error:
            # At once: to take leave of the others would wait for them, and they wait for this one.
            status = _say_why(error)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def _say_why(error: BaseException) -> int:
    """What ended one process of several, in words on stderr; gives its status."""
    import torch.distributed as dist

    from fewstep.parallel.processes import OTHER_GONE

    if isinstance(error, StoppedError):
        print(f"\nfewstep: {error}", file=sys.stderr)
        return 128 + error.number
    if isinstance(error, UserError):
        print(f"fewstep: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if isinstance(error, KeyboardInterrupt):
        return 130
    lost = isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL"))
    if lost or isinstance(error, dist.DistError):
        print(f"fewstep: another process has gone ({str(error).splitlines()[0][:200]})", file=sys.stderr)
        return OTHER_GONE
    traceback.print_exception(error)
    return 1


def _parse(default: Any, arguments: list[str], program: str, recipe: str = "", description: str | None = None) -> Any:
    """The configuration with the options of the command line; any mistake is a UserError of one line."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                type(default), default=default, args=arguments, prog=program + recipe, description=description
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
    message = _one_line(said.getvalue())
    unknown = re.search(r"Unrecognized options: (\S+?)(?:,|$|\s)", message)
    if unknown and unknown[1].startswith("-"):
        options = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(default)]
        given = unknown[1].split("=")[0].replace("_", "-")
        raise UserError(f"{given} is no option of `{program}`{_nearest(given, options)}")
    raise UserError(f"{message}; `{program} --help` lists the options")


def _one_line(box: str) -> str:
    """tyro's boxed message as one line: what stands between its title and its hints."""
    lines = [line.strip(" │|╭╮╰╯├┤─-") for line in box.splitlines()]
    lines = [line for line in lines if line][1:]
    hints = ("Perhaps you meant", "Argument helptext", "For full helptext", "Similar arguments")
    end = next((i for i, line in enumerate(lines) if line.startswith(hints)), len(lines))
    return _in_words(" ".join(lines[:end])).rstrip(".") or "these options cannot be read"


def _in_words(line: str) -> str:
    """Python's words for a bad number, which tyro hands on, as people's."""
    line = re.sub(r"Error parsing (\S+?/)?(--[\w-]+): ", r"\2: ", line)
    line = re.sub(r"invalid literal for int\(\) with base 10: ('.*?')", r"\1 is not a whole number", line)
    return re.sub(r"could not convert string to float: ('.*?')", r"\1 is not a number", line)


def _nearest(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _fail(message: str) -> NoReturn:
    print(f"fewstep: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
