"""What the aggregates mean in plain words, and the figures published for EMCID on SD 1.4."""

from __future__ import annotations

from typing import NamedTuple


class Meaning(NamedTuple):
    """Name and explanation of one aggregate."""

    group: str
    name: str
    """As published."""
    text: str
    best: str
    """Which way is better."""


_TEMPLATES = "the edit's own templates"
_SENTENCES = "free-form sentences that the edit never saw"

MEANINGS: dict[str, Meaning] = {
    f"{key}_{metric}": Meaning(group, name, text.format(prompts), best)
    for key, group, prompts in (
        ("efficacy", "Efficacy", _TEMPLATES),
        ("generalization", "Generalization", _SENTENCES),
    )
    for metric, name, text, best in (
        (
            "source_forget",
            "Source Forget",
            "probability that the source class loses on {}",
            "higher",
        ),
        (
            "source2dest",
            "Source2Dest",
            "probability that the destination class gains on {} with the source's name",
            "higher",
        ),
        (
            "dest_forget",
            "Dest Forget",
            "probability that the destination class loses on {} with its own name",
            "nearer 0",
        ),
    )
} | {
    "alias2dest": Meaning(
        "Aliases",
        "Alias2Dest",
        "probability that the destination gains on prompts with another name of the source",
        "higher",
    ),
    "alias_forget": Meaning(
        "Aliases",
        "Alias Forget",
        "probability that the source class loses under its other names",
        "higher",
    ),
    "holdout_delta": Meaning(
        "Specificity",
        "Holdout Delta",
        "change of the right class's probability on held-out classes",
        "nearer 0",
    ),
    "average_score": Meaning(
        "Both",
        "Average score (“F1”)",
        "(generalization Source2Dest + Holdout Delta) / 2, an arithmetic mean",
        "higher",
    ),
}
"""Every aggregate of `aice.scores.aggregates`, in the order of a table."""

PUBLISHED_REQUESTS = (10, 50, 100, 150, 200, 250, 300)

PUBLISHED: dict[str, tuple[float, ...]] = {
    "efficacy_source_forget": (0.713, 0.72, 0.702, 0.704, 0.740, 0.756, 0.759),
    "efficacy_source2dest": (0.565, 0.557, 0.564, 0.600, 0.597, 0.575, 0.598),
    "generalization_source_forget": (0.79, 0.772, 0.751, 0.731, 0.742, 0.742, 0.747),
    "generalization_source2dest": (0.56, 0.543, 0.532, 0.537, 0.523, 0.511, 0.508),
    "alias2dest": (0.147, 0.134, 0.150, 0.112, 0.112, 0.106, 0.115),
    "holdout_delta": (-0.043, -0.116, -0.140, -0.133, -0.150, -0.159, -0.174),
}
"""EMCID on Stable Diffusion 1.4 (lambda 4000, alpha 0.6), read off the plots of the project page:
about +-0.005, where markers overlap +-0.015."""


def published_column(requests: int) -> int:
    """The published number of requests nearest to `requests`; its place in PUBLISHED_REQUESTS."""
    distances = [abs(count - requests) for count in PUBLISHED_REQUESTS]
    return distances.index(min(distances))


def published_value(metric: str, requests: int) -> float | None:
    """The published figure at the nearest number of requests; None where none was published."""
    if metric == "average_score":
        parts = [published_value(name, requests) for name in _AVERAGED]
        return None if None in parts else sum(part for part in parts if part is not None) / 2
    values = PUBLISHED.get(metric)
    return None if values is None else values[published_column(requests)]


_AVERAGED = ("generalization_source2dest", "holdout_delta")

H_COUNTS = (10, 50, 100)
PUBLISHED_H: dict[str, tuple[float, ...]] = {
    "SPEED": (0.934, 0.923, 0.896),
    "MACE": (0.928, 0.900, 0.871),
    "UCE": (0.831, 0.484, 0.346),
    "RECE": (0.804, 0.330, 0.382),
    "Concept Ablation": (0.522, 0.484, 0.580),
}
"""H of erased celebrities on Stable Diffusion 1.4 at `H_COUNTS`, SPEED's protocol and paper: two
terms, as `h`."""
PUBLISHED_MIXED: dict[str, tuple[float, float, float]] = {
    "ETC": (0.780, 0.787, 0.787),
    "CPE": (0.659, 0.677, 0.579),
}
"""H of celebrities, art and characters with 2,072 mixed concepts on Stable Diffusion 1.4 (ETC's
user study)."""
OTHERS_COUNTS = (10, 100, 300)
PUBLISHED_OTHERS: dict[str, dict[str, tuple[float, ...]]] = {
    "generalization_source2dest": {
        "EMCID": (0.56, 0.532, 0.508),
        "ReFACT": (0.267, 0.01, 0.0),
        "UCE": (0.572, 0.034, 0.0),
    },
    "holdout_delta": {
        "EMCID": (-0.043, -0.140, -0.174),
        "ReFACT": (-0.081, -0.463, -0.73),
        "UCE": (-0.434, -0.730, -0.731),
        "ESD": (-0.151, -0.167, -0.191),
    },
}
"""AICE on Stable Diffusion 1.4 at `OTHERS_COUNTS`, all methods, read off the same plots."""
