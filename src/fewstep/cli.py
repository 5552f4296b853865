"""The command `fewstep`: it finds the subcommand, runs it, and prints errors in one line."""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from fewstep import __version__
from fewstep.arguments import find_option, parse_arguments, suggest_nearest
from fewstep.errors import ShownFormatter, StoppedError, UserError, show
from fewstep.importing import uncollected
from fewstep.parallel.termination import told_at_termination
from fewstep.recipes.given import name_as_given

_SIGNS_OF_A_LOST_PROCESS = (
    "closed by peer", "reset by peer", "Broken pipe", "Socket closed", "remote process exited", "Connection refused",
    "imed out", "imeout", "recvValue failed",
)  # fmt: skip
"""Parts of what gloo, NCCL and torch's store say in a process where another one is no more."""
_RESUMES = "; the same command goes on from the last checkpoint, if there is one"
_LOST = "; a measurement that is stopped leaves nothing"


@dataclass(frozen=True)
class Command:
    """Says where a subcommand stands; its modules are imported only when it is called."""

    run: str
    """`module:function` of the package, which takes the configuration."""
    config: str
    """`module:name` of the configuration dataclass, or of a function that returns one with its defaults; empty where
    it is a recipe of `recipes.named`."""
    help: str
    """What it does, for the list of commands."""
    interrupted: str = ""
    """What is said after Ctrl-C and SIGTERM of what becomes of its work."""
    processes: Literal["one", "together", "apart"] = "one"
    """Whether several processes can do its work: together, as torchrun starts them, or each a part of its own."""
    owns_out: bool = False
    """Whether its `out` is a folder that nobody else may write into meanwhile."""
    lone: str = ""
    """The option that words belong to which stand alone."""
    paints: bool = False
    """Whether what it leaves in its `out` can be painted with."""


COMMANDS = {
    "demo": Command(
        "commands.demo:demo", "commands.demo:default_demo",
        "distil the bundled teacher and score the result, in a few minutes", _RESUMES, owns_out=True, paints=True,
    ),
    "distill": Command(
        "commands.distill:distill", "",
        "turn a teacher into a model that paints in 1 to 8 steps", _RESUMES, "together", owns_out=True, paints=True,
    ),
    "evaluate": Command(
        "commands.evaluate:evaluate", "evaluate.config:default_evaluate",
        "score a few-step model against its teacher's samplers",
        "; what is painted so far is kept, and the same command goes on from there", owns_out=True,
    ),
    "generate": Command(
        "commands.generate:generate", "commands.generate:Generate", "paint pictures with a few-step model",
        "; the pictures that it has named are kept", lone="prompt",
    ),
    "combine": Command(
        "commands.combine:combine", "commands.combine:Combine", "combine LoRAs into one, or merge them into their base",
        owns_out=True,
    ),
    "convert": Command(
        "commands.convert:convert", "commands.convert:Convert", "write a LoRA in the spelling of another tool"
    ),
    "export": Command(
        "commands.export:export", "commands.export:Export",
        "make a LoRA for other tools of an any-step model", _RESUMES, owns_out=True, paints=True,
    ),
    "finetune": Command(
        "commands.finetune:finetune", "",
        "fine-tune a few-step model on your own pictures, without a teacher", _RESUMES, "together", owns_out=True,
        paints=True,
    ),
    "inspect": Command(
        "commands.inspect:inspect", "commands.inspect:Inspect",
        "describe a model, a LoRA, a run, a painted picture or prepared latents",
    ),
    "plan": Command("commands.plan:plan", "commands.plan:Plan", "find the fastest settings that fit a GPU's memory"),
    "plot": Command("commands.plot:plot", "commands.plot:Plot", "draw the curves, scores and samples of runs"),
    "prepare": Command(
        "commands.prepare:prepare", "recipes.prepare:default_prepare",
        "encode pictures, or walk a teacher, for many runs",
        "; the shards written so far are kept, and the same command goes on from there", "apart",
    ),
    "publish": Command(
        "commands.publish:publish", "commands.publish:Publish", "send a model to the Hub, with a card of its own",
        "; all files are published together or none is, and the same command sends them",
    ),
    "serve": Command("commands.serve:serve", "commands.serve:Serve", "serve a web page and an HTTP API that paint"),
    "train-lora": Command(
        "commands.train_lora:train_lora", "",
        "train a style LoRA on pictures of that style", _RESUMES, "together", owns_out=True, paints=True,
    ),
    "train-teacher": Command(
        "commands.train_teacher:train_teacher", "commands.train_teacher:TrainTeacher",
        "train the bundled teacher from scratch", _RESUMES, owns_out=True,
    ),
    "bench generate": Command(
        "commands.bench_generate:bench_generate", "commands.bench_generate:BenchGenerate",
        "time painting on this machine, part by part", _LOST,
    ),
    "bench methods": Command(
        "commands.bench_methods:bench_methods", "commands.bench_methods:BenchMethods",
        "measure every method on a world whose guided ODE is known", _LOST,
    ),
    "bench train": Command(
        "commands.bench_train:bench_train", "commands.bench_train:BenchTrain",
        "time a recipe's training on this machine, part by part", _LOST,
    ),
}  # fmt: skip
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; exits with status 2 on bad input, 130 after Ctrl-C and 143 after SIGTERM."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return
    if arguments[0] == "--version":
        print(f"fewstep {__version__}")
        return
    command = COMMANDS.get(arguments[0]) or COMMANDS.get(" ".join(arguments[:2]))
    try:
        with told_at_termination(_describe_stop(command)):
            _run(arguments[0], arguments[1:])
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _fail(_describe_refusal(error, command))
    except StoppedError as stopped:
        print(f"\nfewstep: {stopped}", file=sys.stderr)
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left is to say so
        print(f"\n{_describe_stop(command)}", file=sys.stderr)
        sys.exit(130)


