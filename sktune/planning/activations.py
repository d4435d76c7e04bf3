"""One step and one evaluation batch on tensors without contents: nothing is computed, every byte alive is counted."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
    """As `observe`, for a model on the meta device, whose parameters become tensors without contents."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        _make_fake(model, engine.sharded)
        return observe(model, recipe, length, engine.stage == 0, only_forward)


def observe(
    model: TunedModel, recipe: Recipe, length: int, keep_gradients: bool, only_forward: bool = False
) -> Numbers:
    """Runs a model of real or fake tensors, rows of `length` tokens; where nothing trains, a step is an evaluation's.

    `keep_gradients` keeps whole ones until the update, as without DeepSpeed, which takes them one by one.

    Returns:
        `Numbers`, with in_backward/i and in_evaluation/i for each block i that is reached, in that order.
    """
    counter = LiveBytes([*model.parameters(), *model.buffers()])
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
            model(**_batch(recipe, 1, 2))  # reads the text, where that is done once
        found["resting"] = counter.live
        counter.take_peak()
        model.train()
        rows = training.per_device_train_batch_size if trains else training.per_device_eval_batch_size
        with torch.set_grad_enabled(bool(trains)):
            output = model(**_batch(recipe, rows, length))
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
            output = model(**_batch(recipe, training.per_device_eval_batch_size, length))
            del output
        found["evaluation_peak"] = counter.take_peak()
    return found


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operations returned and that something still holds; works on real tensors too.

    Args:
        known: tensors whose storages do not count (parameters and buffers, which have a share of their own).
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live = self._peak = 0
        self._alive: dict[int, Any] = {tensor.untyped_storage()._cdata: tensor for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default and isinstance(args[0], FakeTensor):
            # How many are set depends on contents; a plan counts all of them.
            result = torch.empty((args[0].numel(), args[0].ndim), dtype=torch.long)
        else:
            result = func(*args, **(kwargs or {}))
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


def _make_fake(model: nn.Module, sharded: bool) -> None:
    """Fake tensors in the place of those on the meta device, and products as they hold memory, without contents."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False, remove_duplicate=False)]:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            made.setdefault(id(tensor), nn.Parameter(empty, tensor.requires_grad))  # tied ones stay one
            module._parameters[name] = made[id(tensor)]
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        if isinstance(module, FrozenLinear):
            module.dequantized = partial(_dequantized, module)  # type: ignore[method-assign]
            module.product = partial(_product, module)  # type: ignore[method-assign]
        elif sharded and type(module).forward is nn.Linear.forward and not module.weight.requires_grad:
            module.forward = partial(_KeepsItsInput.apply, module)


def _dequantized(linear: FrozenLinear, dtype: torch.dtype) -> torch.Tensor:
    weight = torch.empty(linear.out_features, linear.in_features, dtype=dtype)
    if isinstance(linear, FrozenLinear8bit) and dtype != torch.float32:
        # Codes times fp32 scales: a CPU casts both factor and product in temporaries, a GPU in the kernel.
        torch.empty(2, linear.out_features, linear.in_features)
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


def _batch(recipe: Recipe, rows: int, length: int) -> dict[str, Any]:
    """A full batch, but for one token, so that a mask is needed; every label counts."""
    shape, task = (rows, length), build_task(recipe.task)
    row = task.sample(length, count_labels(recipe, []))
    mask = torch.ones(shape, dtype=torch.long)
    mask[0, -1] = 0
    answers = {"answer_positions": torch.full((rows,), length - 2)} if recipe.method.answers_in_words else {}
    return {
        **answers,
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": mask,
        "labels": task.labels_of([row] * rows, length, "right"),
        "num_items_in_batch": rows,
    }
