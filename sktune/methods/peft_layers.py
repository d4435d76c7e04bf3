"""peft's layers, put around those of the frozen model."""

from __future__ import annotations

import re
from typing import NamedTuple

from peft import PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from sktune.backbone import Backbone
from sktune.errors import UserError
from sktune.library_internals import DISABLED_LAYER
from sktune.methods.unfrozen import train_in_fp32
from sktune.methods.upper_layers import number_of


def lower_blocks(backbone: Backbone, layers: int | str | None) -> str | None:
    """For peft's `exclude_modules`: what matches the modules of all blocks below the upper `layers`.

    Raises:
        UserError: for more layers than the model has.
    """
    depth = len(backbone.blocks)
    below = depth - number_of(layers, depth)
    if not below:
        return None
    blocks = next(name for name, module in backbone.model.named_modules() if module is backbone.blocks)
    return rf"{re.escape(blocks)}\.({'|'.join(map(str, range(below)))})\..*"


def refuse_peft_layers(model: nn.Module) -> None:
    """Refuses a model that has layers of peft already.

    Raises:
        UserError: with how to take them out.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UserError(
            "method.name: this model already has layers of peft in it (of another method, or an adapter of its own), "
            "which a second method would freeze or replace; take them out first, with sktune.detach(tuned) or peft's "
            "unload(), or load the model again"
        )


def remove_peft_layers(model: nn.Module) -> None:
    """Puts the layers that peft's stand around back into their places."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, layer in layers:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer.get_base_layer())
    model.__dict__.pop("peft_config", None)


class Inserted(NamedTuple):
    """peft's layers in a model: their names in it, and what trains, fp32."""

    names: list[str]
    parameters: list[nn.Parameter]


def inject(config: PeftConfig, backbone: Backbone, name: str) -> Inserted:
    """Puts peft's layers around the backbone's; what they train is named and saved with the backbone's modules.

    They add nothing outside a pass.

    Raises:
        UserError: where peft knows no target modules for the family, or finds none of those named.
    """
    refuse_peft_layers(backbone.model)
    try:
        inject_adapter_in_model(config, backbone.model)
    except ValueError as error:
        kinds = sorted({key.rsplit(".", 1)[-1] for key in backbone.linear_names()})
        raise UserError(
            f"method.target_modules: peft cannot place {name} in this {backbone.family}: "
            f"{str(error).splitlines()[0]}; name some of its linear layers: {', '.join(kinds)}"
        ) from error
    backbone.model.requires_grad_(False)
    train_in_fp32(backbone, [p for key, p in backbone.model.named_parameters() if f".{name}_" in key])
    layers = {key: module for key, module in backbone.model.named_modules() if isinstance(module, BaseTunerLayer)}
    for module in layers.values():
        module.__dict__[DISABLED_LAYER] = True
    return Inserted(list(layers), [p for p in backbone.model.parameters() if p.requires_grad])