def _describe_stop(command: Command | None) -> str:
    """Says what becomes of the work of a command that is stopped."""
    return f"fewstep: stopped{command.interrupted if command else ''}"


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
            "`fewstep COMMAND --help` lists the options of a command; `fewstep --version` prints the version.",
        ]
    )


def _run(name: str, arguments: list[str]) -> None:
    rest = list(arguments)
    if name == "bench" and rest:
        name = f"bench {rest.pop(0)}"
    command = COMMANDS.get(name)
    if command is None:
        within = [each for each in COMMANDS if each.startswith(f"{name.partition(' ')[0]} ")]
        nearest = f"; did you mean {' or '.join(within)}?" if within else suggest_nearest(name, list(COMMANDS))
        raise UserError(f"{name!r} is not a command; known: {', '.join(COMMANDS)}{nearest}")
    first = "torch" not in sys.modules
    with uncollected():
        _silence_libraries()
        run = _load(command.run)
        if command.config:
            parsed = parse_arguments(_load(command.config)(), rest, f"fewstep {name}", lone=command.lone)
        else:
            parsed = parse_training(name, rest)
    run = name_as_given(type(parsed), rest)(run)
    if first:
        gc.freeze()  # what is imported stays, and need not be looked through
    count = getattr(parsed, "processes", 1)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if command.processes == "one" and max(count, started) > 1:
        several = ", ".join(each for each, other in COMMANDS.items() if other.processes == "together")
        raise UserError(f"{name} runs in one process; those that run in several are {several}")
    if started > 1 and command.processes == "together":
        _run_as_one_of_several(command, run, parsed)
    elif count > 1:
        from fewstep.parallel.processes import launch

        sys.exit(launch(count, [name, *arguments]))
    else:
        _run_explained(command, run, parsed)


def _run_explained(command: Command, run: Callable[[Any], object], parsed: Any) -> None:
    """Runs the command while nobody else may write where it does; where memory runs out in it, says what needs less."""
    from fewstep.parallel.world import current_world
    from fewstep.runs.lock import hold_folder
    from fewstep.runs.shortage import explain_out_of_memory

    writes = command.owns_out and not getattr(parsed, "dry_run", False) and current_world().main
    with hold_folder(parsed.out) if writes else contextlib.nullcontext(), explain_out_of_memory(parsed):
        run(parsed)
        if writes and command.paints:
            from fewstep.runs.advice import advise_painting

            print(*map(show, advise_painting(parsed.out / "model")), sep="\n", flush=True)


