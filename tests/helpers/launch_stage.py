"""A PATH with stand-ins for gcloud, kubectl, Slurm and git, which note what scripts ask of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Notes its arguments; says the next of STATES when asked for the state, where "-" is for nothing
# there and "+" for several VMs; fails as often as asked.
STAND_IN = """#!{python} -IS
import json, os, sys
from pathlib import Path

name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
notes = Path(os.environ["NOTES"])
if "apply" in arguments:
    arguments.append(sys.stdin.read())
with notes.open("a") as file:
    file.write(json.dumps([name, *arguments]) + "\\n")
if name == "git":
    Path(arguments[2]).write_text(" ".join(arguments))
if "--format=value(state)" in arguments or "--format=value(instanceStatus)" in arguments:
    states = Path(os.environ["STATES"])
    left = states.read_text().split()
    states.write_text(" ".join(left[1:] or left))
    if left[0] == "-":
        sys.exit(1)
    print(left[0].replace("+", "\\n"))
if "--format=value(instance.basename())" in arguments:
    sys.stdout.writelines(vm + "\\n" for vm in os.environ["VMS"].split())
failures = Path(os.environ.get("FAILURES", os.devnull)).read_text().split()
if "ssh" in arguments and "emcid_jax.main" in arguments[-1] and failures:
    Path(os.environ["FAILURES"]).write_text(" ".join(failures[1:]))
    sys.exit(int(failures[0]))
"""


class Stage:
    """A PATH with stand-ins, and what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name in ("gcloud", "git", "kubectl", "sbatch", "srun", "scontrol"):
            (folder / "bin" / name).write_text(STAND_IN.format(python=sys.executable))
            (folder / "bin" / name).chmod(0o755)

    def run(
        self, script: str, *arguments: str, states: str = "READY", failures: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        (self.folder / "states").write_text(states)
        (self.folder / "failures").write_text(failures)
        environment = os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "NOTES": str(self.folder / "notes"),
            "STATES": str(self.folder / "states"),
            "FAILURES": str(self.folder / "failures"),
            "TMPDIR": str(self.folder),
            "VMS": "emcid-1",
            "PAUSE": "0",
            **more,
        }
        command = [str(ROOT / "launch" / script), *arguments]
        return subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, check=False
        )

    def asked(self) -> list[list[str]]:
        """What was asked so far, but for git and looks at the state."""
        notes = self.folder / "notes"
        calls = [json.loads(line) for line in notes.read_text().splitlines()]
        looks = {"describe", "list-instances"}
        return [call for call in calls if not looks & {*call} and call[0] != "git"]

    def asked_by(self, commands: str) -> list[list[str]]:
        """What is asked by commands that a dry run printed."""
        (self.folder / "notes").unlink()
        (self.folder / "failures").write_text("")
        places = {name.upper(): str(self.folder / name) for name in ("notes", "failures")}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environment = os.environ | places | {"PATH": path}
        subprocess.run(["bash", "-c", commands], env=environment, cwd=self.folder, check=True)
        return self.asked()


def verbs(calls: list[list[str]]) -> list[str]:
    """The word of each gcloud call that says what to do."""
    words = ("create", "delete", "scp", "ssh", "rsync")
    return [next(word for word in words if word in call) for call in calls]
