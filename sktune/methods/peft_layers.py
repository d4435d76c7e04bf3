"""peft's layers, put around those of the frozen model."""

from __future__ import annotations

from peft import PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer

from sktune.backbone import Backbone
from sktune.methods.unfrozen import train_in_fp32


def inject(config: PeftConfig, backbone: Backbone, name: str) -> list[str]:
    """Puts peft's layers around the backbone's; what they train is named and saved with the backbone's modules.

    They add nothing outside a pass. Returns their names in the model.

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
    layers = {key: module for key, module in backbone.model.named_modules() if isinstance(module, BaseTunerLayer)}
    for module in layers.values():
        module._disable_adapters = True
    return list(layers)
