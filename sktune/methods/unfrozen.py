"""Fine-tuning in the plain sense: the upper blocks, or the whole model, are trained as they are."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.methods.inside import InsideTheBackbone, train_in_fp32
from sktune.recipe.methods import FullFineTuningMethod, TopLayersMethod


def train_top_blocks(backbone: Backbone, layers: int) -> None:
    """Makes the uppermost blocks trainable.

    Raises:
        ValueError: where the model has fewer.
    """
    depth = len(backbone.blocks)
    if layers > depth:
        raise ValueError(f"method.layers: {layers} is more than the model's {depth}; allowed: 1 to {depth}")
    train_in_fp32(backbone, backbone.blocks[depth - layers :].parameters())


class TopLayers(InsideTheBackbone):
    """The uppermost blocks train; those below stay frozen."""

    def __init__(
        self,
        method: TopLayersMethod,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        train_top_blocks(backbone, method.layers)


class FullFineTuning(InsideTheBackbone):
    """All of the model trains, the token embeddings and the language model's head included."""

    def __init__(
        self,
        method: FullFineTuningMethod,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        train_in_fp32(backbone, backbone.model.parameters())
