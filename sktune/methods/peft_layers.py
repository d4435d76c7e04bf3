"""peft's layers, put around those of the frozen model."""

from __future__ import annotations

import re
import warnings
from typing import NamedTuple

from peft import PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from sktune.backbone import Backbone
from sktune.errors import UserError
from sktune.library_internals import DISABLED_LAYER
from sktune.methods.peft_names import FIRST, adapter_of
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


def adapters_in(model: nn.Module) -> set[str]:
    """Names of the adapters whose layers are in a model."""
    return {name for layer in _layers(model).values() for name in _names_in(layer)}


def _layers(model: nn.Module) -> dict[str, BaseTunerLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def _names_in(layer: BaseTunerLayer) -> set[str]:
    return {name for part in layer.adapter_layer_names for name in getattr(layer, part, {})}


def remove_peft_layers(model: nn.Module, adapters: set[str]) -> None:
    """Takes adapters out of a model's layers of peft; what no other adapter is in is put back into its place."""
    for name, layer in _layers(model).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the adapter that is active outside a pass, which means nothing here
            for adapter in adapters & _names_in(layer):
                layer.delete_adapter(adapter)
        if not _names_in(layer):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layer.get_base_layer())
    known = model.__dict__.get("peft_config", {})
    for adapter in adapters:
        known.pop(adapter, None)
    if not known:
        model.__dict__.pop("peft_config", None)


class Inserted(NamedTuple):
    """An adapter of peft in a model: its name, its places (layer, name), and what trains, fp32."""

    adapter: str
    places: list[tuple[str, str]]
    parameters: list[nn.Parameter]


def inject(config: PeftConfig, backbone: Backbone, name: str, kind: type[BaseTunerLayer]) -> Inserted:
    """Puts peft's layers around the backbone's; what they train is named and saved with the backbone's modules.

    They add nothing outside a pass. Adapters of one kind share layers, each under a name of its own.

    Args:
        config: peft's.
        backbone: gets the layers.
        name: of the method.
        kind: of the layers.

    Raises:
        UserError: where peft knows no target modules for the family, or finds none of those named, and for a model
            with layers of another kind.
    """
    model = backbone.model
    if any(not isinstance(layer, kind) for layer in _layers(model).values()):
        raise UserError(
            f"method.name: this model has layers of another method of peft in it, inside which {name} would not "
            "find its own; take that method off with sktune.detach(tuned), or load the model again"
        )
    taken, trains = adapters_in(model), [p for p in model.parameters() if p.requires_grad]
    adapter = next(n for n in (FIRST, *(f"adapter_{k}" for k in range(2, len(taken) + 3))) if n not in taken)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            inject_adapter_in_model(config, model, adapter_name=adapter)
    except ValueError as error:
        kinds = sorted({key.rsplit(".", 1)[-1] for key in backbone.linear_names()})
        raise UserError(
            f"method.target_modules: peft cannot place {name} in this {backbone.family}: "
            f"{str(error).splitlines()[0]}; name some of its linear layers: {', '.join(kinds)}"
        ) from error
    model.requires_grad_(False)
    own = [p for key, p in model.named_parameters() if adapter_of(key) == adapter]
    train_in_fp32(backbone, own)
    for parameter in trains:
        parameter.requires_grad_(True)
    layers = _layers(model)
    for layer in layers.values():
        layer.__dict__[DISABLED_LAYER] = True
    return Inserted(adapter, [(key, adapter) for key, layer in layers.items() if adapter in _names_in(layer)], own)
