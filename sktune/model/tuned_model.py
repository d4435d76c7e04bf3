"""The one module that is trained: frozen backbone, tuning method and head; a batch in, loss and logits out.

Both passes of SK-Tuning happen inside its forward, as ZeRO-3 requires (design fact 17).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from sktune.backbone import Backbone, Woven
from sktune.backbone.generation import generate
from sktune.backbone.lower_blocks import passed_over, read_lower, release
from sktune.backbone.quantized import FrozenLinear
from sktune.errors import UserError
from sktune.methods.method import Method
from sktune.methods.peft_names import FIRST, adapter_of, renamed
from sktune.model.padding import RightAligned
from sktune.recipe.recipe import Recipe
from sktune.tasks.heads import Head, LanguageHead, TrainedHead, summed_features

CENTRE = "head.centre"
"""Name of the head's centre among the weights of a checkpoint; a saved adapter has it folded into the bias."""


SHORTEST_INPUT = 2
"""Tokens: the least that `data.max_length` can be."""


@dataclass
class TunedOutput(ModelOutput):
    """Output of `TunedModel`.

    loss: scalar, summed over the labels that count, over `num_items_in_batch` or their number; None without labels.
    logits: as the head makes them: [B, L, labels] of tokens, [B, labels] of rows, [B] numbers, and for the
        language model [B, k, vocabulary] at each row's positions before its target tokens, k of the row with most.
    row_loss, row_count: language model only, [B]: negative log-likelihood of each row's target and its tokens.
    hidden_states: where they were asked for, the embeddings [B, L, d] of the input, then what it is after each block.
    frozen_states: only where they were asked for, [B, L, d]: after the blocks that nothing changes, right-padded.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    row_loss: torch.Tensor | None = None
    row_count: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    frozen_states: torch.Tensor | None = None


def check_positions(recipe: Recipe, backbone: Backbone, prompt_length: int) -> None:
    """Refuses inputs that could be longer, with what is put in front of them, than the model reads.

    Raises:
        UserError: with the length that is allowed.
    """
    limit = backbone.max_positions
    if limit is not None and limit - prompt_length < SHORTEST_INPUT:
        field = "text" if getattr(recipe.method, "text", None) is not None else "num_virtual_tokens"
        raise UserError(
            f"method.{field}: a prompt of {prompt_length} tokens leaves no room for an input in the {limit} positions "
            f"of {recipe.model.name_or_path}; shorten it"
        )
    if limit is not None and prompt_length + recipe.data.max_length > limit:
        raise UserError(
            f"data.max_length: {recipe.data.max_length} tokens after a prompt text of {prompt_length} exceed the "
            f"{limit} positions of {recipe.model.name_or_path}; allowed: up to {limit - prompt_length}"
        )


class TunedModel(nn.Module):
    """Backbone, method and head as one `nn.Module`; only the method and the head have trainable parameters."""

    def __init__(self, backbone: Backbone, method: Method, head: Head) -> None:
        super().__init__()
        # The backbone first: ZeRO-3 looks at the dtype of a module's first parameter, and an embedding's suits it.
        self.backbone = backbone
        self.method = method
        self.head = head
        self.frozen_blocks = method.config.frozen_blocks(len(backbone.blocks))
        self.lower_blocks_released = backbone.left_out > 0
        self.text_states: torch.Tensor | None = None
        """[1, P, d], of a method's text after blocks that were left out."""

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name; fp32, all of them."""
        return {renamed(name, FIRST): p for name, p in self.own_parameters().items()}

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """The same by their names as modules, without those of other adapters inside the model."""
        training = {name: p for name, p in self.named_parameters() if p.requires_grad}
        return {name: p for name, p in training.items() if adapter_of(name) in (None, self.method.peft_adapter)}

    def constants(self) -> dict[str, torch.Tensor]:
        """What a run sets once and goes on with: the head's centre; on the CPU, by name."""
        return {CENTRE: self.head.centre.cpu().clone()} if isinstance(self.head, TrainedHead) else {}

    @torch.no_grad()
    def put_constants(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Takes over the constants of saved weights; where they have none, the head's centre becomes zero."""
        if isinstance(self.head, TrainedHead):
            self.head.centre.copy_(weights.get(CENTRE, torch.zeros_like(self.head.centre)))

    @torch.no_grad()
    def start_head(self, batch: Mapping[str, Any], labels: torch.Tensor | None = None) -> None:
        """Starts the head for a training loop of your own, as a run of a recipe does; once, before the first step.

        Its weights become zero, its bias the log of the labels' frequencies (of numbers: their mean), and its input is
        from now on taken less the mean of its input on this batch. Without this call it starts at zero, uncentred.

        Args:
            batch: what `forward` takes, with `labels`: some dozens of training examples.
            labels: of the whole training data, [N, ...] as in a batch; None: those of the batch.

        Raises:
            UserError: where no head is trained (a language model answers), and without labels.
        """
        head = self.head
        if not isinstance(head, TrainedHead):
            raise UserError("start_head: this model has no head of its own to start; it answers with its words")
        if batch.get("labels") is None:
            raise UserError("start_head: the batch has no labels; give what the training loop gives")
        head.centre.zero_()
        head.classifier.weight.zero_()
        head.set_prior(torch.as_tensor(batch["labels"]) if labels is None else labels)
        was_training = self.training
        with summed_features(head) as feature_sum:
            self.eval()(**batch)
        head.set_centre(feature_sum)
        self.train(was_training)

    def release_lower_blocks(self) -> None:
        """Gives back the memory of the blocks that nothing changes: every input then comes with `frozen_states`."""
        release(self.backbone, self.frozen_blocks)
        self.lower_blocks_released = True

    def parameter_counts(self) -> tuple[int, int]:
        """(trainable, all), in logical parameters also where the backbone is packed or partitioned."""
        packed: dict[int, int] = {}
        for module in self.backbone.modules():
            if isinstance(module, FrozenLinear):
                packed |= {id(p): 0 for p in module.parameters()} | {id(module.weight): module.weight_elements}
                if module.bias is not None:
                    packed[id(module.bias)] = module.out_features
        trainable = sum(_logical_size(p) for p in self.own_parameters().values())
        held = sum(packed.get(id(p), _logical_size(p)) for p in self.parameters())
        return trainable, held + self.backbone.left_out_elements

    def woven(self) -> Woven:
        """What the method adds to every row."""
        below: AbstractContextManager[Any] = nullcontext()
        if self.text_states is not None:
            below = passed_over(self.backbone, self.text_states, self.frozen_blocks)
        with below:
            added: Woven = self.method(self.backbone)
        return added

    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any
    ) -> torch.Tensor:
        """Continues texts with the tuned language model; see `sktune.backbone.generation.generate`.

        Raises:
            UserError: where the model does not answer in words of its own, and for options that cannot be.
        """
        if not isinstance(self.head, LanguageHead):
            raise UserError(
                "generate: this model answers with its head; only a language model, on a task that ends in text, writes"
            )
        with torch.no_grad():
            return generate(self.backbone, self.woven(), input_ids, attention_mask, **options)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        answer_positions: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        hidden_states: list[torch.Tensor] | None = None,
        frozen_states: torch.Tensor | None = None,
        frozen_states_after: int | None = None,
        only_frozen: bool = False,
    ) -> TunedOutput:
        """Reads the prompt text, weaves it in, reads the batch.

        Args:
            input_ids: [B, L] int64; None with `inputs_embeds`.
            attention_mask: [B, L], 1 for real tokens, padding on either side; None: no padding.
            token_type_ids: [B, L], encoders' segments.
            labels: [B], [B, L] for tokens and language, or as the head takes them; -100 does not count, of numbers NaN.
            num_items_in_batch: what to divide the loss by; None: the labels that count in this batch.
            answer_positions: [B] int64, where the language model answers with a label's word, counted without padding.
            inputs_embeds: [B, L, d], the tokens' embeddings, instead of `input_ids`.
            hidden_states: filled with the input's hidden states [B, L, d]: the embeddings, then after each block, the
                last one as the heads read it.
            frozen_states: [B, L, d], padded on the right whatever the side of `input_ids`: go on from these, which an
                earlier pass with `only_frozen` gave, instead of reading through the blocks that nothing changes.
            frozen_states_after: how many blocks those states come after; None: all that nothing changes.
            only_frozen: read through those blocks alone and return their states.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None
        mask = given.new_ones(given.shape[:2], dtype=torch.long) if attention_mask is None else attention_mask
        aligned = RightAligned(mask)
        woven = self.woven()
        types: dict[str, Any] = {} if token_type_ids is None else {"token_type_ids": aligned.forth(token_type_ids)}
        passing: AbstractContextManager[Any] = nullcontext()
        if frozen_states is None:
            assert not self.lower_blocks_released, "an input without the states of the blocks that are gone"
            embeds = self.backbone.embed(aligned.forth(given)) if inputs_embeds is None else aligned.forth(given)
        else:
            embeds = self.backbone.unread(frozen_states)
            after = self.frozen_blocks if frozen_states_after is None else frozen_states_after
            passing = passed_over(self.backbone, frozen_states, after)
        if only_frozen:
            with passing:
                read = read_lower(self.backbone, embeds, aligned.attention_mask, woven, self.frozen_blocks, **types)
            return TunedOutput(frozen_states=read)
        if labels is not None and self.head.per_token:
            labels = aligned.forth(labels)
        ask = self.head.asks(labels, answer_positions)
        if hidden_states is not None:
            ask = {**ask, "hidden_states": hidden_states}
        with passing:
            states = self.backbone.read(embeds, aligned.attention_mask, woven, **ask, **types)
        if hidden_states is not None:
            hidden_states[:] = map(aligned.restore, hidden_states)
        scored = self.head(states, aligned.attention_mask, labels, ask)
        logits = scored.logits
        # A language model's logits at chosen positions stay as they are.
        if self.head.per_token and logits.shape[1] == mask.shape[1]:
            logits = aligned.restore(logits)
        loss = None
        if labels is not None:
            count = scored.labelled.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            loss = scored.loss_sum / count
        kept = None if hidden_states is None else tuple(hidden_states)
        return TunedOutput(
            loss=loss, logits=logits, row_loss=scored.row_loss, row_count=scored.row_count, hidden_states=kept
        )


def _logical_size(parameter: nn.Parameter) -> int:
    # A packed 4-bit weight knows the shape it stands for; ZeRO-3 remembers the size of a partitioned one.
    state = getattr(parameter, "quant_state", None)
    if state is not None and getattr(state, "shape", None) is not None:
        return int(torch.Size(state.shape).numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def put_weights(model: TunedModel, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Copies saved weights into a model; collective where ZeRO-3 has partitioned what trains.

    The head's centre becomes zero where they have none: of an adapter, or of a checkpoint from before there was one.

    Raises:
        UserError: where names or shapes differ, so the recipe is not the one they were trained with.
    """
    parameters = model.trainable_parameters()
    expected = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in parameters.items()}
    constants = model.constants().keys()
    found = {name: tuple(tensor.shape) for name, tensor in weights.items() if name not in constants}
    if expected != found:
        differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        first = differing[0]
        raise UserError(
            f"{source}: its weights do not fit this recipe: {first} is {found.get(first, 'absent')} there and "
            f"{expected.get(first, 'absent')} here ({len(differing)} such); use the recipe it was trained with"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            with _whole(parameter):
                parameter.copy_(weights[name])
    model.put_constants(weights)


def fold_centre(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same answers without a centre: the bias less the weights times the centre takes the bias's place."""
    folded = dict(weights)
    centre = folded.pop(CENTRE, None)
    if centre is not None:
        weight, bias = folded["head.classifier.weight"], folded["head.classifier.bias"]
        folded["head.classifier.bias"] = (bias.double() - weight.double() @ centre.double()).to(bias.dtype)
    return folded


def _whole(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    if not hasattr(parameter, "ds_shape"):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
    return gathered
