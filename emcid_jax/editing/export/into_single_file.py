"""An edit written into a copy of a single-file checkpoint in LDM's key names.

The file is copied and the edited tensors are changed in place: header, types and every other byte
stay what they are.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from emcid_jax.editing.export.edit_file import EditFile, Edits, by_part, require_own_width
from emcid_jax.models.weights.safetensors_files import FLOATS, read_header, read_tensor
from emcid_jax.pipelines import ldm_keys
from emcid_jax.pipelines.single_file import file_hash
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.casting import in_type
from emcid_jax.storage.files import replacing
from emcid_jax.storage.ownership import require_new


def write_checkpoint(path: Path, source: Path, content: EditFile | Edits, sha256: str) -> None:
    """Writes `source` with the edit in it to `path`, by one rename.

    Args:
        path: the new file.
        source: a Stable Diffusion checkpoint in LDM's key names. SDXL's refiner has the second text
            encoder only, so only its edit is written.
        content: the edit, or those of both text encoders.
        sha256: hash of `source` when it was looked at; a file that changed since is not edited.

    Raises:
        UserError: `source` changed, is damaged or another kind of model, the edit does not fit it,
            new values do not fit the type of a weight, or there is a file at `path` already: it
            cannot carry a mark of ours.
    """
    require_own_width(content, "a single-file checkpoint, whose readers know one width,")
    require_new(path)
    edits = by_part(content)
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)
        if file_hash(temporary) != sha256:
            raise UserError(f"{source}: was changed while it was read; run again")
        header = read_header(temporary)
        version = ldm_keys.version_of(header.shapes, source)
        parts = ldm_keys.TEXT[version]
        if not parts.keys() <= edits.keys() or (
            version != "refiner" and parts.keys() != edits.keys()
        ):
            raise UserError(
                f"{source}: is {ldm_keys.NAMES[version]}, with {' and '.join(parts)}; the edit is "
                f"of {' and '.join(edits)}; apply it to the model it was made for"
            )
        changes = [(part, *change) for part in parts for change in edits[part].changes().items()]
        with temporary.open("r+b") as file:
            for part, name, delta in changes:
                key = ldm_keys.locate_text(name, part, version, header.shapes).key
                if header.shapes.get(key) != delta.shape or header.kinds[key] not in FLOATS:
                    raise UserError(
                        f"{source}: has no {key} of shape {delta.shape}; apply the edit to the "
                        "model it was made for"
                    )
                kind = np.dtype(FLOATS[header.kinds[key]])
                weight = read_tensor(temporary, header, key)
                edited = in_type(weight.astype(np.float64) + delta, kind, f"{source}: {key} edited")
                file.seek(header.offsets[key])
                file.write(edited.tobytes())
