"""A real browser, driven: Chromium over the pipe of its DevTools protocol, without a library."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
PIPES = (3, 4)
"""Numbers of the browser's files for commands and answers, as its flag wants them."""


class Page:
    """One page of the browser."""

    def __init__(self, commands: Any, answers: Any) -> None:
        self._commands, self._answers = commands, answers
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._loaded = 0
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.send("Page.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """What the browser answers."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        self._commands.write(json.dumps(command).encode() + b"\0")
        self._commands.flush()
        while (answer := self._read()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        """The next answer or event. Of events only how often a page was loaded is kept."""
        found = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            found += byte
        message = json.loads(found)
        self._loaded += message.get("method") == "Page.loadEventFired"
        return message

    def open(self, address: str) -> None:
        """Loads the address, to the end."""
        before = self._loaded
        self.send("Page.navigate", url=address)
        while self._loaded == before:
            self._read()

    def tell(self, script: str) -> Any:
        """The value of a script; promises are waited for."""
        answer = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until the condition holds, a minute at most."""
        tries = f"""(async () => {{
          for (let tries = 0; tries < 1200; tries++) {{
            if ({condition}) return true;
            await new Promise((done) => setTimeout(done, 50));
          }}
          return false;
        }})()"""
        assert self.tell(tries), condition

    def picture(self, width: int, height: int) -> bytes:
        """What the page looks like, as a PNG file's bytes."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        return base64.b64decode(self.send("Page.captureScreenshot")["data"])


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """An empty page in a browser of its own, which ends with the block."""
    to_browser, from_browser = os.pipe(), os.pipe()
    inside, outside = (to_browser[0], from_browser[1]), (to_browser[1], from_browser[0])
    command = [CHROMIUM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    # The shell gives the pipes the numbers that the flag wants, whatever they are here.
    shell = f'exec "$@" {PIPES[0]}<&{inside[0]} {PIPES[1]}>&{inside[1]}'
    with (
        subprocess.Popen(
            ["bash", "-c", shell, "browser", *map(str, command)],
            pass_fds=inside,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process,
        open(outside[0], "wb") as commands,
        open(outside[1], "rb") as answers,
    ):
        for file in inside:
            os.close(file)
        try:
            yield Page(commands, answers)
        finally:
            process.kill()
