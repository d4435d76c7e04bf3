"""What a tuning method is: what it adds to the frozen model's input, or to the frozen model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone, Woven
from sktune.backbone.vocabulary import check_tokens
from sktune.data import Example
from sktune.errors import UserError
from sktune.methods import METHODS
from sktune.methods.config import MethodConfig
from sktune.methods.parameter_state import parameter_state
from sktune.methods.prompt_text import PromptText
from sktune.sections import DataSection
from sktune.tasks.task import Task

DECAYS = "sktune_decays"
"""Attribute of a parameter that is False where weight decay would be wrong (see `without_decay`)."""


def without_decay(parameters: Iterable[nn.Parameter]) -> None:
    """Marks parameters that multiply and start at 1: weight decay would take away what they multiply."""
    for parameter in parameters:
        setattr(parameter, DECAYS, False)


class Frame(NamedTuple):
    """What of a run a method can put around its task.

    data: lengths and columns.
    labels: the label set, empty where there is none.
    tokenizer: the model's.
    train: the training split, where it was read.
    is_encoder: whether the model reads both ways; asking reads its configuration.
    seed: of the run.
    """

    data: DataSection
    labels: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Example]
    is_encoder: Callable[[], bool]
    seed: int


class Method(nn.Module):
    """A module with the method's trainable parameters (fp32); it does not own the backbone.

    It is made from (config, backbone, tokenizer, labels); a subclass names those that it needs. One that adds nothing
    to the input changes the backbone's modules when it is made: what trains there is named and saved with them.
    """

    positions: int = 0
    """Positions in front of the input, of the prompt or the prefix."""
    config: MethodConfig
    """The section it was built from, put here by `build_method`."""
    peft_adapter: str | None = None
    """The name that its layers of peft have inside the model, where it puts some there."""
    _made: tuple[Hashable, Woven] | None = None
    _read_once: Any = None
    """What the frozen model makes of the text, where that is a constant."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    @classmethod
    def reframe(cls, config: Any, task: Task, frame: Frame) -> Task:
        """The task as the model is to be asked it, where a method asks it in a way of its own.

        Raises:
            UserError: where the task, the data or the tokenizer do not suit.
        """
        return task

    def weave(self, backbone: Backbone) -> Woven:
        """What is added to every input of a batch; called on all ranks.

        Whatever is made of the method's own parameters has to be in the result: ZeRO-3 gathers them around this
        module's forward, and in backward again when the gradient of what it returned arrives.
        """
        return Woven()

    def forward(self, backbone: Backbone) -> Woven:
        """`weave`; outside training made again only when a parameter has changed.

        The pass of an evaluation or prediction is then the frozen model's alone.
        """
        if self.training or torch.is_grad_enabled():
            return self.weave(backbone)
        state = parameter_state(self)
        # ZeRO-3's updates are not seen in what is gathered elsewhere, but those happen in training mode.
        if self._made is None or self._made[0] != state:
            self._made = state, self.weave(backbone)
        return self._made[1]

    def forget(self) -> None:
        """Drops what was computed and kept: the text's semantics and the last `Woven`."""
        self._made = None
        self._read_once = None

    def train(self, mode: bool = True) -> Self:
        self._made = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self.forget()  # it is of the device and dtype that the model had
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # A copy reads the text with its own model.
        return self.__dict__ | {"_made": None, "_read_once": None}


def build_method(
    config: MethodConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] = ()
) -> Method:
    """The method's module, for this backbone; methods that train inside the backbone change it.

    Args:
        config: the recipe's section `method`.
        backbone: frozen, loaded.
        tokenizer: the model's.
        labels: names of the task's labels, for methods that start from them.

    Raises:
        UserError: where the architecture, the text or the labels do not suit the method.
    """
    method: Method = METHODS.implementation(config.name)(config, backbone, tokenizer, labels)
    method.config = config
    for module in method.modules():
        if isinstance(module, PromptText) and not module.input_ids.is_meta:  # a plan has no contents
            where = "the text that the method reads"
            check_tokens(tokenizer, backbone.vocabulary_size, module.input_ids.tolist(), where)
    return method


def reframed(config: MethodConfig, task: Task, frame: Frame) -> Task:
    """The task as the method of this section puts it to the model; see `Method.reframe`."""
    task = METHODS.implementation(config.name).reframe(config, task, frame)
    return task


def refuse_narrow_embeddings(method: str, backbone: Backbone) -> None:
    """Refuses models that embed tokens in another width than they compute in.

    Raises:
        UserError: naming the family and both widths.
    """
    width = backbone.base.get_input_embeddings().embedding_dim
    if width != backbone.hidden_size:
        raise UserError(
            f"method.name: {method} is not available for this {backbone.family}: it embeds tokens in {width} "
            f"features and computes in {backbone.hidden_size}; use a prefix method"
        )
