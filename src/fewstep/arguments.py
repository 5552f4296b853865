"""Reads a command's options from the command line, and writes their help.

An option is a field of a configuration dataclass, and its help the docstring under the field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fewstep.errors import UserError, find_nearest
from fewstep.helping import is_positional, read_all_help, read_summary, spell, write_help
from fewstep.recipes.given import name_as_given

if typing.TYPE_CHECKING:
    from tyro.constructors import StructConstructorSpec, StructFieldSpec, StructTypeInfo

_FIRST = ("path", "recipe", "prompt", "model", "teacher", "base", "lora", "base_config", "data", "out")
"""Options that stand first in every command's help: what it reads and writes."""
_UNSET = ("", "''", "None")
"""Defaults, as tyro prints them, of options that mean nothing until they are given."""


_MEANINGS = {
    "cfg cfg_scale scale guidance w omega": "guidance_scale guidance_range",
    "ckpt checkpoint model_path model_id pretrained_model_name_or_path pretrained base_model m": "model teacher base",
    "output output_dir output_path outdir dir folder o save save_dir": "out",
    "n num number images num_images num_pictures amount samples": "count n pictures",
    "dataset data_dir dataset_name train_data_dir images_dir image_folder instance_data_dir input": "data",
    "learning_rate": "lr",
    "lr_scheduler scheduler": "lr_decay sampler",
    "max_train_steps train_steps iterations num_steps num_train_steps max_steps epochs num_train_epochs updates":
        "updates steps",
    "train_batch_size bs batch": "batch_size",
    "gradient_accumulation_steps gradient_accumulation grad_accum": "accumulation",
    "rank network_dim r": "lora_rank",
    "alpha network_alpha": "lora_alpha",
    "fp16 bf16 half dtype mixed_precision torch_dtype": "precision",
    "gpu gpus cuda cpu": "device processes",
    "threads num_workers dataloader_num_workers": "workers read_ahead",
    "negative neg neg_prompt n_prompt": "negative_prompt",
    "text p caption": "prompt",
    "image img init img2img input_image": "init_image",
    "denoise denoising denoising_strength": "strength",
    "lora_path lora_weights adapter": "lora",
    "random_seed s": "seed",
    "ema": "ema_decay",
    "low_vram lowvram medvram cpu_offload": "offload",
    "save_every save_steps checkpointing_steps": "checkpoint_every",
    "validation_steps": "sample_every eval_every",
    "center_crop": "crop",
    "listen": "host",
}  # fmt: skip
"""Words that other tools say, by the options that mean the same; the first that a command has is suggested."""
_SAID_INSTEAD = {
    "width height size w h aspect image_size": ("resolution", "a model paints at the size that it was trained at"),
    "resume resume_from_checkpoint continue": ("", "the same command again goes on where a run stopped"),
    "verbose v debug quiet q": ("", "what is said is neither more nor less"),
    "force overwrite yes y": ("", "nothing is overwritten; give another --out"),
    "config": ("", "the config.yaml of an earlier run is the first word of a training"),
    "token hub_token use_auth_token": ("", "the Hub's own client keeps the token: `hf auth login`"),
}
"""Words that no option stands for, with what helps: an option if the command has it, and a sentence."""


