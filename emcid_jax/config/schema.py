"""The settings of a run: frozen dataclasses, each field documented, validated where it enters.

Imports nothing heavy, so that `--help` and a config file with a mistake answer at once.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.typed_values import Range

Objective = Literal[
    "ablate-dest", "ablate-source", "sampled-noise", "esd", "text-only", "attention"
]
EncoderName = Literal["text_encoder", "text_encoder_2"]
Encoders = Literal["all", "text_encoder", "text_encoder_2"]
ImageSource = Literal["destination", "source", "files"]
Residual = Literal["memit", "released"]
SolveOn = Literal["host", "device"]
SolverName = Literal["ridge", "ridge+preserve", "nullspace", "units"]
Dtype = Literal["float32", "bfloat16"]
ExportDtype = Literal["source", "float32", "float16", "bfloat16"]
Benchmark = Literal["aice"]
Prediction = Literal["", "epsilon", "v_prediction"]
Form = Literal["plural", "joined", "spaced"]


Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(0.0, open=True)]
NotNegative = Annotated[float, Range(0.0)]


@dataclasses.dataclass(frozen=True)
class RequestsConfig:
    """The edit requests."""

    path: str = ""
    """Manifest (JSON, YAML or CSV), a published request file, or `sprites`: 2,000 requests of mixed
    kind of the sprite world."""
    count: CountOrZero = 0
    """Only the first `count` requests of the file; 0 takes all."""
    templates: tuple[str, ...] = ()
    """Templates, each with one {}, of requests that name none; empty: those of the file's kind."""
    forms: tuple[Form, ...] = ()
    """Other forms of the names of `update` and `rectify`, each a request of its own: `plural`,
    `joined` (words written together), `spaced` (spaces for hyphens)."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What is edited."""

    path: str = "sprites"
    """`sprites` (the bundled model), a Stable Diffusion folder in diffusers' layout, a single
    .safetensors file in the original key names, or a Hub id."""
    revision: str = ""
    """Branch, tag or commit of a Hub id; empty: its main branch."""
    variant: str = ""
    """Weight files of a folder or Hub id: e.g. `fp16` for *.fp16.safetensors; empty: the plain."""
    prediction: Prediction = ""
    """What the UNet of a single Stable Diffusion 2 file predicts, for the file does not say."""
    dtype: Dtype = "float32"
    """Computation of the networks; losses and solves keep float32 or better."""
    unet_storage: Dtype = "float32"
    """Type in which the UNet's parameters are held in memory: bfloat16 takes half. The other parts
    are held in float32."""
    export_dtype: ExportDtype = "source"
    """Stored type of the edited text encoder; `source` keeps the base model's."""


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What goes with an exported file, and where it is sent."""

    hub: str = ""
    """Repository `owner/name` of the Hugging Face Hub that what is exported is sent to, with a
    model card; empty: none."""
    public: bool = False
    """Whether everybody may read that repository."""
    base_model: str = ""
    """Hub id of the base model, for the card; empty: `model.path`, where it is one."""
    license: str = ""
    """Licence of the base model as the Hub names it (e.g. `openrail++`), for the card; empty: what
    the README.md of its folder says."""


@dataclasses.dataclass(frozen=True)
class StageOneConfig:
    """Stage I: one offset per concept by dual self-distillation (docs/stage_one.md)."""

    layer: CountOrZero = 10
    """Block L whose output receives the offsets."""
    second_layer: CountOrZero = 30
    """The same in the second text encoder, of models that have one."""
    encoders: Encoders = "all"
    """Which text encoders are edited, of models with two."""
    steps: Count = 100
    """Adam steps per concept."""
    text_steps: CountOrZero = 0
    """Adam steps by the text loss alone, before these."""
    learning_rate: Positive = 0.2
    """Constant Adam learning rate."""
    clamp_norm_factor: Positive = 1.5
    """Offsets are projected onto |delta| <= factor * |h0|."""
    shorten: NotNegative = 0.0
    """Share of the held-out loss at delta = 0 by which an offset may grow worse if that makes it
    shorter, by half at most; 0: it stays as the steps leave it."""
    weight_decay: NotNegative = 5e-4
    """Weight of |delta| / |h0|^2."""
    text_loss_scale: NotNegative = 0.01
    """Weight of the text alignment: of pooled features or, if several, edited tokens' states."""
    pooled_text_loss: bool = True
    """Whether the second text encoder takes part in the text alignment, of models that have one."""
    objective: Objective = "ablate-dest"
    """Target of the noise loss; `attention` compares what the UNet's attention reads instead, and
    `text-only` drops it."""
    esd_guidance: float = 1.0
    """Strength mu of the `esd` objective."""
    image_source: ImageSource = "destination"
    """Which prompts draw the training images, or `files`."""
    samples_per_prompt: Count = 1
    """Training images per prompt."""
    image_steps: Count = 20
    """Sampler steps of a training image."""
    image_guidance: NotNegative = 4.0
    """Classifier-free guidance of a training image."""
    teacher_pool: CountOrZero = 0
    """Fixed samples per prompt that the steps take in turn; 0 draws a new one in every step."""
    edited_tokens: Count = 1
    """Tokens that receive offsets: the last subject token, then the end token, then padding."""
    text_tokens: CountOrZero = 0
    """Tokens of a prompt that the loss reads, so many of the padding included; 0: all, as images
    are drawn. A prompt that does not end within them is refused."""
    concept_batch: CountOrZero = 0
    """Concepts optimised together; 0 chooses from the compiled program's memory."""


