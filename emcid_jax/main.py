"""The command: flags -> config -> one task.

    python -m emcid_jax.main --config=configs/quickstart.py --workdir=runs/quickstart \
        --config.stage_one.steps=50
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import tuple_parser

from emcid_jax import config as settings
from emcid_jax.config import bundled, renamed
from emcid_jax.runtime import preemption, system_errors, terminal
from emcid_jax.runtime.errors import UserError

TASKS = (
    "edit",
    "train_sprites",
    "train_sprites_xl",
    "measure_sprites",
    "ablate",
    "bank",
    "edit_file",
    "sample",
    "convert",
    "plan",
    "text_report",
    "evaluate",
    "sequential",
    "layer_ranges",
    "trace",
    "implicit",
    "quality",
)
DISTRIBUTED_TASKS = (
    "edit",
    "ablate",
    "evaluate",
    "layer_ranges",
    "sequential",
    "trace",
    "implicit",
    "sample",
    "quality",
)
USAGE = """\
usage: python -m emcid_jax.main --config=CONFIG [--workdir=FOLDER] [--config.FIELD=VALUE ...]
       python -m emcid_jax.main configs
       python -m emcid_jax.main explore RUN [--port=PORT]

  configs     lists the configs that come with the package
  explore     serves a page on this machine: prompts drawn by base and edited model, concepts
              switched on and off. RUN is the workdir of a finished edit
  --config    a bundled config's name, or a Python file or module whose get_config() returns the
              settings, e.g. quickstart or configs/quickstart.py
  --workdir   where the run leaves its results; the same folder again resumes the run.
              Default: runs/<name of the config file>