def parse_arguments(
    default: Any, arguments: list[str], program: str, recipe: str = "", description: str | None = None, lone: str = ""
) -> Any:  # fmt: skip
    """Returns `default` with the options of the command line; words that belong to none are the option `lone`'s, if it
    is given. Raises UserError of one line for any mistake."""
    import tyro

    if asked := {"-h", "--help", "--help-all"} & set(arguments):
        head = description or read_summary(type(default))
        print(write_help(default, program, head, whole="--help-all" in asked))
        raise SystemExit(0)
    written = arguments
    arguments = [_rename(type(default), word) for word in written]
    registry = tyro.constructors.ConstructorRegistry()
    registry.struct_rule(list_options)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), name_as_given(type(default), written):
            parsed, unknown = tyro.cli(
                type(default), default=default, args=arguments, prog=program + recipe, description=description,
                registry=registry, return_unknown_args=True,
            )  # fmt: skip
    except SystemExit as stop:
        # First what is no option: its value stands where a word alone would, and was taken for that.
        if (refused := _find_refused(type(default), arguments)) is not None:
            raise _refuse_option(type(default), program, refused) from stop
        said = _join_lines(box.getvalue())
        for own, other in zip(arguments, written, strict=True):
            if own != other:  # as it was given
                said = re.sub(rf"{re.escape(own.split('=')[0])}(?![\w-])", other.split("=")[0], said)
        raise UserError(f"{said}; `{program} --help` lists the options") from stop
    if not unknown:
        return parsed
    option = next((word for word in unknown if word.startswith("-")), None)
    if option is None and lone:
        # Several words without a space among them are one text that somebody forgot to quote.
        texts = unknown if any(" " in word for word in unknown) else [" ".join(unknown)]
        return dataclasses.replace(parsed, **{lone: (*getattr(parsed, lone), *texts)})
    if option is None:
        # A folder or file that stands alone is meant as the model, as `inspect` and `publish` take it.
        takes_model = "model" in _list_names(type(default), alone=False)
        hint = f"did you mean --model {unknown[0]}? " if takes_model and Path(unknown[0]).exists() else ""
        raise UserError(f"{unknown[0]!r:.60} belongs to no option; {hint}`{program} --help` lists the options")
    raise _refuse_option(type(default), program, option)


def _find_refused(kind: type, arguments: Sequence[str]) -> str | None:
    """Returns the first word that looks like an option and is none of a command's."""
    known = {name.removeprefix("no_") for name in _list_names(kind, alone=False)}
    words = (word for word in arguments if re.match(r"--[a-z]", word))
    return next((word for word in words if _name(word).removeprefix("no_") not in known), None)


def _name(option: str) -> str:
    return option.split("=", maxsplit=1)[0].removeprefix("--").replace("-", "_")


def _list_names(kind: type, *, alone: bool) -> list[str]:
    """Returns a command's options as Python has them, or those that stand alone, without their names."""
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind) if is_positional(hints[field.name]) is alone]
    return names if alone else [*getattr(kind, "also_named", {}), *names]


def _refuse_option(kind: type, program: str, option: str) -> UserError:
    given = option.split("=", maxsplit=1)[0].replace("_", "-")
    if _name(option) in _list_names(kind, alone=True):
        return UserError(f"{given} of `{program}` is a word by itself: give it without {given} before it")
    names = _list_names(kind, alone=False)
    return UserError(f"{given} is not an option of `{program}`{suggest_option(given, names)}")


def _rename(kind: type, word: str) -> str:
    """Returns an option under its own name, where it is given by another of `also_named`, or by the one that it had."""
    option, equals, value = word.partition("=")
    name = option.removeprefix("--") if option.startswith("--") else ""
    own: str | None = getattr(kind, "also_named", {}).get(name)
    if now := getattr(kind, "formerly", {}).get(name):
        own = now
        note = f"note: {option} is called {spell(now)} now; the next version does not take the old name"
        print(note, file=sys.stderr, flush=True)
    return word if own is None else f"{spell(own)}{equals}{value}"


def find_option(arguments: list[str], name: str) -> str:
    """Returns what the command line gives an option, before anything is parsed; empty where it does not.

    The recipe, whose values are the defaults of all others, depends on it.
    """
    value = ""
    for word, after in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        option, equals, given = word.partition("=")
        if option.replace("_", "-") == f"--{name}":
            value = given if equals else after
    return value


def suggest_nearest(given: str, known: list[str], alike: float = 0.5) -> str:
    """Returns `; did you mean …?` for a word that is nearly one of those known, else nothing."""
    close = find_nearest(given, known, alike)
    return f"; did you mean {close}?" if close else ""


