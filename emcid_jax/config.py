"""The settings of a run: frozen dataclasses, each field documented, validated where it enters."""

from __future__ import annotations

import dataclasses
from typing import Literal

Objective = Literal["ablate-dest", "ablate-source", "sampled-noise", "esd", "text-only"]
ImageSource = Literal["destination", "source", "files"]
Residual = Literal["memit", "released"]


@dataclasses.dataclass(frozen=True)
class StageOneConfig:
    """Stage I: one offset per concept by dual self-distillation (reference, section 3)."""

    layer: int = 10
    """Block L whose output receives the offset at the last subject token."""
    steps: int = 100
    """Adam steps per concept."""
    learning_rate: float = 0.2
    """Constant Adam learning rate."""
    clamp_norm_factor: float = 1.5
    """Offsets are projected onto |delta| <= factor * |h0|."""
    weight_decay: float = 5e-4
    """Weight of |delta| / |h0|^2."""
    text_loss_scale: float = 0.01
    """Weight of the pooled text alignment."""
    objective: Objective = "ablate-dest"
    """Target of the noise loss; `text-only` drops it."""
    esd_guidance: float = 1.0
    """Strength mu of the `esd` objective."""
    image_source: ImageSource = "destination"
    """Which prompts draw the training images, or `files`."""
    samples_per_prompt: int = 1
    """Training images per prompt."""
    image_steps: int = 20
    """Sampler steps of a training image."""
    image_guidance: float = 4.0
    """Classifier-free guidance of a training image."""
    concept_batch: int = 0
    """Concepts optimised together; 0 chooses from the compiled program's memory."""


@dataclasses.dataclass(frozen=True)
class MomentConfig:
    """Second moments of the keys over captions (reference, section 5.4)."""

    captions: str = "sprites"
    """`sprites`, a JSONL/text file of captions, or `tfds:<name>`."""
    count: int = 20_000
    """Number of captions."""
    batch: int = 256
    """Captions per device batch."""
    seed: int = 1
    """Seed that picks the captions."""


@dataclasses.dataclass(frozen=True)
class StageTwoConfig:
    """Stage II: the closed-form solve (reference, section 5.1)."""

    layers: tuple[int, ...] = tuple(range(11))
    """Edited blocks, ascending; the last must be Stage I's `layer`."""
    residual: Residual = "memit"
    """Residual convention."""
    moment_weight: float = 4000.0
    """lambda (mom2_update_weight)."""
    edit_weight: float = 0.5
    """alpha; lambda_eff = lambda (1 - alpha) / alpha."""
