"""Which tensor of a checkpoint is which parameter of the model, and what does not fit."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import PreTrainedModel

from sktune.backbone.quantized import FrozenLinear
from sktune.backbone.weights import WeightSource
from sktune.errors import UserError
from sktune.library_internals import naming_rules

_TEXT_MODEL = re.compile(r"(?<![^.])(language_model|text_model)\.(?=\w)")
"""The part of a name that says 'of the text model' where a checkpoint holds several (Gemma 3, LLaVA, Mistral 3)."""


def match_weights(network: PreTrainedModel, checkpoint: WeightSource, name: str) -> dict[str, str]:
    """Parameter or buffer of the model -> tensor of the checkpoint, with transformers' own rules for old names.

    Args:
        network: the skeleton.
        checkpoint: its files.
        name: the model's, for messages.

    Raises:
        UserError: naming tensors that are missing, of another shape, quantized, or stored in an arrangement that
            cannot be read tensor by tensor.
    """
    shapes = _expected_shapes(network)
    rename = naming_rules(network, shapes)
    found: dict[str, str] = {}
    for stored in checkpoint.names():
        target, rearranged = rename(_TEXT_MODEL.sub("", stored))
        if target not in shapes:
            continue  # of a head, say, that is not used here
        if rearranged:
            raise UserError(
                f"model.name_or_path: {network.config.model_type} rearranges {stored} when it is loaded, which cannot "
                "be done tensor by tensor; write it once with transformers: AutoModelForCausalLM.from_pretrained(...)"
                ".save_pretrained(FOLDER, save_original_format=False), and give that folder"
            )
        found[target] = stored
        checkpoint.check_is_float(stored)
        if checkpoint.shape(stored) != shapes[target]:
            raise UserError(
                f"model.name_or_path: {checkpoint.file(stored)}: tensor {stored} has shape "
                f"{list(checkpoint.shape(stored))}, and {network.config.model_type} with this configuration needs "
                f"{list(shapes[target])}; the files are of another model, or damaged"
            )
    _share_among_tied(network, found, checkpoint, name)
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


def _share_among_tied(network: PreTrainedModel, found: dict[str, str], checkpoint: WeightSource, name: str) -> None:
    """Gives tied parameters, which have several names, the tensor of the one that is stored."""
    names_of: dict[int, list[str]] = {}
    for key, parameter in network.named_parameters(remove_duplicate=False):
        if not key.endswith(".absmax"):
            names_of.setdefault(id(parameter), []).append(key)
    missing = []
    for names in names_of.values():
        stored = [found[key] for key in names if key in found]
        if not stored:
            missing.append(names[0])
            continue
        for other in stored[1:]:
            if not _same_numbers(checkpoint, stored[0], other):
                raise UserError(
                    f"model.name_or_path: config.json of {name!r} ties {' and '.join(names)}, and the files hold two "
                    "different tensors; set tie_word_embeddings to false in config.json"
                )
        found.update(dict.fromkeys(names, stored[0]))
    if missing:
        shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise UserError(
            f"model.name_or_path: {name!r} lacks {len(missing)} weights of {network.config.model_type} ({shown}), "
            "which would be random; give a folder with the whole model"
        )


def _same_numbers(checkpoint: WeightSource, one: str, other: str) -> bool:
    """Whether two tensors of one shape hold the same numbers."""
    form: dict[str, Any] = {"transposed": False, "dtype": torch.float64, "device": torch.device("cpu")}
    first_rows = range(0, checkpoint.shape(one)[0], 1024)
    chunks = ((checkpoint.rows(name, i, i + 1024, **form) for name in (one, other)) for i in first_rows)
    return all(torch.equal(*chunk) for chunk in chunks)