@dataclasses.dataclass(frozen=True)
class MomentConfig:
    """Second moments of the keys over captions (docs/second_moments.md)."""

    captions: str = "sprites"
    """`sprites`, a file of captions (docs/second_moments.md), or `tfds:<name>`."""
    count: Count = 20_000
    """Number of captions."""
    batch: Count = 256
    """Captions per device batch."""
    seed: Seed = 1
    """Seed that picks the captions."""


@dataclasses.dataclass(frozen=True)
class StageTwoConfig:
    """Stage II: the closed-form solve (docs/stage_two.md)."""

    layers: tuple[CountOrZero, ...] = tuple(range(11))
    """Edited blocks, ascending; the last must be Stage I's `layer`."""
    second_layers: tuple[CountOrZero, ...] = tuple(range(26, 31))
    """The same in the second text encoder, of models that have one; the last must be Stage I's
    `second_layer`."""
    residual: Residual = "memit"
    """Residual convention."""
    preservation_weight: Positive = 4000.0
    """lambda (mom2_update_weight)."""
    second_preservation_weight: NotNegative = 0.0
    """lambda in the second text encoder; 0: the same."""
    edit_weight: Annotated[float, Range(0.0, 1.0, open=True)] = 0.5
    """alpha; lambda_eff = lambda (1 - alpha) / alpha; at 1 nothing would be preserved."""
    solve_on: SolveOn = "host"
    """Linear systems in float64 on the host, or in refined float32 on the device."""
    solver: SolverName = "ridge"
    """`ridge`; `ridge+preserve` protects named concepts too; `nullspace` writes only into
    directions that captions hardly use, and leaves the empty prompt exactly as it is; `units` gives
    every concept hidden units of its own in one block (docs/concept_units.md)."""
    preserve: tuple[str, ...] = ()
    """Names of concepts to protect: `ridge+preserve` needs some, `nullspace` and `units` may have
    some."""
    preserve_path: str = ""
    """File of more such names, one a line."""
    preserve_templates: tuple[str, ...] = ()
    """Templates, each with one {}, of their prompts; empty: all templates of the requests."""
    protected_weight: Positive = 10.0
    """How much a protected concept counts; an edit of weight 1 counts 1."""
    nullspace_energy: Annotated[float, Range(0.0, open=True), Range(high=1.0)] = 0.1
    """`nullspace`: share of the captions' key energy in the directions that are written into."""
    unit_contexts: Count = 10
    """`units`: beginnings of captions that a name's gate is fitted on, beside its templates."""
    false_firing: Annotated[float, Range(0.0, 0.01)] = 1e-5
    """`units`: share of the captions' tokens at which one gate may answer to something else."""
    gate_threshold: Annotated[float, Range(0.5, 0.85)] = 0.7
    """`units`: lowest score at which a gate opens; its own name scores about 1. Higher ones answer
    less often to something else, and miss more sentences."""
    all_strangers: bool = False
    """`units`: gates are held against other words that end like any name of several tokens, not
    only like one that ends in a piece of a word."""
    units_in_place: bool = False
    """`units`: they replace those hidden units of the block that are least missed, so that the
    encoder keeps its width and every tool loads it; else it gets wider and nothing is given up."""

    def of(self, encoder: str) -> StageTwoConfig:
        """The settings of a text encoder by its part's name, in the fields of the first."""
        if encoder != "text_encoder_2":
            return self
        weight = self.second_preservation_weight or self.preservation_weight
        return dataclasses.replace(self, layers=self.second_layers, preservation_weight=weight)

    def check(self) -> None:
        """Rules between fields; UserError names the field, the value and the fix."""
        if self.solver == "units" and len(self.layers) > 1:
            raise UserError(
                f"config.stage_two.layers is {self.layers}; units stand in one block, that of "
                "config.stage_one.layer: give it alone, e.g. (0,)"
            )
        if self.units_in_place and self.solver != "units":
            raise UserError(
                f"config.stage_two.units_in_place is True, but solver is {self.solver!r}, which "
                "adds no units; set it to False, or solver to 'units'"
            )
        named = bool(self.preserve or self.preserve_path)
        if self.solver == "ridge+preserve" and not named:
            raise UserError(
                "config.stage_two.preserve and preserve_path are empty; name the concepts that "
                "'ridge+preserve' protects, or set config.stage_two.solver to 'ridge'"
            )
        if self.solver == "ridge" and named:
            raise UserError(
                "config.stage_two.preserve names concepts, but config.stage_two.solver 'ridge' "
                "protects none; set it to 'ridge+preserve' or 'nullspace'"
            )
        if not all(name.strip() for name in self.preserve):
            raise UserError(f"config.stage_two.preserve is {self.preserve}; remove empty names")
        for i, template in enumerate(self.preserve_templates):
            if template.count("{}") != 1:
                raise UserError(
                    f"config.stage_two.preserve_templates[{i}] is {template!r}; a template holds "
                    "one {}"
                )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The benchmark before and after the edit. May change between runs of one workdir."""

    enabled: bool = True
    """Whether the run ends with an evaluation."""
    benchmark: Benchmark = "aice"
    """Which benchmark."""
    steps: Count = 20
    """Sampler steps of an image."""
    guidance: NotNegative = 4.0
    """Classifier-free guidance."""
    prompts_per_request: CountOrZero = 0
    """Prompts per request and image set; 0 takes all."""
    holdout: CountOrZero = 0
    """Hold-out classes; 0 takes all."""
    batch: Count = 64
    """Images drawn together."""
    aliases: bool = True
    """Whether the sources' other names are drawn too."""
    holdout_path: str = ""
    """The benchmark's hold-out file (`imgnet_aug_test.json`); empty: every class nobody edits."""
    judge: str = ""
    """Folder of the ViT classifier that judges images; empty: `judge` in the model's folder."""
    debias_seeds: Count = 10
    """`debias` requests: sets of images; their spread is reported."""
    debias_images: Count = 12
    """`debias` requests: images per prompt in each set."""


