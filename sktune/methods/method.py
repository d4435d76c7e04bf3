"""What a tuning method is: what it adds to the frozen model's input, or to the frozen model."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone, Woven
from sktune.methods import METHODS
from sktune.methods.config import MethodConfig
from sktune.methods.parameter_state import parameter_state


class Method(nn.Module):
    """A module with the method's trainable parameters (fp32); it does not own the backbone.

    It is made from (config, backbone, tokenizer, labels); a subclass names those that it needs. One that adds nothing
    to the input changes the backbone's modules when it is made: what trains there is named and saved with them.
    """

    positions: int = 0
    """Positions in front of the input, of the prompt or the prefix."""
    _made: tuple[Hashable, Woven] | None = None
    _read_once: Any = None
    """What the frozen model makes of the text, where that is a constant."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

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
        if state is None:
            return self.weave(backbone)
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
        ValueError: where the architecture, the text or the labels do not suit the method.
    """
    method: Method = METHODS.implementation(config.name)(config, backbone, tokenizer, labels)
    return method


def refuse_narrow_embeddings(method: str, backbone: Backbone) -> None:
    """Refuses models that embed tokens in another width than they compute in.

    Raises:
        ValueError: naming the family and both widths.
    """
    width = backbone.base.get_input_embeddings().embedding_dim
    if width != backbone.hidden_size:
        raise ValueError(
            f"method.name: {method} is not available for this {backbone.family}: it embeds tokens in {width} "
            f"features and computes in {backbone.hidden_size}; use a prefix method"
        )
