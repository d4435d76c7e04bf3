"""The sections of a recipe but for the method's and the task's: every field, with its default and its range.

Field names follow transformers and DeepSpeed wherever those have a name for the thing. All sections are
frozen and refuse unknown keys; rules that span sections live in `sktune.recipe.rules`. Those of the methods and
tasks are in `sktune.methods` and `sktune.tasks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sktune.errors import Problem


class Section(BaseModel):
    """A frozen part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def idle(name: str, section: Section, keys: Sequence[str], why: str, otherwise: str) -> Iterator[Problem]:
    """One problem for each of `keys` that the user gave explicitly, since `why` leaves it without effect."""
    for key in keys:
        if key in section.model_fields_set:
            yield Problem(f"{name}.{key}", f"would do nothing: {why}", cure=f"leave it out, or {otherwise}", idle=True)


class ModelSection(Section):
    """The frozen backbone: which weights, in which arithmetic, with which attention kernel."""

    name_or_path: str = Field(
        min_length=1,
        description="Hub id, local folder of safetensors, `.gguf` file, or `embedded:` model of `sktune fetch --list`.",
    )
    gguf_file: str | None = Field(
        None,
        description="GGUF file inside the folder or hub repository: the model's weights, configuration and tokenizer.",
    )
    tokenizer: str | None = Field(None, description="Hub id or folder, where it differs from the model's.")
    revision: str | None = Field(None, description="Hub revision (commit, tag or branch).")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="Of the unquantized weights and of the activations; what trains is float32."
    )
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="The attention kernel; auto: the fastest that the model and the method allow."
    )
    trust_remote_code: bool = Field(False, description="Run Python code shipped inside the model's repository.")
    check_step_zero: bool = Field(
        True,
        description="Before training, try on random tokens that the method, which has learned nothing, reads as the "
        "plain model does; refuse the run where not.",
    )


