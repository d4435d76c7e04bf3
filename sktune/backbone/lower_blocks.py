"""The lower blocks of a frozen model: read for the states they end with, and passed over where those are kept.

Where nothing below block K trains, the states of an input after block K are constants of the model (docs/depth.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from sktune.backbone.attention import LayerKeyValues
from sktune.backbone.frozen import Backbone
from sktune.backbone.quantized import FrozenLinear
from sktune.backbone.weaving import Woven, attribute

Prefix = list[tuple[str, LayerKeyValues]]
Record = list[tuple[nn.Module, LayerKeyValues]]


@contextmanager
def recorded(backbone: Backbone, module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list that grows by the states [B, L, d] that a block, or the whole base, gives in every pass inside."""
    found: list[torch.Tensor] = []

    is_block = module is not backbone.base

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if is_block:
            backbone.blocks_give_tuples = isinstance(output, tuple)
        found.append(output if isinstance(output, torch.Tensor) else output[0])

    hook = module.register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def read_lower(
    backbone: Backbone,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    woven: Woven,
    count: int,
    **types: Any,
) -> torch.Tensor:
    """States [B, L, d] after the first `count` blocks, in the backbone's dtype; the blocks above are not run.

    Args:
        backbone: the frozen model.
        inputs_embeds: [B, L, d], right-padded.
        attention_mask: [B, L], 1 for real tokens.
        woven: of all blocks; a prefix is what the lower blocks see too.
        count: at least 1.
        types: `token_type_ids` [B, L], an encoder's segments.
    """
    assert woven.prompt is None, "a prompt in front of the input trains below every block"
    prefix = woven.prefix
    if prefix is not None:
        lower = _modules_of(backbone, count)
        prefix = [layer for layer in prefix if layer[0] in lower]
    return read_block(backbone, count - 1, inputs_embeds, attention_mask, None, prefix, **types)


def read_block(
    backbone: Backbone,
    number: int,
    embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    states: torch.Tensor | None,
    prefix: Prefix | None = None,
    record: Record | None = None,
    **types: Any,
) -> torch.Tensor:
    """States [B, L, d] after block `number`, the blocks above not being run.

    Args:
        backbone: the frozen model; of its blocks those that are run need weights.
        number: from 0.
        embeds: [B, L, d], right-padded; of the tokens, or of none with `states`.
        attention_mask: [B, L], 1 for real tokens.
        states: [B, L, d] after block `number` - 1, and this block alone is run; None: all blocks up to this one are.
        prefix: of the attention in blocks that are run.
        record: filled with their keys and values.
        types: `token_type_ids` [B, L], an encoder's segments.
    """
    below: AbstractContextManager[None] = nullcontext()
    if states is not None:
        below = passed_over(backbone, states, number)
    block = backbone.blocks[number]
    with (
        below,
        recorded(backbone, block) as found,
        backbone.only_first_blocks(number + 1),
        backbone.without_checkpointing(),
    ):
        backbone.read(embeds, attention_mask, Woven(prefix=prefix), record=record, **types)
    return found[-1]


@contextmanager
def passed_over(backbone: Backbone, states: torch.Tensor, count: int) -> Iterator[None]:
    """Inside, the first `count` blocks are not run: what comes out of them is `states`.

    The list of blocks stays as it is, since families look up by a block's place in it what kind of attention it has.

    Args:
        backbone: the frozen model.
        states: [B, L, d] after those blocks.
        count: at least 1; what such a block gives was seen before (`recorded`).
    """
    assert backbone.blocks_give_tuples is not None

    def given(*_: Any, **__: Any) -> Any:
        return (states,) if backbone.blocks_give_tuples else states

    with ExitStack() as stack:
        for block in list(backbone.blocks)[:count]:
            stack.enter_context(attribute(block, "forward", given))
        stack.enter_context(attribute(backbone, "passed_over", count))
        yield


def beside_the_blocks(backbone: Backbone) -> Iterator[tuple[str, nn.Module]]:
    """The modules of the base that are in no block, by their names in the model: embeddings, norms."""
    inside = {id(part) for block in backbone.blocks for part in block.modules()}
    of_base = {id(part) for part in backbone.base.modules()}
    for name, part in backbone.model.named_modules():
        if id(part) in of_base and id(part) not in inside:
            yield name, part


def leave_out(backbone: Backbone, count: int) -> None:
    """Takes from a skeleton the first `count` blocks' parameters and the token embeddings, before any has weights.

    Those that other modules use too stay: embeddings that the language model's head is tied to. Every pass has to go on
    from states after those blocks.
    """
    for module in _without_parameters(backbone, count):
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, name, None)
    backbone.left_out = count


def release(backbone: Backbone, count: int) -> None:
    """Gives back the memory of the first `count` blocks and of the token embeddings; they cannot be used any more.

    What other modules use too stays, as in `leave_out`. Under ZeRO-3 this rank's shares go.
    """
    for module in _without_parameters(backbone, count):
        for scales in module.buffers(recurse=False) if isinstance(module, FrozenLinear) else ():
            scales.data = scales.data.new_empty(0)


def _without_parameters(backbone: Backbone, count: int) -> list[nn.Module]:
    """The modules of the first `count` blocks and of the token embeddings, after what only they use was taken."""
    backbone.dtype_of_all = backbone.dtype
    tops = (backbone.base.get_input_embeddings(), *list(backbone.blocks)[:count])
    modules = {id(module): module for top in tops for module in top.modules()}
    others = (module for module in backbone.model.modules() if id(module) not in modules)
    seen = {id(parameter) for module in others for parameter in module.parameters(recurse=False)}
    for module in modules.values():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if not isinstance(module, FrozenLinear):
                backbone.left_out_elements += int(getattr(parameter, "ds_numel", parameter.numel()))
            elif name in ("weight", "bias"):  # what is left are a packed weight's scales
                backbone.left_out_elements += module.weight_elements if name == "weight" else module.out_features
            delattr(module, name)
            setattr(module, name, parameter.new_empty(0, device="cpu"))  # no parameter: a module shows its shape
            # Others may hold it still: DeepSpeed has it in lists of its own.
            for tensor in (parameter, getattr(parameter, "ds_tensor", None)):
                if tensor is not None:
                    tensor.data = tensor.data.new_empty(0)
    return list(modules.values())


def _modules_of(backbone: Backbone, count: int) -> set[str]:
    """Names in the model of the modules inside its first blocks."""
    lower = {id(part) for block in list(backbone.blocks)[:count] for part in block.modules()}
    return {path for path, module in backbone.model.named_modules() if id(module) in lower}