def suggest_option(given: str, names: Sequence[str]) -> str:
    """Returns `; did you mean --…?` or the like for what is no option of a command, by meaning before spelling.

    `names` are the command's own, as Python has them.
    """
    word = given.strip("-").replace("-", "_")
    if said := next((said for words, said in _SAID_INSTEAD.items() if word in words.split()), None):
        option = "" if said[0] not in names else f"; give --{said[0]}"
        return f": {said[1]}{option}"
    meant = next((means for words, means in _MEANINGS.items() if word in words.split()), "").split()
    for name in meant:
        if name in names:
            return f"; did you mean --{name.replace('_', '-')}?"
    return suggest_nearest(given, [f"--{name.replace('_', '-')}" for name in names], 0.7)


def list_options(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Lists a dataclass's options for tyro: what it reads and writes, then its own, then those of its base classes.

    tyro itself would begin with the base classes, and break a docstring's lines where its source does.
    """
    from tyro.constructors import StructConstructorSpec

    if not dataclasses.is_dataclass(info.type) or not dataclasses.is_dataclass(info.default):
        return None
    hints = typing.get_type_hints(info.type, include_extras=True)
    texts = read_all_help(info.type)
    names = sorted(texts, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    options = tuple(_make_option(name, hints[name], getattr(info.default, name), texts[name]) for name in names)
    return StructConstructorSpec(instantiate=typing.cast(Callable[..., Any], info.type), fields=options)


def _make_option(name: str, hint: Any, default: Any, text: str) -> StructFieldSpec:
    import tyro

    hint = Annotated[hint, tyro.conf.arg(help_behavior_hint=_note_default)]
    kinds = [kind for kind in typing.get_args(typing.get_args(hint)[0]) if kind is not type(None)]
    if default is None and len(kinds) == 1:  # tyro would print that None too
        choices = ("True", "False") if kinds[0] is bool else typing.get_args(kinds[0])
        metavar = f"{{{','.join(map(str, choices))}}}" if choices else kinds[0].__name__.upper()
        hint = Annotated[hint, tyro.conf.arg(metavar=metavar)]
    return tyro.constructors.StructFieldSpec(name=name, type=hint, default=default, helptext=text)


def _note_default(default: str) -> str:
    return "" if default in _UNSET else f"(default: {default})"


def _join_lines(box: str) -> str:
    """Returns tyro's boxed message as one line: what stands between its title and its hints."""
    lines = [line.strip(" │|╭╮╰╯├┤─-") for line in box.splitlines()]
    lines = [line for line in lines if line][1:]
    hints = ("Perhaps you meant", "Argument helptext", "For full helptext", "Similar arguments")
    end = next((i for i, line in enumerate(lines) if line.startswith(hints)), len(lines))
    return _in_words(" ".join(lines[:end])).rstrip(".") or "these options cannot be read"


def _in_words(line: str) -> str:
    """Returns what tyro and Python say of a value as people's words."""
    line = re.sub(r"Error parsing (\S+?/)?(--[\w-]+): ", r"\2: ", line)
    line = re.sub(r"no type matching .*<class '\w+'>: ", "", line)
    line = re.sub(r"invalid literal for int\(\) with base 10: ('.*?')", r"\1 is not a whole number", line)
    line = re.sub(r"could not convert string to float: ('.*?')", r"\1 is not a number", line)
    line = re.sub(r"Could not find valid parse for arguments: \['(.*?)'.*\]", r"'\1' is not what it takes", line)
    line = re.sub(r"Could not parse arguments \[(.*?)\] into .*", r"\1 are not the numbers that it takes", line)
    line = re.sub(r"[Ii]nvalid choice '(.*?)' for argument '(.*?)'\. Expected one of \((.*?),?\)", _say_choice, line)
    return re.sub(r"Missing value for argument '(.*?)'\. Expected (\S+) values", _say_missing, line)


def _say_choice(found: re.Match[str]) -> str:
    return f"{found[2].split('/')[-1]} is '{found[1]}'; allowed: {found[3].replace(chr(39), '')}"


def _say_missing(found: re.Match[str]) -> str:
    name = found[1].split("/")[-1]
    return f"{name} needs a value" if found[2] == "1" else f"{name} needs {found[2]} values"
