"""What ZeRO-3 holds gathered and what it moves, in closed forms; how near they come is said in docs/sharding.md."""

from __future__ import annotations

from typing import NamedTuple

from sktune.backbone.quantized import FrozenLinear
from sktune.planning.frozen_bytes import share
from sktune.planning.trained_bytes import Engine
from sktune.tasks import TunedModel

_GATHERED_TWICE = {True: 1 / 3, False: 3 / 4}
"""Part of a recomputed block that backward gathers once more, by whether it is quantized: attention's weights, and
two of the feed-forward's where the recomputation needs them to the end. Read off LLaMA's and Mistral's blocks."""


class Gathered(NamedTuple):
    """Bytes; 0 where nothing is shared.

    at_rest: what persists between steps, being small.
    in_evaluation, in_backward: when the middle block has run, and when the gradient reaches its output.
    most: at any instant with activations; forward_most: before backward; embeddings: before there are any.
    forward, backward: moved by a batch, own share included.
    """

    at_rest: int = 0
    in_evaluation: int = 0
    in_backward: int = 0
    most: int = 0
    forward_most: int = 0
    embeddings: int = 0
    forward: int = 0
    backward: int = 0


def gathered_bytes(
    engine: Engine, model: TunedModel, ranks: int, checkpointing: bool, blocks_in_backward: int
) -> Gathered:
    """The closed forms for a model on the meta device, the gradient passing through so many of its blocks.

    With the module at hand DeepSpeed prefetches the next parameters, up to a number of elements: a window. It is
    gathered into a flat buffer and copied from there, so that three are held: in use, flat, and copied. What is used
    again within `max_reuse` elements is not let go, until sktune does so between forward and backward.
    """
    if not engine.sharded or (ranks == 1 and not engine.parameters_on_host):
        return Gathered()
    whole = {p: share(p, ranks) * ranks for p in model.parameters()}
    persistent = sum(size for p, size in whole.items() if p.numel() <= engine.persistence)
    blocks = [[p for p in block.parameters() if p.numel() > engine.persistence] for block in model.backbone.blocks]
    depth, first = len(blocks), blocks[0]

    def window(start: int) -> int:
        elements = size = 0
        for parameter in (*first[start:], *first):
            if elements >= min(engine.prefetch, engine.max_live):
                break
            elements, size = elements + parameter.numel(), size + whole[parameter]
        return size

    # What is passed over between a block's forward and the next use of it: the blocks above, twice or three times.
    passed = (3 if checkpointing else 2) * max(1, sum(p.numel() for p in first))
    reused, block = min(depth, -(-engine.max_reuse // passed)), sum(whole[p] for p in first)
    base, output = model.backbone.base, model.backbone.model.get_output_embeddings()
    embeddings = whole[base.get_input_embeddings().get_parameter("weight")]
    head = 0 if output is None else whole[output.get_parameter("weight")]
    largest = max(map(window, range(len(first))), default=0)
    most = persistent + max(3 * largest, head, *(whole[p] for p in first))
    moved, in_blocks = sum(whole.values()) - persistent, sum(whole[p] for block in blocks for p in block)
    quantized = any(isinstance(module, FrozenLinear) for module in base.modules())
    through_blocks = (1 + _GATHERED_TWICE[quantized] * checkpointing) * in_blocks * blocks_in_backward / depth
    return Gathered(
        at_rest=persistent,
        in_evaluation=persistent + window(0) + max(0, reused - (depth - 1 - depth // 2)) * block,
        in_backward=persistent + (3 * window(0) if blocks_in_backward else 0),
        most=most,
        forward_most=most + reused * block,
        embeddings=persistent + embeddings,
        forward=moved if ranks > 1 else 0,
        backward=moved - in_blocks - (0 if head else embeddings) + int(through_blocks) if ranks > 1 else 0,
    )
