"""Where names stand in captions, from token ids: there a gate is right to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

FORMS = ("{}", "{}s", "a {}", "a {}s")
"""A name as it may stand in a caption; some tokenizers begin a word otherwise behind a space."""


def own_rows(
    tokenizer: Any, names: Sequence[str], recent: Int[np.ndarray, "row recent"]
) -> list[Int[np.ndarray, " _"]]:
    """For every name, the rows whose last tokens are the name's, or those of its plural.

    A name of more tokens than `recent` has is recognised by its last ones.
    """
    asked = [form.format(name) for name in names for form in FORMS]
    encoded = tokenizer(asked, add_special_tokens=False)["input_ids"] if asked else []
    order = np.argsort(recent[:, -1], kind="stable")
    ends = recent[order, -1]
    result = []
    for index in range(len(names)):
        rows = [np.zeros(0, np.int64)]
        for form in range(len(FORMS)):
            ids = encoded[index * len(FORMS) + form]
            ids = np.asarray(ids[FORMS[form].startswith("a ") :][-recent.shape[1] :])
            if ids.size:
                low, high = np.searchsorted(ends, ids[-1]), np.searchsorted(ends, ids[-1], "right")
                same = order[low:high]
                rows.append(same[(recent[same, -len(ids) :] == ids).all(axis=1)])
        result.append(np.unique(np.concatenate(rows)))
    return result
