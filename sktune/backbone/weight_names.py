"""Which tensor of a checkpoint is which parameter of the model, and what does not fit."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from sktune.backbone.checkpoint_files import Checkpoint
from sktune.backbone.quantized import FrozenLinear


def match_weights(network: PreTrainedModel, checkpoint: Checkpoint, name: str) -> dict[str, str]:
    """Parameter or buffer of the model -> tensor of the checkpoint, with transformers' own rules for old names.

    Args:
        network: the skeleton.
        checkpoint: its files.
        name: the model's, for messages.

    Raises:
        ValueError: naming tensors that are missing, of another shape, quantized, or stored in an arrangement that
            cannot be read tensor by tensor.
    """
    shapes = _expected_shapes(network)
    transforms = get_model_conversion_mapping(network)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    prefix = network.base_model_prefix
    found: dict[str, str] = {}
    for stored in checkpoint.names():
        target, converter = rename_source_key(stored, renamings, converters, prefix, shapes)
        if target not in shapes:
            target, converter = rename_source_key(stored, [], [], prefix, shapes)
        if target not in shapes:
            continue  # of a head, say, that is not used here
        if converter is not None:
            raise ValueError(
                f"model.name_or_path: {network.config.model_type} rearranges {stored} when it is loaded, which cannot "
                "be done tensor by tensor; choose another model, or load it with transformers, save_pretrained it, "
                "and give that folder"
            )
        found[target] = stored
        checkpoint.check_is_float(stored)
        if checkpoint.shape(stored) != shapes[target]:
            raise ValueError(
                f"model.name_or_path: {checkpoint.file(stored)}: tensor {stored} has shape "
                f"{list(checkpoint.shape(stored))}, and {network.config.model_type} with this config.json needs "
                f"{list(shapes[target])}; the files are of another model, or damaged"
            )
    _check_none_is_missing(network, found, name)
    return found


def _expected_shapes(network: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for key, tensor in network.state_dict(keep_vars=True).items():
        module_name, _, name = key.rpartition(".")
        module = network.get_submodule(module_name)
        if isinstance(module, FrozenLinear) and name != "bias":
            if name == "weight":
                rows, columns = module.out_features, module.in_features
                shapes[key] = (columns, rows) if module.transposed else (rows, columns)
        else:
            shapes[key] = tuple(tensor.shape)
    return shapes


def _check_none_is_missing(network: PreTrainedModel, found: dict[str, str], name: str) -> None:
    names_of: dict[int, list[str]] = {}  # tied parameters have several
    for key, parameter in network.named_parameters(remove_duplicate=False):
        if not key.endswith(".absmax"):
            names_of.setdefault(id(parameter), []).append(key)
    missing = []
    for names in names_of.values():
        stored = next((found[key] for key in names if key in found), None)
        if stored is None:
            missing.append(names[0])
        else:
            found.update(dict.fromkeys(names, stored))
    if missing:
        shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise ValueError(
            f"model.name_or_path: {name!r} lacks {len(missing)} weights of {network.config.model_type} ({shown}), "
            "which would be random; give a folder with the whole model"
        )
