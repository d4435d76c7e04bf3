"""What ZeRO-3 holds gathered and what it moves, in closed forms; how near they come is said in docs/sharding.md."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any, NamedTuple

from sktune.backbone.quantized import FrozenLinear
from sktune.distributed.deepspeed_config import largest_layer
from sktune.model.tuned_model import TunedModel
from sktune.planning.frozen_bytes import share
from sktune.planning.trained_bytes import Engine

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

    With every module DeepSpeed prefetches the next parameters, up to a number of elements: a window, gathered into a
    flat buffer and copied from there when it is used. Where a window is more than a module, it gets ahead until as
    much is gathered as may be live. So three are held: in use, its flat buffer, and what is ahead. What is used again
    within `max_reuse` elements is live too, until sktune lets it go between forward and backward.
    """
    if not engine.sharded or (ranks == 1 and not engine.parameters_on_host):
        return Gathered()
    whole = {p: share(p, ranks) * ranks for p in model.parameters()}
    persistent = sum(size for p, size in whole.items() if p.numel() <= engine.persistence)
    held = list(model.backbone.blocks)[model.backbone.left_out :]
    blocks = [[p for p in block.parameters() if p.numel() > engine.persistence] for block in held]
    if not blocks:  # all are streamed before the first step
        return Gathered(*[persistent] * 6)
    depth, first = len(blocks), blocks[0]

    layer = largest_layer(model.backbone)
    one = min(engine.prefetch, engine.max_live)
    ahead = max(one, engine.max_live - layer) if one > layer else one

    def window(start: int, limit: int) -> int:
        elements = size = 0
        for parameter in islice(cycle(first), start, len(first) * depth):
            if elements >= limit:
                break
            elements, size = elements + parameter.numel(), size + whole[parameter]
        return size

    # What is passed over between a block's forward and the next use of it: the blocks above, twice or three times.
    passed = (3 if checkpointing else 2) * max(1, sum(p.numel() for p in first))
    reused, block = min(depth, -(-engine.max_reuse // passed)), sum(whole[p] for p in first)
    base = model.backbone.base
    tables: list[Any] = [base.get_input_embeddings(), model.backbone.model.get_output_embeddings()]
    embeddings, head = (0 if table is None else whole.get(table.weight, 0) for table in tables)
    twice, furthest = (n * max(window(i, limit) for i in range(len(first))) for n, limit in ((2, one), (1, ahead)))
    most = persistent + max(twice + furthest, head, *(whole[p] for p in first))
    moved, in_blocks = sum(whole.values()) - persistent, sum(whole[p] for block in blocks for p in block)
    quantized = any(isinstance(module, FrozenLinear) for module in base.modules())
    through_blocks = (1 + _GATHERED_TWICE[quantized] * checkpointing) * in_blocks * blocks_in_backward / depth
    return Gathered(
        at_rest=persistent,
        in_evaluation=persistent + max(window(0, ahead), (reused - (depth - 1 - depth // 2)) * block),
        in_backward=persistent + (2 * window(0, one) + window(0, ahead) if blocks_in_backward else 0),
        most=most,
        forward_most=max(most, persistent + twice + reused * block),
        embeddings=persistent + embeddings,
        forward=moved if ranks > 1 else 0,
        backward=moved - in_blocks - (0 if head else embeddings) + int(through_blocks) if ranks > 1 else 0,
    )
