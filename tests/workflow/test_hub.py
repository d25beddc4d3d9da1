"""Sending to the Hub, against a stand-in of its client that takes the real one's calls only."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from emcid_jax.reporting.pages.card import CardData, card
from emcid_jax.runtime.errors import UserError
from emcid_jax.workflow import hub

REAL = huggingface_hub.HfApi


class Stand:
    """A Hub in memory: what lies in its repositories, and who may read them."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: dict[str, str] = {}
        self.numbers = itertools.count()
        self.down = False

    def put(self, name: str, files: dict[str, bytes], private: bool = True) -> None:
        self.files[name] = {".gitattributes": b"", **files}
        self.private[name] = private
        self.commits[name] = f"commit{next(self.numbers)}"


class Client:
    """The calls of `HfApi` that are made, with its signatures."""

    def __init__(self, stand: Stand, token: str, folder: Path) -> None:
        self.stand, self.folder = stand, folder
        assert token == "hf_secret"

    def model_info(self, *args: Any, **named: Any) -> Any:
        (name,) = self._bound("model_info", args, named, "repo_id")
        if self.stand.down:
            raise OSError("no route to host\nmore")
        if name not in self.stand.files:
            response = SimpleNamespace(headers={}, request=None)
            raise RepositoryNotFoundError("404", response=response)  # type: ignore[arg-type]
        siblings = [SimpleNamespace(rfilename=file) for file in self.stand.files[name]]
        return SimpleNamespace(
            private=self.stand.private[name], siblings=siblings, sha=self.stand.commits[name]
        )

    def hf_hub_download(self, *args: Any, **named: Any) -> str:
        name, file, revision = self._bound(
            "hf_hub_download", args, named, "repo_id", "filename", "revision"
        )
        assert revision == self.stand.commits[name]
        (self.folder / "cached").write_bytes(self.stand.files[name][file])
        return str(self.folder / "cached")

    def create_repo(self, *args: Any, **named: Any) -> None:
        name, private = self._bound("create_repo", args, named, "repo_id", "private")
        assert name not in self.stand.files
        self.stand.put(name, {}, private)

    def create_commit(self, *args: Any, **named: Any) -> Any:
        name, operations, parent = self._bound(
            "create_commit", args, named, "repo_id", "operations", "parent_commit"
        )
        if parent not in (None, self.stand.commits[name]):
            raise OSError("412: a commit has happened since")
        for one in operations:
            assert isinstance(one, huggingface_hub.CommitOperationAdd)
            with one.as_file() as file:
                self.stand.files[name][one.path_in_repo] = file.read()
        return SimpleNamespace(commit_url=f"https://hub/{name}")

    def _bound(self, call: str, args: Any, named: Any, *wanted: str) -> list[Any]:
        found = inspect.signature(getattr(REAL, call)).bind(self, *args, **named)
        found.apply_defaults()
        return [found.arguments[name] for name in wanted]


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stand:
    made = Stand()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: Client(made, token, tmp_path))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    return made


@pytest.fixture
def page(small_ledger: Callable[..., Any]) -> bytes:
    return card(CardData("lora", ("lora.safetensors",), small_ledger(1)))


def test_a_new_repository_is_private(stand: Stand, page: bytes, tmp_path: Path) -> None:
    place = hub.look("me/mine", public=False)
    assert place is not None
    assert stand.files == {}  # Nothing is made before the work is done.
    (tmp_path / "weights").write_bytes(b"abc")
    address = hub.push(place, {"a/b": tmp_path / "weights", "README.md": page}, "edit")
    assert address == "https://hub/me/mine"
    assert stand.private == {"me/mine": True}
    files = {".gitattributes": b"", "a/b": b"abc", "README.md": page}
    assert stand.files == {"me/mine": files}
    # A second edit replaces what is this program's.
    again = hub.look("me/mine", public=False)
    assert again is not None
    hub.push(again, {"a/b": b"xyz"}, "edit")
    assert stand.files["me/mine"]["a/b"] == b"xyz"
    assert hub.look("", public=False) is None


def test_a_public_one_is_made_only_if_asked(stand: Stand) -> None:
    place = hub.look("me/mine", public=True)
    assert place is not None
    hub.push(place, {"a": b""}, "edit")
    assert stand.private == {"me/mine": False}
    stand.put("me/open", {}, private=False)
    with pytest.raises(UserError, match=r"config\.export\.public is False, but me/open is public"):
        hub.look("me/open", public=False)
    stand.put("me/closed", {}, private=True)
    with pytest.raises(UserError, match=r"config\.export\.public is True, but me/closed is privat"):
        hub.look("me/closed", public=True)


def test_nobodys_files_are_replaced(stand: Stand, page: bytes) -> None:
    for files in (
        {"README.md": b"# mine"},
        {"README.md": page.replace(b"dog", b"cow")},
        {"lora.safetensors": b"mine"},
    ):
        stand.put("me/mine", files)
        with pytest.raises(UserError, match=r"me/mine holds files, and no README\.md that this"):
            hub.look("me/mine", public=False)
    stand.put("me/mine", {"README.md": page})
    place = hub.look("me/mine", public=False)
    stand.put("me/mine", {"README.md": b"# mine"})  # While the export was made.
    assert place is not None
    with pytest.raises(UserError, match=r"cannot be written to: 412: .*`hf upload me/mine PATH`"):
        hub.push(place, {"README.md": page}, "edit")
    assert stand.files["me/mine"]["README.md"] == b"# mine"


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/my edit", "me/--x", "/x", "me/x.git"])
def test_names_that_the_hub_does_not_allow(name: str, stand: Stand) -> None:
    with pytest.raises(UserError, match=r"config\.export\.hub is .*does not allow; give owner/na"):
        hub.look(name, public=False)


def test_no_token_and_no_hub(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.down = True
    with pytest.raises(UserError, match=r"me/mine cannot be read: no route to host$"):
        hub.look("me/mine", public=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="but there is no token of the Hub; run `hf auth login`"):
        hub.look("me/mine", public=False)