class QuantizationSection(Section):
    """bitsandbytes quantization of the backbone's linear layers; neither flag set means none."""

    load_in_4bit: bool = Field(False, description="Pack the linear layers in 4 bits (as QLoRA does).")
    load_in_8bit: bool = Field(False, description="Pack the linear layers in 8 bits (LLM.int8).")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field(
        "nf4", description="The 16 values of 4 bits: normal-float, or floating point."
    )
    bnb_4bit_use_double_quant: bool = Field(True, description="Quantize the scales of 4 bits too.")
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Arithmetic of the 4-bit product; null takes model.dtype."
    )
    llm_int8_threshold: float = Field(6.0, ge=0, description="Outlier threshold of LLM.int8; 0 switches outliers off.")
    skip_modules: tuple[str, ...] = Field((), description="Names of linear modules left unquantized.")

    @property
    def bits(self) -> int | None:
        """4, 8, or None where the backbone keeps `model.dtype`."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None


class DataSection(Section):
    """Where the examples come from and how they are read."""

    path: str = Field(
        min_length=1,
        description="Hub id, local folder, or `embedded:` data of `sktune fetch --list`.",
    )
    name: str | None = Field(None, description="Configuration of the hub dataset (glue: sst2).")
    revision: str | None = Field(None, description="Revision of the hub dataset (commit, tag or branch).")
    format: Literal["auto", "hub", "conll", "jsonl", "csv", "tsv", "parquet"] = Field(
        "auto", description="auto: by the file's ending for local files, hub otherwise."
    )
    encoding: str | None = Field(
        None, description="Of text files, for example latin-1; null: UTF-8, or what a byte order mark says."
    )
    train: str | tuple[str, ...] = Field(
        "train",
        description="Split name of a hub dataset, or file name inside `path`; several as a list, or as a pattern "
        "(`part-*.jsonl`), whose files are read in the order of their names.",
    )
    validation: str | tuple[str, ...] | None = Field(
        "validation", description="Split or files, as of train; null: no validation."
    )
    test: str | tuple[str, ...] | None = Field(None, description="Split or files, as of train; null: no test.")
    column_names: tuple[str, ...] | None = Field(
        None,
        description="Names of the columns of CSV and TSV files without a line of names; null: their first line.",
    )
    text_column: str = Field("text", description="Column of the text, or of a pair's first text.")
    text_pair_column: str | None = Field(None, description="Column of a pair's second text; null: single texts.")
    label_column: str = Field("label", description="Column of the label, or of the number of a regression.")
    words_column: str = Field("tokens", description="Of tagged words on hub/jsonl/parquet data: list of words.")
    tags_column: str = Field("tags", description="Of tagged words on hub/jsonl/parquet data: list of tags.")
    conll_word_column: int | None = Field(
        None, description="Column index of the word in a CoNLL file; null: 0, of CoNLL-U (.conllu) 1."
    )
    conll_tag_column: int | None = Field(
        None, description="Column index of the tag in a CoNLL file; null: -1, of CoNLL-U 3, the part of speech."
    )
    target_column: str | None = Field(None, description="Column of the text that a language model is to write.")
    text_template: str = Field(
        "{text}",
        description="How a single text is read, for example `Review: {text} Sentiment:`; what follows it is never cut.",
    )
    pair_template: str = Field("{text}\n{text_pair}", description="How a decoder reads a pair.")
    max_length: int = Field(128, ge=2, description="Input tokens kept, special tokens counted, the prompt text not.")
    padding_side: Literal["right", "left"] = Field(
        "right", description="Side on which the rows of a batch are filled up; results are the same."
    )
    group_by_length: bool = Field(True, description="Put rows of similar length into a batch, to pad less.")
    max_train_samples: int | None = Field(
        None, ge=1, description="Read the first so many examples of the training split; null: all."
    )
    max_validation_samples: int | None = Field(
        None, ge=1, description="Read the first so many examples of the validation split; null: all."
    )
    max_test_samples: int | None = Field(
        None, ge=1, description="Read the first so many examples of the test split; null: all."
    )


class TrainingSection(Section):
    """The loop: batches, rates, schedule, evaluation, checkpoints."""

    per_device_train_batch_size: int = Field(8, ge=1, description="Examples of a rank's training batch.")
    per_device_eval_batch_size: int = Field(16, ge=1, description="Examples of a rank's evaluation batch.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Batches of a rank in one optimizer step.")
    num_train_epochs: float = Field(3.0, gt=0, description="Passes over the training data; may be a fraction.")
    max_steps: int | None = Field(
        None, ge=0, description="Optimizer steps; overrides num_train_epochs. 0 scores what the run would start from."
    )
    learning_rate: float = Field(3e-3, gt=0, description="Of the adapter. Prefix and prompt methods want 1e-3 to 3e-2.")
    head_learning_rate: float | None = Field(None, gt=0, description="Of the head; null takes learning_rate.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of AdamW's mean of the gradients.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Decay of AdamW's mean of their squares.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Added to AdamW's denominator.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Clip the global gradient norm; null: never.")
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="The learning rate after the warm-up: falling to 0 (linear, cosine), or constant."
    )
    warmup_ratio: float = Field(0.06, ge=0, lt=1, description="Part of the steps in which the rate rises from 0.")
    warmup_steps: int | None = Field(None, ge=0, description="Overrides warmup_ratio.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute each block in backward: less memory for activations, about a third more time."
    )
    eval_steps: int | None = Field(None, ge=1, description="Evaluate every N steps; null: at each epoch's end.")
    save_steps: int | None = Field(
        None, ge=1, description="Checkpoint every N steps; null: at each evaluation, or each epoch."
    )
    save_total_limit: int = Field(2, ge=1, description="Checkpoints kept besides the best one.")
    logging_steps: int = Field(10, ge=1, description="Log loss, rate and throughput every N steps.")
    metric_for_best_model: str | None = Field(None, description="null: the task's main metric.")
    early_stopping_patience: int | None = Field(
        None, ge=1, description="Evaluations without improvement before stopping."
    )
    early_stopping_threshold: float = Field(
        0.0, ge=0, description="By how much the metric must improve to count for early_stopping_patience."
    )
    frozen_states: Literal["off", "memory", "disk", "auto"] = Field(
        "auto",
        description="Read the blocks below method.layers (all, where a head alone trains) once for each example and "
        "keep what they give, in memory or on disk; they are then not run or held any more. auto: where examples are "
        "read more than once and there is room.",
    )
    frozen_states_dir: str | None = Field(
        None,
        min_length=1,
        description="Where frozen_states are kept for other runs of this model, text and data; null: in output.dir, "
        "until the run has ended.",
    )
    frozen_states_in_8bit: bool = Field(
        False,
        description="Keep frozen_states as integers of 8 bits and a scale for each 64: about half the bytes of 16 "
        "bits, and rounded (not with stream_frozen_blocks).",
    )
    stream_frozen_blocks: bool = Field(
        False,
        description="Hold one of the blocks below method.layers at a time: each is loaded, all examples are read "
        "through it, and it is let go (not with frozen_states: off; step zero is not checked).",
    )
    resume: Literal["never", "auto"] = Field(
        "never", description="auto: go on from the newest checkpoint in output.dir."
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Of the initial weights, the order of the data and dropout.")


class DistributedSection(Section):
    """How the ranks share the work."""

    deepspeed: str | None = Field(
        "zero3",
        description="zero3, zero3_offload, zero2, a DeepSpeed JSON file, or null for none (every rank its own copy).",
    )
    shard_backbone: Literal[True, False, "auto"] = Field(
        True,
        description="With zero3: true shares the frozen model among the ranks, false gives each rank its own copy, "
        "auto copies where it fits (no weights to gather) and shares where it does not.",
    )
    timeout_seconds: int = Field(1800, ge=10, description="A collective that waits longer ends the run with a message.")


class TrackingSection(Section):
    """MLflow."""

    enabled: bool = Field(True, description="Track the run in MLflow.")
    tracking_uri: str = Field(
        "sqlite:///mlflow.db", description="Any MLflow tracking URI; left out: MLFLOW_TRACKING_URI, where set."
    )
    experiment_name: str = Field(
        "sktune",
        description="The MLflow experiment that the run belongs to; left out: MLFLOW_EXPERIMENT_NAME, where set.",
    )
    run_name: str | None = Field(None, description="null: method-model-bits-seed.")
    tags: dict[str, str] = Field(default_factory=dict, description="Tags of the MLflow run, besides sktune's own.")
    system_metrics: bool = Field(
        False,
        description="Sample load and memory of CPU, disk, network and GPUs of the main rank's machine, as MLflow does; "
        "left out: MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING, where set.",
    )


class OutputSection(Section):
    """Where results are written."""

    dir: str = Field(min_length=1, description="Folder of this run: adapter, checkpoints, metrics, predictions.")
    overwrite: bool = Field(False, description="Start anew in a folder that already holds a run.")


class CompareSection(Section):
    """What `sktune compare` makes of this recipe; a single run does not read it."""

    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Label -> method section. `name` may be left out where the label is one. What a section of the "
        "recipe's own method leaves out is as in the recipe, and so is a text that another method needs.",
    )
    seeds: int = Field(1, ge=1, description="How many: training.seed and the ones after it.")
    grid: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="section.field -> values; every method runs at every combination."
    )
    own_grids: dict[str, dict[str, tuple[Any, ...]]] = Field(
        default_factory=dict,
        description="Label -> field of the grid -> the values for this method, where it wants others (weights in "
        "the model want lower rates than a prompt).",
    )
    select: Literal["validation", "none"] = Field(
        "validation",
        description="A method's entry in the report: its best combination by the validation score, or each of them.",
    )
