"""The page over HTTP: who may ask, what is answered, and the page at work in a real browser."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from browser import CHROMIUM, Page, browsing
from emcid_jax.explore import server
from emcid_jax.explore.server import make_app
from emcid_jax.explore.session import Session
from emcid_jax.explore.studio import Studio

HOME = "http://127.0.0.1:8321"
ASKED = {"prompt": "A photo of dog", "strengths": [1, 1, 1], "seeds": [0], "steps": 2}


@pytest.fixture(scope="module")
def client(session: Session) -> TestClient:
    return TestClient(make_app(session), base_url=HOME)


def test_names_are_text_and_nothing_comes_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "3 concepts" in page.text
    assert "&lt;b onload=alert(1)&gt;snow" in page.text
    assert "<b onload" not in page.text
    for text in (page.text, *(client.get(f"/page/{name}").text for name in server.PARTS)):
        assert not re.findall(r"(?:https?:)?//\w|@import|url\(", text)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("index.html", "nothing", "..%2fserver.py"):
        assert client.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example:8321"}, 400),  # A name that was bound to this machine since.
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),  # Another program's page on this machine.
        ({"origin": "null"}, 403),
        ({"content-type": "text/plain"}, 400),  # What a form may send without being asked.
        ({"origin": HOME}, 200),
        ({"host": "localhost:8321", "origin": "http://localhost:8321"}, 200),
    ],
)
@pytest.mark.parametrize("path", ["/read", "/draw"])
def test_only_the_page_itself_may_ask(
    client: TestClient, path: str, headers: dict[str, str], status: int
) -> None:
    headers = {"content-type": "application/json"} | headers
    found = client.post(path, content=json.dumps(ASKED), headers=headers)
    assert found.status_code == status, found.text
    assert ("tokens" in found.text or "picture" in found.text) is (status == 200)


def test_mistakes_are_told_and_bugs_are_not(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, content, words in (
        ("/read", {**ASKED, "prompt": "dog " * 40}, "prompt has 42 tokens, but the model reads 32"),
        ("/read", {**ASKED, "strengths": [1]}, "strengths are 1, but the bank has 3 concepts"),
        ("/draw", {**ASKED, "seeds": []}, "seeds are 0; give 1 to 16"),
        ("/draw", {**ASKED, "prompt": "dog " * 40}, "prompt has 42 tokens, but the model reads 32"),
        ("/draw", {**ASKED, "strengths": [1]}, "strengths are 1, but the bank has 3 concepts"),
    ):
        found = client.post(path, json=content)
        assert words in found.json()["error"]
    for content in (b"[1]", b"{", b"\xff", b"[" * 100_000, b" " * 1_000_001):
        found = client.post("/read", content=content, headers={"content-type": "application/json"})
        assert found.status_code == 400
        assert "question" in found.json()["error"]
    monkeypatch.setattr(Studio, "read", lambda *_: 1 / 0)
    told = client.post("/read", json=ASKED).json()["error"]
    assert told == "this should not happen; the terminal says more"
    assert "ZeroDivisionError" in capsys.readouterr().err


@contextlib.contextmanager
def served(session: Session) -> Iterator[str]:
    """The page on a free port of this machine."""
    door = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(make_app(session), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=running.run, args=([door],))
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{door.getsockname()[1]}/"
    finally:
        running.should_exit = True
        thread.join()


def shown(page: Page) -> list[Any]:
    """The pictures, once all is drawn."""
    page.wait("!document.body.classList.contains('busy')")
    assert page.tell("document.getElementById('error').textContent") == ""
    return page.tell("[...document.querySelectorAll('#pictures img')].map((one) => one.src)")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_chromium_types_draws_and_switches(session: Session, tmp_path: Path) -> None:
    click = "document.querySelector({}).click()".format
    dog = """'li[data-name="dog"] input[type=checkbox]'"""
    with served(session) as address, browsing(tmp_path / "profile") as page:
        page.open(address)
        assert shown(page) == []
        page.tell("document.getElementById('prompt').select()")
        page.send("Input.insertText", text="A photo of dog")
        page.tell("document.getElementById('seeds').value = '4, 7'")
        page.tell(click("'#draw'"))
        before = shown(page)
        assert len(set(before)) == 4
        assert page.tell("[...document.images].every((one) => one.naturalWidth === 16)")
        assert "dog" in page.tell("document.querySelector('#tokens').textContent")
        touched = "[...document.querySelectorAll('li.touched')].map((one) => one.dataset.name)"
        assert "dog" in page.tell(touched)
        page.tell(click(dog))
        after = shown(page)
        assert after[::2] == before[::2]
        assert not set(after[1::2]) & set(before)
        assert page.tell("document.getElementById('count').textContent") == "2 of 3 on"
        assert "dog" not in page.tell(touched)
        page.tell("document.getElementById('seeds').value = 'x'")
        page.tell(click("'#draw'"))
        page.wait("!document.body.classList.contains('busy')")
        assert "is 'x'" in page.tell("document.getElementById('error').textContent")
        page.open(f"{address}?prompt=A+photo+of+dog&seeds=4&steps=2&guidance=2&off=dog&draw=1")
        assert len(shown(page)) == 2
        assert page.tell("document.getElementById('count').textContent") == "2 of 3 on"
        page.tell(click("'#none'"))
        base, edited = shown(page)
        assert base == edited
        loads = page.tell("performance.getEntriesByType('resource').map((one) => one.name)")
        assert [one for one in loads if not one.startswith((address, "data:"))] == []
