"""LoRA and IA3 through peft: small updates inside the frozen linear layers, quantized or not."""

from __future__ import annotations

from collections.abc import Sequence

from peft import IA3Config, LoraConfig, PeftConfig, inject_adapter_in_model
from transformers import PreTrainedTokenizerBase

from sktune.backbone import Backbone
from sktune.methods.inside import InsideTheBackbone, train_in_fp32
from sktune.recipe.methods import IA3Method, LoraMethod


class Lora(InsideTheBackbone):
    """W x + (alpha / rank) B A x, B zero at the start (arXiv 2106.09685)."""

    def __init__(
        self,
        method: LoraMethod,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        targets = None if method.target_modules is None else list(method.target_modules)
        _inject(
            LoraConfig(
                r=method.rank,
                lora_alpha=method.alpha,
                lora_dropout=method.dropout,
                target_modules=targets,
                fan_in_fan_out=backbone.stores_transposed,
            ),
            backbone,
            "lora",
        )
        if method.dropout:
            backbone.let_train(m for key, m in backbone.model.named_modules() if key.endswith(".lora_dropout"))


class IA3(InsideTheBackbone):
    """Outputs of keys and values, and inputs of the feed-forward's last layer, times learned scales that start at 1."""

    def __init__(
        self,
        method: IA3Method,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        targets = None if method.target_modules is None else list(method.target_modules)
        forward = None if method.feedforward_modules is None else list(method.feedforward_modules)
        _inject(
            IA3Config(
                target_modules=targets,
                feedforward_modules=forward,
                fan_in_fan_out=backbone.stores_transposed,
            ),
            backbone,
            "ia3",
        )


def _inject(config: PeftConfig, backbone: Backbone, name: str) -> None:
    """Puts peft's layers around the backbone's.

    Raises:
        ValueError: where peft knows no target modules for the family, or finds none of those named.
    """
    try:
        inject_adapter_in_model(config, backbone.model)
    except ValueError as error:
        kinds = sorted({key.rsplit(".", 1)[-1] for key in backbone.linear_names()})
        raise ValueError(
            f"method.target_modules: peft cannot place {name} in this {backbone.family}: "
            f"{str(error).splitlines()[0]}; name some of its linear layers: {', '.join(kinds)}"
        ) from error
    backbone.model.requires_grad_(False)
    train_in_fp32(backbone, [p for key, p in backbone.model.named_parameters() if f".{name}_" in key])