Settings of the main job (task `edit`), with their defaults:
"""

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_CONFIG_FLAGS = ("--config", "-config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run's results.")


def main(arguments: list[str]) -> int:
    """Runs the task that the config names.

    Returns the exit code: 0, 2 for a mistake of the user or what the machine refuses (one line on
    stderr says what to do), 130 for an interruption, 143 for SIGTERM.
    """
    del arguments
    terminal.guard()
    distributed = False
    try:
        with preemption.heeded():
            task, config, run = _read_task(_read_config())
            distributed = run.distributed
            _run_task(task, config, run)
        return 0
    except (Exception, KeyboardInterrupt, preemption.Preempted) as error:
        code = answer(error, _place())
        if code is None:
            if not distributed:
                raise
            traceback.print_exc()
            code = 1
    if distributed:  # The other processes are not coming: an orderly end would wait for them.
        sys.stderr.flush()
        os._exit(code)
    return code


def answer(error: BaseException, place: str) -> int | None:
    """Prints, as one line on stderr, why a run ended; gives the exit code.

    This is the one door: whatever the user or the machine can cause leaves through it. None, with
    nothing printed, for what remains: a mistake in the code, whose traceback is wanted.

    Args:
        error: what ended the run.
        place: where it wrote, named if the system does not say which file it refused.
    """
    if isinstance(error, KeyboardInterrupt | preemption.Preempted):
        stopped = isinstance(error, preemption.Preempted)
        name = "stopped by SIGTERM" if stopped else "interrupted"
        terminal.show(f"{name}; the same command goes on from here", sys.stderr)
        return preemption.EXIT_CODE if stopped else 130
    if isinstance(error, BrokenPipeError):  # Whoever read our output has seen enough.
        return 128 + signal.SIGPIPE
    if isinstance(error, UserError):
        return _fail(str(error))
    line = system_errors.explained(error, place)
    return None if line is None else _fail(line)


def _read_task(values: dict[str, Any]) -> tuple[ModuleType, Any, settings.RunConfig]:
    """The task, its settings, and those of its run, which a sweep has in its base.

    UserError for a mistake in them.
    """
    name = values.get("task")
    if name in renamed.TASKS:
        raise UserError(f"config.task is {name!r}, which is now called {renamed.TASKS[name]!r}")
    if name not in TASKS:
        raise UserError(f"config.task is {name!r}; allowed: {', '.join(TASKS)}")
    task = importlib.import_module(f"emcid_jax.tasks.{name}")
    config = settings.from_config_dict(values, task.Config)
    settings.refuse_unread(config, getattr(task, "UNREAD", ()), name)
    whole = config if hasattr(config, "run") else getattr(config, "base", None)
    run = getattr(whole, "run", settings.RunConfig(compile_cache=False))
    if run.distributed and name not in DISTRIBUTED_TASKS:
        raise UserError(
            f"config.run.distributed is True, but task {name} runs as one process; leave it out "
            f"(tasks that take it: {', '.join(DISTRIBUTED_TASKS)})"
        )
    return task, config, run


def _run_task(task: ModuleType, config: Any, run: settings.RunConfig) -> None:
    """UserError for a mistake in what the settings name."""
    workdir = Path(_WORKDIR.value or _default_workdir())
    from emcid_jax.runtime import parallel
    from emcid_jax.workflow import environment
    from emcid_jax.workflow.workdir import mirrored

    parallel.use_cpu_devices(run.cpu_devices)
    if run.compile_cache:
        environment.use_compile_cache()
    if not run.distributed:
        task.run(config, workdir)
    else:
        parallel.start()
        with mirrored(workdir, run.mirror) as mine:
            task.run(config, mine)
        if not parallel.is_first():
            return
    if hasattr(task, "LOOK"):  # Other tasks say themselves where to look.
        terminal.show(f"open {workdir / task.LOOK}")


def run() -> None:
    """Entry point of the console script."""
    try:
        app.run(main, flags_parser=_parse_flags)
    except OSError as error:  # The help or a mistake could not be printed.
        code = answer(error, "the terminal")
        if code is None:
            raise
        sys.exit(code)


def _read_config() -> dict[str, Any]:
    """What the config file and the overrides say; UserError without a readable file."""
    if not flags.FLAGS["config"].present:
        raise UserError("--config is missing; e.g. --config=quickstart (`configs` lists them all)")
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    try:
        values = _CONFIG.value
        if isinstance(values, ConfigDict):
            return values.to_dict()
        getattr(values, "task", None)  # The flag keeps a failure to load until its first use.
    except OSError as error:
        reason = str(error.__cause__).split("]: ")[-1].splitlines()[-1].strip()
        raise UserError(f"--config is {name!r}, which cannot be read: {reason}") from error
    raise UserError(
        f"--config is {name!r}, whose get_config() gives {type(values).__name__}; return an "
        "ml_collections.ConfigDict, as configs/quickstart.py does"
    )


def _place() -> str:
    """The workdir as the user knows it."""
    try:
        return f"--workdir {str(_WORKDIR.value or _default_workdir())!r}"
    except (AttributeError, TypeError, flags.Error):  # The config was not read.
        return "--workdir"


def _default_workdir() -> Path:
    """`runs/<stem of the config file>`."""
    return Path("runs") / Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


class _Tuples(tuple_parser.TupleParser):
    """Takes what looks like a tuple, a list or one value, and nothing else that can be iterated."""

    def parse(self, argument: Any) -> tuple[Any, ...]:
        """ValueError for bytes, sets and the like."""
        if isinstance(argument, str):
            try:
                value = ast.literal_eval(argument)
            except (SyntaxError, ValueError):
                value = argument
            if not isinstance(value, tuple | list | str | int | float):
                raise ValueError(f"{argument!r} is no tuple; write e.g. (1, 2) or ('a', 'b')")
        return super().parse(argument)


config_flags.register_flag_parser_for_type(tuple, _Tuples())


def _parse_flags(arguments: list[str]) -> list[str]:
    """absl's parsing, with our help and every mistake as one line and exit code 2."""
    terminal.guard()
    if arguments[1:2] == ["explore"]:
        sys.exit(_explore(arguments[2:]))
    if {"--help", "-help", "-h", "--helpfull"}.intersection(arguments[1:]):
        terminal.show(USAGE + settings.describe(settings.EditConfig))
        sys.exit(0)
    if arguments[1:] == ["configs"]:
        terminal.show(bundled.table())
        sys.exit(0)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        arguments = _with_files(arguments)
        rest = flags.FLAGS(arguments)  # Runs the config file, whose folder stays as it is.
    except UserError as error:
        sys.exit(_fail(str(error)))
    except Exception as error:  # The user's config file is code, and may do anything.
        sys.exit(_fail(_mistake(arguments, error)))
    finally:
        sys.dont_write_bytecode = writes
    if rest[1:]:
        sys.exit(_fail(f"unexpected argument {rest[1]!r}; settings are --config.FIELD=VALUE"))
    if not flags.FLAGS["verbosity"].present:  # absl's default shows the messages of libraries.
        logging.set_verbosity(logging.WARNING)
    return rest


