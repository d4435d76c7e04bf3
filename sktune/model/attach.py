"""SK-Tuning from Python: attach a method to a model you loaded yourself, and train it in any loop."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakKeyDictionary, WeakSet

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.backbone.architecture import slides_a_window
from sktune.errors import UserError
from sktune.files import ADAPTER_WEIGHTS
from sktune.methods.config import MethodConfig
from sktune.methods.method import build_method
from sktune.methods.peft_layers import refuse_peft_layers, remove_peft_layers
from sktune.model.adapter import read_card, read_weights, write_weights
from sktune.model.identity import IDENTITY, compare, identity
from sktune.model.tuned_model import TunedModel, fold_centre, put_weights
from sktune.tasks import TASKS
from sktune.tasks.config import TaskConfig
from sktune.tasks.task import build_task

_attached: WeakKeyDictionary[PreTrainedModel, WeakSet[TunedModel]] = WeakKeyDictionary()
"""What is attached to each model, and was not detached."""


def attach(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    method: MethodConfig,
    *,
    task: str | TaskConfig | None = None,
    num_labels: int | None = None,
    gradient_checkpointing: bool = False,
) -> TunedModel:
    """Freezes a model and puts a tuning method and a task head on it.

    The result is an `nn.Module` whose forward takes `input_ids`, `attention_mask`, `labels` and returns `loss` and
    `logits`: usable in a plain PyTorch loop and in `transformers.Trainer`. Train `trainable_parameters()`, keep
    them with `save_adapter`.

    A head starts at zero; call `start_head` with a batch of training examples before the first step: its input is then
    taken less what is common to all inputs, without which the first steps make a decoder's answers worse.

    The text opens the sequence, BOS included, so tokenize a decoder's inputs with `add_special_tokens=False`.

    Args:
        model: without a task head (`AutoModel`), or a causal language model; quantized or not. It is frozen.
        tokenizer: the model's.
        method: `SKPrefixConfig(text=...)`, `SKPromptConfig(text=...)` or `HeadOnlyConfig()`.
        task: a task's name, or its section for more settings; None means the language model's own for one.
        num_labels: classes, for classification tasks.
        gradient_checkpointing: recompute the blocks in backward.

    Raises:
        UserError: where model, task and labels do not fit together, for prompt_based and in_context, whose template
            belongs to the data, and for a model inside which another method or peft trains.
    """
    if method.answers_in_words:
        raise UserError(
            f"attach: {method.name} is a template on the data more than a part of the model; run it from a recipe "
            "(method.name), with `sktune train` or sktune.training.run.train"
        )
    if task is None:
        if model is getattr(model, model.base_model_prefix, model):
            raise UserError(f"attach: name a task for this model: {', '.join(TASKS)}")
        task = TASKS.having("needs_language_model")[0]
    section: TaskConfig = task if isinstance(task, TaskConfig) else TASKS.read({"name": task})
    kernel = model.config._attn_implementation or "eager"
    needs_labels = section.has_head and section.has_label_set
    if needs_labels and num_labels is None:
        raise UserError(f"attach: {section.name} needs num_labels, the number of classes")
    if method.visible_prefix and kernel == "flash_attention_2" and slides_a_window(model.config):
        raise UserError(
            f"attach: the sliding window of {model.config.model_type} would hide the prefix of {method.name} from "
            "flash-attention; load the model with attn_implementation='sdpa' or 'eager'"
        )
    others = list(_attached.get(model, ()))
    if others and any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "attach: another method trains inside this model, and a second one would freeze what it trains; take it "
            "off with sktune.detach(tuned), or load the model again"
        )
    refuse_peft_layers(model)
    backbone = Backbone(
        model,
        attn_implementation=kernel,
        gradient_checkpointing=gradient_checkpointing,
    )
    device = next(model.parameters()).device
    tuned = TunedModel(
        backbone,
        build_method(method, backbone, tokenizer),
        build_task(section).head(backbone, num_labels or 1),
    ).to(device)
    tuned.belongs_to = identity(backbone, tokenizer, tuned.method, section, num_labels)
    if others:
        backbone.as_given = others[0].backbone.as_given
    _attached.setdefault(model, WeakSet()).add(tuned)
    return tuned


def detach(tuned: TunedModel) -> PreTrainedModel:
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
    remove_peft_layers(model)
    others = _attached.get(model, WeakSet())
    others.discard(tuned)
    if not others:
        tuned.backbone.release()
    return model


def save_adapter(model: TunedModel, folder: str | Path) -> Path:
    """Writes the trainable parameters (safetensors), and a card of what they belong to, into a folder; returns it."""
    path = Path(folder)
    weights = {name: p.detach().cpu().clone() for name, p in model.trainable_parameters().items()}
    card = {"model": model.backbone.config.name_or_path, IDENTITY: model.belongs_to}
    write_weights(path, fold_centre(weights | model.constants()), card)
    return path


def load_adapter(model: TunedModel, folder: str | Path) -> TunedModel:
    """Puts saved parameters into a model attached the same way; returns it.

    Raises:
        UserError: where there are none, they do not fit, or method, text, task, labels, model or tokenizer differ
            from those they were saved with, each by name.
    """
    file = Path(folder) / ADAPTER_WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder}: no {ADAPTER_WEIGHTS} here")
    saved = read_card(file.parent).get(IDENTITY)
    if saved and model.belongs_to:
        compare(saved, model.belongs_to, str(file))
    put_weights(model, read_weights(file), str(file))
    return model