@dataclasses.dataclass(frozen=True)
class DebiasConfig:
    """How the factors that mix a `debias` request's destinations are found (docs/debias.md)."""

    images: Count = 48
    """Images per request and candidate."""
    tolerance: Annotated[float, Range(0.0, 1.0)] = 0.1
    """A request is done when every share is so near to the requested one."""
    candidates: Count = 3
    """Candidates per request in the first round of the search."""
    rounds: CountOrZero = 1
    """Most further rounds of the search, each request by itself, without Stage II."""
    refinements: CountOrZero = 4
    """Most rounds after the joint Stage II, each followed by another solve."""
    steps: Count = 20
    """Sampler steps of an image."""
    guidance: NotNegative = 4.0
    """Classifier-free guidance."""
    batch: Count = 64
    """Images drawn together."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a run proceeds; changes rounding at most, so it may differ between runs of a workdir."""

    save_every: Count = 16
    """Concepts per chunk of Stage I: a killed run loses at most the chunk in flight."""
    save_every_batches: Count = 20
    """Caption batches between two saves of the second moments."""
    compile_cache: bool = True
    """Keep compiled programs in the user's cache folder for the next run."""
    progress: bool = True
    """Progress bars on stderr."""
    cpu_devices: CountOrZero = 1
    """Without an accelerator: devices that the CPU's cores are shared out to, 0 one per core. Each
    holds a copy of the weights; for small models that is much faster than one device of all."""
    weight_shards: Count = 1
    """Devices that share one copy of the UNet's weights, each a part of them, for models that are
    too large for one; 1: every device has its own. Only Stage I and drawing read them."""
    mirror: str = ""
    """A second place for the workdir, as a URL that fsspec knows, e.g. `gs://bucket/run`: finished
    files are copied there meanwhile, and an empty workdir goes on from there (docs/workdir.md)."""
    profile: CountOrZero = 0
    """Traces the chunks of Stage I from this one to the fifth after it, counted from 0, into the
    workdir's folder `profile` (docs/cost.md); 0: none."""
    distributed: bool = False
    """This command was started on several hosts, which work together (docs/scaling.md). TPU pods,
    Slurm and Open MPI say who is who; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID do."""


@dataclasses.dataclass(frozen=True)
class EditConfig:
    """The main job: requests in, edited text encoder and report out."""

    task: Literal["edit"] = "edit"
    """Which task of `emcid_jax.tasks` runs."""
    requests: RequestsConfig = RequestsConfig()
    model: ModelConfig = ModelConfig()
    stage_one: StageOneConfig = StageOneConfig()
    moments: MomentConfig = MomentConfig()
    stage_two: StageTwoConfig = StageTwoConfig()
    debias: DebiasConfig = DebiasConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    run: RunConfig = RunConfig()

    def check(self) -> None:
        """Rules between fields; UserError names the field, the value and the fix."""
        if not self.requests.path:
            raise UserError(
                "config.requests.path is empty; give a manifest or request file, "
                "e.g. --config.requests.path=requests.json"
            )
        for i, template in enumerate(self.requests.templates):
            if template.count("{}") != 1:
                raise UserError(
                    f"config.requests.templates[{i}] is {template!r}; a template holds one {{}}"
                )
        layers = self.stage_two.layers
        if not layers or list(layers) != sorted(set(layers)):
            raise UserError(
                f"config.stage_two.layers is {layers}; give different block numbers in "
                "ascending order, e.g. (7, 8, 9, 10)"
            )
        if layers[-1] != self.stage_one.layer:
            raise UserError(
                f"config.stage_two.layers is {layers}; its last block must be "
                f"config.stage_one.layer, which is {self.stage_one.layer}"
            )
