"""One step and one evaluation batch of a recipe on tensors without contents: what is used when, what is alive then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sktune.planning.live_bytes import LiveBytes
from sktune.planning.zero_hooks import LinearThatKeepsItsInput, Use, watch_modules
from sktune.recipe.recipe import Recipe
from sktune.tasks import TunedModel, TunedOutput


class Mark(NamedTuple):
    """A moment that is no use of a module.

    name: `after_forward`, `after_backward`, `after_evaluation`; `reached` by the gradient of a block's output, or in
        evaluation the output itself.
    """

    name: str
    block: int | None = None


@dataclass
class Event:
    """A use of a module, or a mark, with the bytes alive then and the most until the next event."""

    what: Use | Mark
    live: int
    peak: int = 0


@dataclass(frozen=True)
class DryRun:
    """A step and an evaluation batch; bytes of whatever is no parameter and no buffer.

    resting: alive between steps: the text's semantics, and the last pass's prefix, which stays on its modules.
    logits: of a training batch.
    first: events of the run's first pass, a short evaluation that reads the text.
    step, evaluation: the events of each, later.
    """

    resting: int
    logits: int
    first: tuple[Event, ...]
    step: tuple[Event, ...]
    evaluation: tuple[Event, ...]

    def kept(self) -> tuple[int, int]:
        """(resting, logits)."""
        return self.resting, self.logits

    def activations(self) -> int:
        """Bytes kept for backward."""
        return next(event.live for event in self.step if event.what == Mark("after_forward")) - self.resting


def dry_run(
    model: TunedModel, recipe: Recipe, *, sharded: bool, keep_gradients: bool, length: int | None = None
) -> DryRun:
    """Runs the model, whose parameters are on the meta device, without computing anything.

    Args:
        model: is used up: its parameters become fake tensors.
        recipe: batch sizes, length, task. Where nothing trains, the step is an evaluation batch's pass.
        sharded: as under ZeRO-3, with DeepSpeed's linear function.
        keep_gradients: whole gradients stay until the update (without DeepSpeed, which takes them one by one).
        length: of a row; None: data.max_length.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        _make_fake(model)
        return observe(model, recipe, sharded=sharded, keep_gradients=keep_gradients, length=length, under=fake)


def observe(
    model: TunedModel,
    recipe: Recipe,
    *,
    sharded: bool,
    keep_gradients: bool,
    length: int | None = None,
    under: Any = None,
) -> DryRun:
    """As `dry_run`, for a model of real or fake tensors."""
    counter = LiveBytes([*model.parameters(), *model.buffers()])
    recorder = _Recorder(counter)
    watch_modules(model, recorder.report)
    _mark_blocks(model, recorder)
    if not keep_gradients:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
    training = recipe.training
    length = length or recipe.data.max_length
    trains = bool(model.trainable_parameters())
    batch_size = training.per_device_train_batch_size if trains else training.per_device_eval_batch_size
    with _deepspeed_linear(sharded), counter:
        model.eval()
        recorder.start()
        with torch.no_grad():
            model(**_batch(recipe, 1, 2))  # reads the text, where that is done once
        recorder.report(Mark("after_first"))
        first = recorder.stop()
        resting = counter.live
        model.train()
        recorder.start()
        with torch.set_grad_enabled(trains):
            output: TunedOutput = model(**_batch(recipe, batch_size, length))
        recorder.report(Mark("after_forward"))
        assert output.loss is not None
        logits = 0 if output.logits is None else output.logits.nbytes
        if trains:
            output.loss.backward()
        recorder.report(Mark("after_backward"))
        step = recorder.stop()
        del output
        for parameter in model.parameters():
            parameter.grad = None
        model.eval()
        recorder.start()
        with torch.no_grad():
            output = model(**_batch(recipe, training.per_device_eval_batch_size, length))
            recorder.report(Mark("after_evaluation"))
            del output  # held until here
        evaluation = recorder.stop()
    return DryRun(resting, logits, first, step, evaluation)


class _Recorder:
    """Collects events, each with what is alive then and the peak after it."""

    def __init__(self, counter: LiveBytes) -> None:
        self.counter = counter
        self.events: list[Event] | None = None

    def start(self) -> None:
        self.counter.take_peak()
        self.events = []

    def report(self, what: Use | Mark) -> None:
        if self.events is None:
            return
        peak = self.counter.take_peak()
        if self.events:
            self.events[-1].peak = peak
        self.events.append(Event(what, self.counter.live))

    def stop(self) -> tuple[Event, ...]:
        assert self.events
        self.events[-1].peak = self.counter.take_peak()
        events, self.events = self.events, None
        return tuple(events)


def _make_fake(model: nn.Module) -> None:
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _mark_blocks(model: TunedModel, recorder: _Recorder) -> None:
    def mark(block: nn.Module, number: int) -> None:
        def reached(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            if hidden.requires_grad:
                hidden.register_hook(lambda gradient: recorder.report(Mark("reached", number)))
            elif not torch.is_grad_enabled():
                recorder.report(Mark("reached", number))

        block.register_forward_hook(reached)

    for number, block in enumerate(model.backbone.blocks):
        mark(block, number)


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


@contextmanager
def _deepspeed_linear(sharded: bool) -> Iterator[None]:
    original = nn.functional.linear
    if sharded:
        nn.functional.linear = LinearThatKeepsItsInput.apply
    try:
        yield
    finally:
        nn.functional.linear = original


def _batch(recipe: Recipe, rows: int, length: int) -> dict[str, Any]:
    """A full batch, but for one token, so that a mask is needed; every token carries a label where tokens do."""
    shape = (rows, length)
    task = recipe.task.name
    labels = torch.zeros(shape if task in ("token_classification", "causal_lm") else rows, dtype=torch.long)
    mask = torch.ones(shape, dtype=torch.long)
    mask[0, -1] = 0
    answers = {"answer_positions": torch.full((rows,), length - 2)} if recipe.method.answers_in_words else {}
    return {
        **answers,
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": mask,
        "labels": labels.float() if task == "regression" else labels,
        "valid": torch.ones(rows, dtype=torch.bool),
        "num_items_in_batch": rows,
    }
