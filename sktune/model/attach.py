"""SK-Tuning from Python: attach a method to a model you loaded yourself, and train it in any loop."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary, WeakSet

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.backbone.architecture import slides_a_window
from sktune.errors import UserError
from sktune.library_internals import attention_of
from sktune.methods.config import MethodConfig
from sktune.methods.method import build_method
from sktune.methods.peft_layers import adapters_in, remove_peft_layers
from sktune.model.attached import AttachedModel
from sktune.model.continuing import original
from sktune.model.given_model import Source
from sktune.model.rules import check_sections, number_of_labels, refuse_other_models
from sktune.model.step_zero import check_step_zero as try_step_zero
from sktune.tasks import TASKS
from sktune.tasks.config import TaskConfig, WeighedConfig
from sktune.tasks.heads import TrainedHead
from sktune.tasks.task import build_task

_attached: WeakKeyDictionary[PreTrainedModel, WeakSet[AttachedModel]] = WeakKeyDictionary()
"""What is attached to each model, and was not detached."""


def attach(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    method: MethodConfig,
    *,
    task: str | TaskConfig | None = None,
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    gradient_checkpointing: bool = False,
    check_step_zero: bool = True,
) -> AttachedModel:
    """Freezes a model and puts a tuning method and a task head on it.

    The result is an `nn.Module` whose forward takes `input_ids`, `attention_mask`, `labels` and returns `loss` and
    `logits`: usable in a plain PyTorch loop and in `transformers.Trainer`. Train `parameters_to_train()`, make batches
    with `encode`, keep what was trained with `save`.

    A head starts at zero; call `start_head` with a batch of training examples before the first step: its input is then
    taken less what is common to all inputs, without which the first steps make a decoder's answers worse.

    Args:
        model: without a task head (`AutoModel`), or a causal language model; quantized or not. It is frozen.
        tokenizer: the model's.
        method: `SKPrefixConfig(text=...)`, `LoraConfig()`, `HeadOnlyConfig()` ...
        task: a task's name, or its section for more settings; None means the language model's own for one.
        num_labels: classes, for classification tasks; or
        labels: their names, in order.
        gradient_checkpointing: recompute the blocks in backward.
        check_step_zero: try on random tokens that the method, which has learned nothing, reads as the plain model does.

    Raises:
        UserError: where model, task, method and labels do not fit together, in the words of a recipe; for prompt_based
            and in_context, whose template belongs to the data; for a model with a head of its own or layers of peft of
            its own; for a second method where one trains the model's own weights; where the method does not read as
            the plain model does.
    """
    refuse_other_models(model)
    others = list(_attached.get(model, ()))
    before = adapters_in(model)
    if before - {other.method.peft_adapter for other in others}:
        raise UserError(
            "attach: this model has layers of peft in it, of an adapter of its own, which would stay frozen; take them "
            "out first with peft's unload(), or load the model again"
        )
    if task is None:
        if model is getattr(model, model.base_model_prefix, model):
            raise UserError(f"attach: name a task for this model: {', '.join(TASKS)}")
        task = TASKS.having("needs_language_model")[0]
    tokenizer = original(tokenizer)
    section: TaskConfig = task if isinstance(task, TaskConfig) else TASKS.read({"name": task})
    check_sections(model, method, section)
    count, names = number_of_labels(section, num_labels, labels)
    kernel = attention_of(model.config)
    if method.visible_prefix and kernel == "flash_attention_2" and slides_a_window(model.config):
        raise UserError(
            f"attach: the sliding window of {model.config.model_type} would hide the prefix of {method.name} from "
            "flash-attention; load the model with attn_implementation='sdpa' or 'eager'"
        )
    if others and any(one.trains_backbone for one in (method, *(other.method.config for other in others))):
        raise UserError(
            "attach: a method that trains the model's own weights has it for itself; take the others off with "
            "sktune.detach(tuned), or load the model again"
        )
    training = [parameter for other in others for parameter in other.parameters_to_train()]
    backbone = Backbone(model, attn_implementation=kernel, gradient_checkpointing=gradient_checkpointing)
    try:
        tuned = put_on(backbone, tokenizer, method, section, count, names)
    except UserError:
        remove_peft_layers(model, adapters_in(model) - before)
        if not others:
            backbone.release()  # what was refused leaves the model as it was
        raise
    finally:
        for parameter in training:
            parameter.requires_grad_(True)
    if check_step_zero:
        try:
            try_step_zero(tuned, tokenizer, next(model.parameters()).device)
        except UserError:
            detach(tuned)
            raise
    return tuned


def put_on(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    method: MethodConfig,
    task: TaskConfig,
    num_labels: int | None,
    labels: Sequence[str] | None,
    source: Source | None = None,
) -> AttachedModel:
    """The tuned model on a backbone, for settings that were checked; `source` as in `AttachedModel`."""
    model = backbone.model
    others = list(_attached.get(model, ()))
    device = next(model.parameters()).device
    head = build_task(task).head(backbone, num_labels or 1)
    if isinstance(head, TrainedHead) and isinstance(task, WeighedConfig):
        names = labels or [str(number) for number in range(num_labels or 1)]
        head.weigh(task.weights(names, None), task.label_smoothing)
    built = build_method(method, backbone, tokenizer, labels or ())
    if task.has_head and backbone.is_language_model:
        # What the head does not read has no gradient.
        read = set(map(id, backbone.base.parameters()))
        for parameter in model.parameters():
            if id(parameter) not in read:
                parameter.requires_grad_(False)
    tuned = AttachedModel(
        backbone, built, head, tokenizer=tokenizer, task=task, num_labels=num_labels, labels=labels, source=source
    ).to(device)
    if others:
        backbone.as_given = others[0].backbone.as_given
    _attached.setdefault(model, WeakSet()).add(tuned)
    return tuned


def detach(tuned: AttachedModel) -> PreTrainedModel:
    """Takes a method off the model that `attach` was given; returns that model, as it was.

    With the last method on it, its parameters train again where they did, and its mode is the one it had. What a
    method trained in the model's own weights (full, top_layers) stays in them. Save the adapter first: `tuned` cannot
    be used any more.

    Raises:
        UserError: where it was detached before.
    """
    if tuned.detached:
        raise UserError("detach: this model was detached before")
    tuned.detached = True
    model = tuned.backbone.model
    if tuned.method.peft_adapter is not None:
        remove_peft_layers(model, {tuned.method.peft_adapter})
    others = _attached.get(model, WeakSet())
    others.discard(tuned)
    if not others:
        tuned.backbone.release()
    return model