def parse_training(name: str, arguments: list[str]) -> Any:
    """Parses the options of a command with recipes: the first word names one, else the model's family decides."""
    from fewstep.recipes.choosing import OWN, Choice, check_named, choose_recipe
    from fewstep.recipes.named import describe, find_recipe

    if arguments and not arguments[0].startswith("-"):
        word, *arguments = arguments
        choice = Choice(word, find_recipe(word, name))
        check_named(choice.config, word, {each for each in OWN if find_option(arguments, each.replace("_", "-"))})
    else:
        given = {
            option: find_option(arguments, option)
            for option in ("teacher", "model", "base-config", "lora-rank", "prediction-type")
        }
        model = given["teacher" if name == "distill" else "model"]
        choice = choose_recipe(
            name,
            model,
            given["base-config"],
            lora=given["lora-rank"] not in ("", "0"),
            prediction=given["prediction-type"],
        )
    if choice.note and os.environ.get("RANK", "0") == "0" and "FEWSTEP_LAUNCHER" not in os.environ:
        print(show(choice.note), file=sys.stderr, flush=True)
    default = choice.config
    batch = find_option(arguments, "batch-size")
    if batch.isdecimal() and int(batch) and not find_option(arguments, "accumulation"):
        default = default.with_batch_size(int(batch))
    return parse_arguments(default, arguments, f"fewstep {name}", f" [{choice.name}]", describe(name))


def _silence_libraries() -> None:
    """Switches off libraries' notes and bars about themselves, which are not for the person at the terminal."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.basicConfig(format="%(message)s")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(ShownFormatter("%(message)s"))
    logging.getLogger("fewstep").setLevel(logging.INFO)
    from fewstep.models.libraries import import_without_extras  # after the variables, which they read

    import_without_extras()


def _load(place: str) -> Any:
    """Imports what stands at `module:name`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"fewstep.{module}"), name)


def _run_as_one_of_several(command: Command, run: Callable[[Any], object], parsed: Any) -> None:
    """Runs one process of those that torchrun, or `--processes`, started; only the first of them prints."""
    from fewstep.parallel.processes import LAUNCHER
    from fewstep.parallel.workers import exit_with_parent
    from fewstep.parallel.world import join_world

    if LAUNCHER in os.environ:
        exit_with_parent(int(os.environ[LAUNCHER]))
    with join_world(on_gpu=parsed.device != "cpu") as world, contextlib.ExitStack() as stack:
        if not world.main:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            _run_explained(command, run, parsed)
        except BaseException as error:
            # At once: to take leave of the others would wait for them, and they wait for this one.
            status = _explain_end(error, command)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def _describe_refusal(error: OSError, command: Command | None) -> str:
    """Says what the system refused; where a disk is full, what to do and what becomes of the work."""
    name, why = error.filename or "a file", error.strerror or error
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{name} cannot be written: {why}; make room there{command.interrupted if command else ''}"
    return f"{name} cannot be used: {why}"


def _explain_end(error: BaseException, command: Command) -> int:
    """Prints on stderr what ended one process of several, and returns its exit status."""
    import torch.distributed as dist

    from fewstep.parallel.processes import OTHER_GONE

    if isinstance(error, StoppedError):
        print(f"\nfewstep: {error}", file=sys.stderr)
        return 128 + error.number
    if isinstance(error, UserError):
        print(f"fewstep: error: {show(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        print(f"fewstep: error: {' '.join(_describe_refusal(error, command).split())}", file=sys.stderr)
        return 2
    if isinstance(error, KeyboardInterrupt):
        print(f"\n{_describe_stop(command)}", file=sys.stderr)
        return 130
    between = isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL"))
    if between or isinstance(error, dist.DistError):
        text = " ".join(str(error).split())
        if any(sign in text for sign in _SIGNS_OF_A_LOST_PROCESS):
            print(f"fewstep: another process has gone ({show(text)})", file=sys.stderr)
            return OTHER_GONE
        print(f"fewstep: error: the processes cannot talk to one another: {show(text)}", file=sys.stderr)
        return 1
    traceback.print_exception(error)
    return 1


def _fail(message: str) -> NoReturn:
    print(f"fewstep: error: {show(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(2)