def _explore(arguments: list[str]) -> int:
    """Serves the page of a run; gives the exit code, as `main` does."""
    from emcid_jax.explore import command

    try:
        command.run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        code = answer(error, "explore")
        if code is None:
            raise
        return code
    return 0


def _with_files(arguments: list[str]) -> list[str]:
    """`--config=NAME` and `--config NAME` as `--config=FILE`. UserError if nothing is meant."""
    left, found = iter(arguments), []
    for argument in left:
        flag, equals, name = argument.partition("=")
        if flag in _CONFIG_FLAGS and (name := name if equals else next(left, "")):
            argument = f"{flag}={bundled.find(name)}"
        found.append(argument)
    return found


def _mistake(arguments: list[str], error: Exception) -> str:
    """One line for what is wrong with the config file or with what overrides it."""
    given = [a for a in arguments if a.startswith(("--config=", "-config="))]
    file = given[-1].partition("=")[2] if given else ""
    where = _in_file(error, file.split(":")[0])
    if where:
        return f"--config is {file!r}, which is no working config file: {where}"
    if isinstance(error, AttributeError) and "get_config" in str(error):
        return f"--config is {file!r}, which has no get_config(); see configs/quickstart.py"
    if isinstance(error, AttributeError | KeyError):  # ConfigDict's answer to an unknown field.
        return _unknown_setting(arguments, str(error.args[0]))
    if isinstance(error, flags.Error | TypeError | ValueError | OSError):
        return " ".join(str(error).split())
    overrides = [a for a in arguments if a.startswith(("--config.", "-config."))]
    name, _, value = _culprit(overrides).partition("=")
    shown = value if len(value) <= 60 else f"{value[:60]}..."
    return f"{name.lstrip('-')} cannot be set to {shown!r}: {_reason(error)}; see --help"


def _in_file(error: BaseException | None, file: str) -> str:
    """Line and reason, if the error was raised in `file` or says that it is no Python."""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if file and frame.filename == file]
        if isinstance(error, SyntaxError) and "literal_eval" not in {f.name for f in frames}:
            return f"line {error.lineno or 1}: {_reason(error)}"
        if lines:
            return f"line {lines[-1]}: {_reason(error)}"
        error = error.__cause__ or error.__context__
    return ""


def _culprit(overrides: list[str]) -> str:
    """The override whose name or value nobody can read; else the last."""
    for override in overrides:
        name, _, value = override.partition("=")
        if not re.fullmatch(r"-{1,2}config(\.\w+)+", name):
            return override
        try:
            ast.parse(value, mode="eval")
        except SyntaxError:
            pass  # Text.
        except (MemoryError, RecursionError, ValueError):
            return override
    return overrides[-1] if overrides else "a setting"


def _reason(error: BaseException) -> str:
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    lines = said.strip().splitlines()
    if not lines:
        return type(error).__name__
    said = f"{type(error).__name__}: {lines[-1].strip()}"
    return renamed.explained(said) if isinstance(error, TypeError | AttributeError) else said


def _unknown_setting(arguments: list[str], message: str) -> str:
    """ConfigDict's message quotes only the last name; this gives the whole one."""
    given = [a.partition("=")[0].lstrip("-") for a in arguments if a.startswith("--config.")]
    words = set(re.findall(r"\w+", message))
    field = next((name for name in given if words & set(name.split(".")[1:])), "a setting")
    if new := renamed.new_name(field):
        return f"{field} is now called {new}"
    hint = re.search(r'Did you mean "(\w+)"', message)
    return f"{field} is unknown" + (f"; did you mean {hint[1]}?" if hint else "; see --help")


def _fail(message: str) -> int:
    """The message on stderr, exit code 2. Problems of a manifest are a line each."""
    with contextlib.suppress(OSError):  # Without a terminal there is no place for the message.
        terminal.show(f"error: {message}", sys.stderr)
    return 2


if __name__ == "__main__":
    run()
