"""Exported files, sent to a repository of the Hugging Face Hub, in one commit.

A repository is looked at before work begins. One that holds anything is written to only if its card
is one of this program's, unchanged: nobody's files are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from emcid_jax.editing.export.into_folder import CARD
from emcid_jax.reporting.pages import card
from emcid_jax.runtime.errors import UserError, first_line

_OWN = {".gitattributes"}
"""What the Hub itself puts into a repository."""


class Place(NamedTuple):
    """A repository that may be written to."""

    name: str
    head: str | None
    """Its last commit when it was looked at; None: it is not there yet."""
    public: bool
    client: Any
    """`huggingface_hub.HfApi` with the user's token."""


def require_name(name: str) -> None:
    """UserError if `name` is no name `owner/name` that the Hub allows."""
    from huggingface_hub.errors import HFValidationError  # slow imports, and only for this
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise UserError(
            f"config.export.hub is {name!r}, which the Hub does not allow; give owner/name of "
            "letters, digits, '-', '_' and '.'"
        ) from error


def look(name: str, public: bool) -> Place | None:
    """The repository that `push` will write to; nothing is changed. None without a name.

    Args:
        name: `owner/name`, or nothing.
        public: whether everybody may read it.

    Raises:
        UserError: there is no token, the Hub refuses it or is not reached, the repository can be
            read by others than the user says, or it holds what this program did not push.
    """
    if not name:
        return None
    require_name(name)
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    token = huggingface_hub.get_token()
    if not token:
        raise UserError(
            f"config.export.hub is {name!r}, but there is no token of the Hub; run `hf auth login` "
            "or set HF_TOKEN"
        )
    client = huggingface_hub.HfApi(token=token)
    try:
        found = client.model_info(name)
        files = {file.rfilename for file in found.siblings or ()} - _OWN
        text = b""
        if CARD in files:
            text = Path(client.hf_hub_download(name, CARD, revision=found.sha)).read_bytes()
    except RepositoryNotFoundError:
        return Place(name, None, public, client)
    except Exception as error:  # Of the network, of the Hub: they have no common base.
        raise UserError(f"config.export.hub: {name} cannot be read: {first_line(error)}") from error
    if bool(found.private) == public:
        said, flag = ("private", "leave out") if found.private else ("public", "set")
        raise UserError(
            f"config.export.public is {public}, but {name} is {said} on the Hub; {flag} "
            "--config.export.public=True, or give another name"
        )
    if files and not card.is_card(text):
        raise UserError(
            f"config.export.hub: {name} holds files, and no {CARD} that this program wrote "
            "and nobody changed; give another name"
        )
    return Place(name, found.sha, public, client)


def push(place: Place, files: Mapping[str, Path | bytes], message: str) -> str:
    """Sends `files`, by their names in the repository, as one commit; returns its address.

    The repository is made if there is none. UserError if the Hub refuses, e.g. since it was changed
    meanwhile, or is not reached.
    """
    from huggingface_hub import CommitOperationAdd

    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in sorted(files.items())
    ]
    client, head = place.client, place.head
    try:
        if head is None:
            client.create_repo(place.name, private=not place.public)
        done = client.create_commit(
            place.name, operations, commit_message=message, parent_commit=head
        )
    except Exception as error:  # Of the network, of the Hub: they have no common base.
        raise UserError(
            f"config.export.hub: {place.name} cannot be written to: {first_line(error)}; what was "
            f"exported is in the workdir, and `hf upload {place.name} PATH` sends it"
        ) from error
    return str(done.commit_url)
