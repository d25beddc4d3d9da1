"""The command: flags -> config -> one task.

    python -m emcid_jax.main --config=configs/quickstart.py --workdir=runs/quickstart \
        --config.stage_one.steps=50
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from emcid_jax import config as settings
from emcid_jax.runtime import preemption
from emcid_jax.runtime.errors import UserError

TASKS = (
    "edit",
    "train_sprites",
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
    "layer_pairs",
    "trace",
    "implicit",
    "quality",
)
DISTRIBUTED_TASKS = ("edit",)
USAGE = """\
usage: python -m emcid_jax.main --config=FILE.py [--workdir=FOLDER] [--config.FIELD=VALUE ...]

  --config    a Python file whose get_config() returns the settings, e.g. configs/quickstart.py
  --workdir   where the run leaves its results; the same folder again resumes the run.
              Default: runs/<name of the config file>

Settings of the main job (task `edit`), with their defaults:
"""

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run's results.")


def main(arguments: list[str]) -> int:
    """Runs the task that the config names.

    Returns the exit code: 0, 2 for a mistake of the user, 130 for an interruption, 143 for SIGTERM.
    """
    del arguments
    distributed = False
    try:
        with preemption.heeded():
            values = _read_config()
            run = values.get("base", values).get("run", {})  # A sweep's is that of its base.
            distributed = bool(run.get("distributed"))
            _run_task(values, distributed, run.get("cpu_devices", 1))
        return 0
    except UserError as error:
        code = _fail(str(error))
    except (KeyboardInterrupt, preemption.Preempted) as stop:
        told = isinstance(stop, preemption.Preempted)
        name = "stopped by SIGTERM" if told else "interrupted"
        print(f"{name}; the same command goes on from here", file=sys.stderr)  # noqa: T201
        return preemption.EXIT_CODE if told else 130
    except Exception:
        if not distributed:
            raise
        traceback.print_exc()
        code = 1
    if distributed:  # The other processes are not coming: an orderly end would wait for them.
        sys.stderr.flush()
        os._exit(code)
    return code


def _run_task(values: dict[str, Any], distributed: bool, cpu_devices: int) -> None:
    """UserError for a mistake in the settings or in what they name."""
    name = values.get("task")
    if name not in TASKS:
        raise UserError(f"config.task is {name!r}; allowed: {', '.join(TASKS)}")
    if distributed and name not in DISTRIBUTED_TASKS:
        raise UserError(
            f"config.run.distributed is True, but task {name} runs as one process; leave it out"
        )
    task = importlib.import_module(f"emcid_jax.tasks.{name}")
    config = settings.from_config_dict(values, task.Config)
    workdir = Path(_WORKDIR.value or _default_workdir())
    from emcid_jax.runtime import parallel

    parallel.use_cpu_devices(cpu_devices)
    if not distributed:
        task.run(config, workdir)
        return
    from emcid_jax.workflow.workdir import mirrored

    parallel.start()
    shown = config.run.progress and parallel.is_first()
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, progress=shown))
    with mirrored(workdir) as mine:
        task.run(config, mine)


def run() -> None:
    """Entry point of the console script."""
    app.run(main, flags_parser=_parse_flags)


def _read_config() -> dict[str, Any]:
    """What the config file and the overrides say; UserError without a readable file."""
    if _CONFIG.value is None:
        raise UserError("--config is missing; e.g. --config=configs/quickstart.py")
    try:
        return _CONFIG.value.to_dict()
    except OSError as error:  # The flag keeps a failure to load until its first use.
        name = config_flags.get_config_filename(flags.FLAGS["config"])
        reason = str(error.__cause__).split("]: ")[-1].splitlines()[-1].strip()
        raise UserError(f"--config is {name!r}, which cannot be read: {reason}") from error


def _default_workdir() -> Path:
    """`runs/<stem of the config file>`."""
    return Path("runs") / Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def _parse_flags(arguments: list[str]) -> list[str]:
    """absl's parsing, with our help and every mistake as one line and exit code 2."""
    if {"--help", "-help", "-h", "--helpfull"}.intersection(arguments[1:]):
        print(USAGE + settings.describe(settings.EditConfig))  # noqa: T201
        sys.exit(0)
    try:
        rest = flags.FLAGS(arguments)
    except (AttributeError, KeyError) as error:  # ConfigDict's answer to an unknown field.
        sys.exit(_fail(_unknown_setting(arguments, str(error.args[0]))))
    except (flags.Error, TypeError, ValueError, OSError) as error:
        sys.exit(_fail(" ".join(str(error).split())))
    if rest[1:]:
        sys.exit(_fail(f"unexpected argument {rest[1]!r}; settings are --config.FIELD=VALUE"))
    if not flags.FLAGS["verbosity"].present:  # absl's default shows what libraries tell themselves.
        logging.set_verbosity(logging.WARNING)
    return rest


def _unknown_setting(arguments: list[str], message: str) -> str:
    """ConfigDict's message quotes only the last name; this gives the whole one."""
    given = [a.partition("=")[0].lstrip("-") for a in arguments if a.startswith("--config.")]
    words = set(re.findall(r"\w+", message))
    field = next((name for name in given if words & set(name.split(".")[1:])), "a setting")
    hint = re.search(r'Did you mean "(\w+)"', message)
    return f"{field} is unknown" + (f"; did you mean {hint[1]}?" if hint else "; see --help")


def _fail(message: str) -> int:
    """The message on stderr, exit code 2. Problems of a manifest are a line each."""
    print(f"error: {message}", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    run()
