"""One step and one evaluation batch on tensors without contents: nothing is computed, every byte alive is counted."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sktune.backbone.frozen import Backbone
from sktune.backbone.quantized import FrozenLinear, FrozenLinear8bit
from sktune.model.tuned_model import TunedModel, check_positions
from sktune.planning.skeleton import Skeleton, count_labels
from sktune.planning.trained_bytes import Engine
from sktune.recipe import Recipe
from sktune.tasks.task import build_task

SHALLOW = 2
"""Blocks of the smaller of the two models that are run."""

Numbers = dict[str, int]
"""Bytes alive besides parameters and buffers, by name.

resting: between steps: the text's semantics, and the last pass's prefix, which stays on its modules.
logits: of a training batch. forward_peak, backward_peak, evaluation_peak: the most at any instant.
after_forward, after_backward: of a step. in_backward: the gradient reaches the middle block's output (where it does
not come that far, as after forward). in_evaluation: the middle block has run.
blocks_in_backward: no bytes, but the blocks that the gradient passes through.
"""
_NOWHERE = torch.device("meta")
_PHASES = ("backward", "evaluation")


def count_activations(skeleton: Skeleton, engine: Engine, *, only_forward: bool = False) -> Numbers:
    """Runs two shallow models, and extends what they hold to the model's depth: every block adds the same.

    With `only_forward` a step ends before backward, and no evaluation follows.

    Raises:
        UserError: where the rows do not fit the model's positions.
    """

    def run(depth: int) -> Numbers:
        model = skeleton.build(depth)
        limit, length = model.backbone.max_positions, skeleton.length
        if not skeleton.recipe.method.answers_in_words:
            check_positions(skeleton.recipe, model.backbone, model.method.positions)
        elif limit is not None:  # demonstrations that find no place are left out
            length = min(length, limit)
        found = dry_run(model, skeleton.recipe, length, engine, only_forward)
        backward, evaluation = ([found.pop(f"in_{name}/{i}", 0) for i in range(depth)] for name in _PHASES)
        found["in_backward"] = backward[depth // 2] or found["after_forward"]
        found["in_evaluation"] = evaluation[depth // 2]
        return {**found, "blocks_in_backward": sum(map(bool, backward))}

    depth, kinds = skeleton.depth, getattr(skeleton.config, "layer_types", None) or [None]
    # What a method does at a depth of its own must be there, and on the same side of the middle.
    method = skeleton.recipe.method
    shallow = max(SHALLOW, 2 * method.depth_needed + 2)
    shallow += (depth - shallow) % 2  # an odd number of blocks has its middle elsewhere than an even one
    if shallow + 2 >= depth or len(set(kinds)) > 1:
        return run(depth)
    few, more = run(shallow), run(shallow + 2)
    return {name: few[name] + (more[name] - few[name]) * (depth - shallow) // 2 for name in few}


def dry_run(model: TunedModel, recipe: Recipe, length: int, engine: Engine, only_forward: bool = False) -> Numbers:
    """As `observe`, for a model whose parameters are on the meta device: its buffers go there too."""
    _without_contents(model, engine.sharded)
    with mock.patch.object(F, "scaled_dot_product_attention", _fused):
        return observe(model, recipe, length, engine.stage == 0, only_forward)


def observe(
    model: TunedModel, recipe: Recipe, length: int, keep_gradients: bool, only_forward: bool = False
) -> Numbers:
    """Runs a model of real tensors or of those on the meta device; where nothing trains, a step is an evaluation's.

    A row has `length` tokens.
    `keep_gradients` keeps whole ones until the update, as without DeepSpeed, which takes them one by one.

    Returns:
        `Numbers`, with in_backward/i and in_evaluation/i for each block i that is reached, in that order.
    """
    known = [*model.parameters(), *model.buffers()]
    keeps = keeps_states(recipe, model)
    batch = partial(_batch, recipe, model.backbone if keeps else None)
    counter = (WithoutContents if known[0].is_meta else LiveBytes)(known)
    training, trains = recipe.training, model.trainable_parameters()
    found: Numbers = {}

    def ran(number: int, module: nn.Module, inputs: Any, output: Any) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: found.update({f"in_backward/{number}": counter.live}))
        elif not module.training and "backward_peak" in found:
            found[f"in_evaluation/{number}"] = counter.live

    for number, block in enumerate(model.backbone.blocks):
        block.register_forward_hook(partial(ran, number))
    for parameter in () if keep_gradients else trains.values():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    with counter:
        model.eval()
        with torch.no_grad():
            if keeps:
                model(torch.zeros(1, 2, dtype=torch.long), only_frozen=True)  # tells how blocks give their states
            model(**batch(1, 2))  # reads the text, where that is done once
        found["resting"] = counter.live
        counter.take_peak()
        model.train()
        rows = training.per_device_train_batch_size if trains else training.per_device_eval_batch_size
        with torch.set_grad_enabled(bool(trains)):
            output = model(**batch(rows, length))
        found["logits"] = 0 if output.logits is None else output.logits.nbytes
        found["after_forward"], found["forward_peak"] = counter.live, counter.take_peak()
        if only_forward:
            return found
        if trains:
            output.loss.backward()
        found["after_backward"], found["backward_peak"] = counter.live, counter.take_peak()
        del output
        model.zero_grad()
        model.eval()
        counter.take_peak()
        with torch.no_grad():
            output = model(**batch(training.per_device_eval_batch_size, length))
            del output
        found["evaluation_peak"] = counter.take_peak()
    return found


def keeps_states(recipe: Recipe, model: TunedModel) -> bool:
    """Whether training is sure to go on from frozen states; with `auto`, and no streaming, the data decides."""
    training = recipe.training
    return model.frozen_blocks > 0 and (training.frozen_states in ("memory", "disk") or training.stream_frozen_blocks)


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operations returned and that something still holds; works on real tensors too.

    Args:
        known: tensors whose storages do not count (parameters and buffers, which have a share of their own).
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live = self._peak = 0
        self._alive: dict[int, Any] = {tensor.untyped_storage()._cdata: tensor for tensor in known}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and saying so takes as long as the operation

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What the operation returns."""
        return func(*args, **kwargs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self.run(func, args, kwargs or {})
        for leaf in tree_leaves(result):
            storage = leaf.untyped_storage() if isinstance(leaf, torch.Tensor) else None
            if storage is not None and storage._cdata not in self._alive:
                size = storage.nbytes()
                self._alive[storage._cdata] = weakref.ref(storage, partial(self._died, storage._cdata, size))
                self.live += size
                self._peak = max(self._peak, self.live)
        return result

    def _died(self, address: int, size: int, _: object) -> None:
        del self._alive[address]
        self.live -= size

    def take_peak(self) -> int:
        """The most bytes alive since the last call."""
        peak, self._peak = self._peak, self.live
        return peak


class WithoutContents(LiveBytes):
    """The same of tensors on the meta device, which is where new ones are put; shapes are worked out once."""

    shapes: ClassVar[dict[Any, tuple[Any, ...]]] = {}

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What the operation returns; of what depends on contents the most, and that a mask hides something."""
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _NOWHERE}
        if func is torch.ops.aten.nonzero.default:
            return torch.empty((args[0].numel(), args[0].ndim), dtype=torch.long, device=_NOWHERE)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return False
        args = [_moved(one) for one in args]
        # Most shapes are worked out in Python, and a model repeats itself.
        key = func, *map(_described, args), *((name, _described(value)) for name, value in kwargs.items())
        if (known := self.shapes.get(key)) is not None:
            shape, stride, dtype = known
            return torch.empty_strided(shape, stride, dtype=dtype, device=_NOWHERE)
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and not _shares_storage(result, (args, kwargs)):
            self.shapes[key] = result.shape, result.stride(), result.dtype
        return result


def _shares_storage(result: torch.Tensor, given: Any) -> bool:
    """Whether the result is one of the given tensors or a view of one."""
    tensors = (one for one in tree_leaves(given) if isinstance(one, torch.Tensor))
    return any(one.untyped_storage()._cdata == result.untyped_storage()._cdata for one in tensors)


def _described(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument.shape, argument.stride(), argument.dtype
    if isinstance(argument, list | tuple):
        return tuple(map(_described, argument))
    return type(argument), argument  # 1, 1.0 and True are not the same


def _moved(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument if argument.is_meta else argument.to(_NOWHERE)
    return [_moved(one) for one in argument] if isinstance(argument, list | tuple) else argument


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """As SDPA calls its fused kernel; on the meta device it would run the plain products."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, torch.full((), -torch.inf, dtype=query.dtype, device=query.device))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output: torch.Tensor = kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return output


def _without_contents(model: nn.Module, sharded: bool) -> None:
    """Buffers on the meta device, and products as they hold memory."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(_NOWHERE)
        if isinstance(module, FrozenLinear):
            module.dequantized = partial(_dequantized, module)  # type: ignore[method-assign]
            module.product = partial(_product, module)  # type: ignore[method-assign]
        elif sharded and type(module).forward is nn.Linear.forward and not module.weight.requires_grad:
            module.forward = partial(_KeepsItsInput.apply, module)


def _dequantized(linear: FrozenLinear, dtype: torch.dtype) -> torch.Tensor:
    weight = torch.empty(linear.out_features, linear.in_features, dtype=dtype, device=_NOWHERE)
    if isinstance(linear, FrozenLinear8bit) and dtype != torch.float32:
        # Codes times fp32 scales: a CPU casts both factor and product in temporaries, a GPU in the kernel.
        torch.empty(2, linear.out_features, linear.in_features, device=_NOWHERE)
    return weight


def _product(linear: FrozenLinear, x: torch.Tensor) -> torch.Tensor:
    weight = _dequantized(linear, x.dtype)  # the product dequantizes W, unless x is very short
    product = x.new_empty(*x.shape[:-1], linear.out_features)
    del weight
    return product


class _KeepsItsInput(torch.autograd.Function):
    """DeepSpeed's linear function under ZeRO-3: it keeps its input although W is frozen."""

    @staticmethod
    def forward(ctx: Any, linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, linear.weight)
        product = x.matmul(linear.weight.t())
        return product if linear.bias is None else product + linear.bias

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, gradient.matmul(ctx.saved_tensors[1])


def _batch(recipe: Recipe, kept_of: Backbone | None, rows: int, length: int) -> dict[str, Any]:
    """A full batch, but for one token, so that a mask is needed; every label counts.

    With a backbone it brings what that one's frozen blocks make of it.
    """
    shape, task = (rows, length), build_task(recipe.task)
    row = task.sample(length, count_labels(recipe, []))
    mask = torch.ones(shape, dtype=torch.long)
    mask[0, -1] = 0
    answers = {"answer_positions": torch.full((rows,), length - 2)} if recipe.method.answers_in_words else {}
    states = {} if kept_of is None else {"frozen_states": torch.zeros(*shape, kept_of.hidden_size, dtype=kept_of.dtype)}
    return {
        **answers,
        **states,
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": mask,
        "labels": task.labels_of([row] * rows, length, "right"),
        "num_items_in_batch": rows,
    }
