"""Which linear layers peft's methods are put into, where the recipe leaves it open or names all of them."""

from __future__ import annotations

from collections.abc import Sequence

from peft.utils import constants

from sktune.backbone import Backbone
from sktune.backbone.frozen import linear_names
from sktune.errors import UserError

ALL_LINEAR = ("all-linear",)
"""peft's shorthand for every linear layer of the blocks."""
_QUERY_AND_VALUE = (("q_proj", "v_proj"), ("query", "value"), ("qkv_proj",), ("query_key_value",), ("c_attn",))
_KEYS_VALUES_FEEDFORWARD = (
    ("k_proj", "v_proj", "down_proj"),
    ("qkv_proj", "down_proj"),
    ("k_proj", "v_proj", "fc2"),
    ("key", "value", "output.dense"),
)
"""Names that families share which peft has no entry for; the feed-forward's last layer comes last."""


def lora_targets(backbone: Backbone, given: Sequence[str] | None) -> list[str] | None:
    """Ends of the layers' names; None: peft's own choice for the family (query and value)."""
    known = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    if given is None:
        return None if backbone.family in known else _first_there(backbone, _QUERY_AND_VALUE)
    return _kinds(backbone) if tuple(given) == ALL_LINEAR else _all_there(backbone, given)


def ia3_targets(
    backbone: Backbone, given: Sequence[str] | None, feedforward: Sequence[str] | None
) -> tuple[list[str] | None, list[str] | None]:
    """(ends of the layers' names, those of them whose input is scaled); None, None: peft's own choice."""
    known = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    if given is None:
        chosen = None if backbone.family in known else _first_there(backbone, _KEYS_VALUES_FEEDFORWARD)
        return chosen, chosen[-1:] if chosen is not None else None
    targets = _kinds(backbone) if tuple(given) == ALL_LINEAR else _all_there(backbone, given)
    return targets, None if feedforward is None else list(feedforward)


def _all_there(backbone: Backbone, given: Sequence[str]) -> list[str]:
    """The ends that were given, each of which names a layer; peft is content with one of them.

    Raises:
        UserError: naming those that name none, and what there is.
    """
    names = [name for name, _ in backbone.model.named_modules()]
    unknown = [end for end in given if not any(name == end or name.endswith(f".{end}") for name in names)]
    if unknown:
        raise UserError(
            f"method.target_modules: no layer of this {backbone.family} is called {', '.join(map(repr, unknown))}; "
            f"name some of its linear layers: {', '.join(_kinds(backbone))}, or all-linear"
        )
    return list(given)


def _kinds(backbone: Backbone) -> list[str]:
    """The last parts of the names of all linear layers inside the blocks."""
    return sorted({name.rpartition(".")[2] for name in linear_names(backbone.blocks)})


def _first_there(backbone: Backbone, choices: Sequence[tuple[str, ...]]) -> list[str] | None:
    names = backbone.linear_names()
    there = (choice for choice in choices if all(any(name.endswith(f".{end}") for name in names) for end in choice))
    found = next(there, None)
    return None if found is None else list(found)
