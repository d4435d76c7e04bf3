"""The frozen backbone: a Hugging Face model seen through the few calls the methods need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sktune.backbone import architecture
from sktune.backbone.attention import LayerKeyValues, register_prefix_attention
from sktune.backbone.prefix_cache import PrefixCache
from sktune.backbone.weaving import NOTHING, Pass, Woven
from sktune.errors import UserError
from sktune.library_internals import never_repack, supports


def linear_names(module: nn.Module) -> list[str]:
    """Names of the linear layers inside a module."""
    return [name for name, part in module.named_modules() if isinstance(part, nn.Linear | Conv1D)]


class Backbone(nn.Module):
    """A frozen decoder or encoder; it never trains, never drops out, and reads at given positions.

    What a method adds is on the model during a pass only; several may take turns on one model.

    Args:
        model: a `transformers` model without a task head, or a causal language model.
        attn_implementation: `eager`, `sdpa` or `flash_attention_2`; what the model was loaded with.
        gradient_checkpointing: recompute each block in backward instead of keeping its activations.
        visible_prefix: False where the attention may hide a prefix (see `loading.attention_for`), so that one is
            refused.

    Raises:
        UserError: for an architecture that cannot be tuned this way, by its name.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        attn_implementation: str = "sdpa",
        gradient_checkpointing: bool = False,
        visible_prefix: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.family: str = model.config.model_type
        self.attn_implementation = attn_implementation
        self.visible_prefix = visible_prefix
        self.takes_position_ids = architecture.check(self.base)
        self.as_given = model.training, [name for name, p in model.named_parameters() if p.requires_grad]
        model.requires_grad_(False)
        for module in model.modules():
            never_repack(module)  # a model that the caller loaded may have bitsandbytes' own layers
        self.gradient_checkpointing = gradient_checkpointing
        # A frozen block does not; a method that puts dropout into it says so.
        self.draws_random_numbers = False
        self._training_with_the_method: list[nn.Module] = []
        self._routes_attention = False
        # Whether a block gives a tuple that begins with the states; None until one was seen (`lower_blocks`).
        self.blocks_give_tuples: bool | None = None
        self.left_out = self.left_out_elements = 0
        """Lower blocks that have no weights, and the numbers of these and of the token embeddings (`lower_blocks`)."""
        self.dtype_of_all: torch.dtype | None = None
        """What `dtype` was before parameters were taken (`lower_blocks`); None: none were."""
        self.passed_over = 0
        """Lower blocks that a pass does not run."""
        self.uses_cache_for_prefix = self.family in architecture.CACHE_FAMILIES
        self.eval()

    # -- what the model is ------------------------------------------------------------------------------------

    @property
    def base(self) -> PreTrainedModel:
        """The model without its language-model head."""
        base: PreTrainedModel = getattr(self.model, self.model.base_model_prefix, self.model)
        return base

    @property
    def is_encoder(self) -> bool:
        """True where every token reads every other (BERT, RoBERTa)."""
        return architecture.is_encoder(self.config)

    @property
    def is_language_model(self) -> bool:
        """True where the model was loaded with its language-model head."""
        return self.model is not self.base

    @property
    def hidden_size(self) -> int:
        """Width d of a hidden state."""
        return int(self.config.hidden_size)

    @property
    def vocabulary_size(self) -> int:
        """Token ids that have an embedding: 0 to this, exclusive."""
        embeddings: Any = self.base.get_input_embeddings()
        return int(embeddings.num_embeddings)

    @property
    def dtype(self) -> torch.dtype:
        """What embeddings and hidden states are in."""
        # transformers goes by the first parameter, which may then be a scale, an adapter's, or none.
        return self.base.dtype if self.dtype_of_all is None else self.dtype_of_all

    @property
    def blocks(self) -> nn.ModuleList:
        """The model's transformer blocks, in order."""
        parent, name = architecture.place_of_blocks(self.base)
        return getattr(parent, name)

    @property
    def key_value_width(self) -> int:
        """Features of one token's keys (and of its values) in one layer: kv_heads * head_dim."""
        return architecture.key_value_width(self.config)

    @property
    def max_positions(self) -> int | None:
        """Most tokens the model can tell apart by position; None where there is no such limit."""
        return architecture.max_positions(self.base)

    def unread_parameters(self) -> list[nn.Parameter]:
        """Parameters that neither hidden states nor logits depend on: those of a pooler (BERT, RoBERTa)."""
        pooler = getattr(self.base, "pooler", None)
        return list(pooler.parameters()) if isinstance(pooler, nn.Module) else []

    def linear_names(self) -> list[str]:
        """Names of the linear layers inside the blocks' model."""
        return linear_names(self.base)

    @property
    def stores_transposed(self) -> bool:
        """True where linear layers hold W^T (GPT-2's `Conv1D`, unquantized)."""
        return any(isinstance(module, Conv1D) for module in self.base.modules())

    def sublayer_outputs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Of each block, the layers that attention and feed-forward end with.

        Raises:
            UserError: for a family whose layers are not known by name.
        """
        return [architecture.sublayer_outputs(block, self.family) for block in self.blocks]

    # -- mode ---------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Backbone:
        """Frozen means no dropout either: but for what a method put into it, the backbone stays in evaluation mode."""
        super().train(False)
        for module in self._training_with_the_method:
            module.train(mode)
        return self

    def release(self) -> None:
        """Puts the model's mode and what of it trains back to what they were when it was given."""
        training, names = self.as_given
        self.model.requires_grad_(False)
        for name in names:
            self.model.get_parameter(name).requires_grad_(True)
        self.model.train(training)

    def let_train(self, modules: Iterable[nn.Module]) -> None:
        """Modules that a method put into the backbone and whose dropout is on in training."""
        self._training_with_the_method = list(modules)
        self.draws_random_numbers = bool(self._training_with_the_method)

    @contextmanager
    def without_checkpointing(self) -> Iterator[None]:
        """Runs the block plainly: for short passes, and passes that write a cache."""
        before, self.gradient_checkpointing = self.gradient_checkpointing, False
        try:
            yield
        finally:
            self.gradient_checkpointing = before

    @contextmanager
    def only_first_blocks(self, count: int) -> Iterator[None]:
        """Inside, the model consists of its first `count` blocks; the ones above are not there to be run."""
        parent, name = architecture.place_of_blocks(self.base)
        blocks = getattr(parent, name)
        setattr(parent, name, nn.ModuleList(blocks[:count]))
        try:
            yield
        finally:
            setattr(parent, name, blocks)

    def use_prefix_attention(self, method: str) -> None:
        """Lets passes route attention through the prefix-aware functions; for a prefix or gated prompts.

        Args:
            method: the name to refuse where that cannot be.

        Raises:
            UserError: where the architecture neither uses the attention interface nor is known to read a
                prefix from its cache.
        """
        if self.uses_cache_for_prefix:
            return
        if not supports(self.base, "interface"):
            raise UserError(
                f"method.name: {method} is not available for {self.family}: its attention does not use transformers' "
                "attention interface; choose a method in front of the input (`sktune list methods`)"
            )
        register_prefix_attention()
        self._routes_attention = True

    @contextmanager
    def without_prefix_attention(self) -> Iterator[None]:
        """Inside, passes attend as for a method that asks for no prefix attention."""
        before, self._routes_attention = self._routes_attention, False
        try:
            yield
        finally:
            self._routes_attention = before

    # -- calls ----------------------------------------------------------------------------------------------------

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings [batch, length, d] in the model's dtype, of input_ids [batch, length]."""
        embeddings: Any = self.base.get_input_embeddings()
        if self.left_out:  # a pass goes on from states further up
            return torch.zeros(*input_ids.shape, embeddings.embedding_dim, dtype=self.dtype, device=input_ids.device)
        return embeddings(input_ids)

    def unread(self, states: torch.Tensor) -> torch.Tensor:
        """Embeddings of no token, for a pass over an input whose states [batch, length, d] come from further up."""
        embeddings: Any = self.base.get_input_embeddings()
        return states.new_zeros(*states.shape[:2], embeddings.embedding_dim)

    def read(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        woven: Woven = NOTHING,
        *,
        with_lm_head: bool = False,
        answer_positions: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        hidden_states: list[torch.Tensor] | None = None,
        record: list[tuple[nn.Module, LayerKeyValues]] | None = None,
    ) -> torch.Tensor:
        """Reads an input with what a method adds to it.

        Args:
            inputs_embeds: [batch, length, d], right-padded.
            attention_mask: [batch, length], 1 for real tokens.
            woven: what the method adds.
            with_lm_head: return the language model's logits instead of hidden states.
            answer_positions: [batch] or [batch, k] int64, the positions whose logits are wanted, counted in the input.
            token_type_ids: [batch, length], an encoder's segments.
            hidden_states: filled with the input's own embeddings, and its hidden states after each block.
            record: as in `forward`.

        Returns:
            Of the input's own positions, hidden states [batch, length, d], or logits as `forward`.

        Raises:
            UserError: for a prefix, where the attention may hide it, or where the input is so long that the model's
                rotary frequencies are others than those the prefix was read with.
        """
        if woven.prefix is not None and not self.visible_prefix:
            raise UserError(
                f"method.name: a prefix was made for a {self.family} that was loaded without visible_prefix, where the "
                "attention may hide it from some tokens; the method's section must say visible_prefix = True"
            )
        border = architecture.rotary_border(self.config) if woven.prefix else None
        if woven.prefix and border is not None:
            length = woven.prefix[0][1].key.shape[2], inputs_embeds.shape[1]
            if sum(length) > border:
                raise UserError(
                    f"method.name: behind a prefix of {length[0]} tokens an input of {length[1]} exceeds the {border} "
                    f"positions up to which the rotary frequencies of {self.family} do not depend on the length: those "
                    f"of the prefix would be others; lower data.max_length to {border - length[0]}, or choose a method "
                    "in front of the input (`sktune list methods`)"
                )
        count = 0
        if woven.prompt is not None:
            count = woven.prompt.shape[1]
            prompt = woven.prompt.to(inputs_embeds.dtype).expand(inputs_embeds.shape[0], -1, -1)
            inputs_embeds = torch.cat((prompt, inputs_embeds), dim=1)
            attention_mask = F.pad(attention_mask, (count, 0), value=1)
        # The prompt belongs to an encoder's first segment.
        types = {} if token_type_ids is None else {"token_type_ids": F.pad(token_type_ids, (count, 0))}
        # Called as a module, not by its `forward`: ZeRO-3's hooks sit on the call.
        output: torch.Tensor = self(
            inputs_embeds,
            attention_mask,
            woven=woven,
            record=record,
            with_lm_head=with_lm_head,
            answer_positions=None if answer_positions is None else answer_positions + count,
            hidden_states=hidden_states,
            **types,
        )
        if hidden_states is not None:
            hidden_states[:] = [states[:, count:] for states in hidden_states]
        return output[:, count:] if answer_positions is None else output

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        *,
        woven: Woven = NOTHING,
        record: list[tuple[nn.Module, LayerKeyValues]] | None = None,
        with_lm_head: bool = False,
        answer_positions: torch.Tensor | None = None,
        hidden_states: list[torch.Tensor] | None = None,
        **model_inputs: Any,
    ) -> torch.Tensor:
        """One pass over right-padded embeddings.

        Args:
            inputs_embeds: [batch, length, d].
            attention_mask: [batch, length], 1 for real tokens; padding only on the right.
            woven: what is added inside the model; positions go on behind a prefix. A prompt is in `inputs_embeds`.
            record: filled with (attention module, its keys and values) of every attention call, in order.
            with_lm_head: return the language model's logits instead of hidden states.
            answer_positions: [batch] or [batch, k] int64, the positions whose logits are wanted (with_lm_head only).
            hidden_states: filled with the embeddings and the hidden states after each block, the last one normed.
            model_inputs: further arguments of the model (token_type_ids).

        Returns:
            Hidden states [batch, length, d], or logits [batch, k or length, vocabulary].
        """
        length = inputs_embeds.shape[1]
        inputs: dict[str, Any] = {
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            **model_inputs,
        }
        if self.takes_position_ids:
            start = (woven.prefix[0][1].key.shape[2] if woven.prefix else 0) + architecture.first_position(self.base)
            inputs["position_ids"] = torch.arange(start, start + length, device=inputs_embeds.device)[None].expand(
                inputs_embeds.shape[0], -1
            )
        with self.weaving(woven, record), self._keeping(hidden_states):
            return self._called(inputs, woven, with_lm_head, answer_positions)

    @contextmanager
    def weaving(self, woven: Woven, record: list[tuple[nn.Module, LayerKeyValues]] | None = None) -> Iterator[None]:
        """Inside, the model itself reads with what was woven (but for a prompt), and is then as it was before."""
        through_cache = self.uses_cache_for_prefix
        one_pass = Pass(
            self.model,
            woven._replace(prefix=None) if through_cache else woven,
            implementation=self.attn_implementation if self._routes_attention else None,
            checkpointed=list(self.blocks) if self.gradient_checkpointing and torch.is_grad_enabled() else [],
            random=self.draws_random_numbers,
            record=record,
        )
        with one_pass.active():
            yield

    def _called(
        self,
        inputs: dict[str, Any],
        woven: Woven,
        with_lm_head: bool,
        answer_positions: torch.Tensor | None,
    ) -> torch.Tensor:
        if woven.prefix and self.uses_cache_for_prefix:
            mask, prefix = inputs["attention_mask"], [key_values for _, key_values in woven.prefix]
            inputs["attention_mask"] = F.pad(mask, (prefix[0].key.shape[2], 0), value=1)
            inputs["past_key_values"] = PrefixCache(prefix, mask.shape[0])
        inputs["use_cache"] = inputs.get("past_key_values") is not None
        if not with_lm_head:
            hidden: torch.Tensor = self.base(**inputs)[0]
            return hidden
        if answer_positions is None:
            everywhere: torch.Tensor = self.model(**inputs).logits
            return everywhere
        positions = answer_positions.view(len(answer_positions), -1)
        with self._only_at(positions) as reached:
            logits: torch.Tensor = self.model(**inputs).logits
        return logits if reached else _at(logits, positions)

    @contextmanager
    def _keeping(self, hidden_states: list[torch.Tensor] | None) -> Iterator[None]:
        """Inside, what enters the blocks, what leaves each but the last, and what the base returns is kept."""
        if hidden_states is None:
            yield
            return

        def before(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden_states.append(inputs[0] if inputs else named["hidden_states"])

        def after(_: nn.Module, inputs: Any, output: Any) -> None:
            hidden_states.append(output[0])

        hooks = [block.register_forward_pre_hook(before, with_kwargs=True) for block in self.blocks]
        hooks.append(self.base.register_forward_hook(after))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _only_at(self, positions: torch.Tensor) -> Iterator[list[bool]]:
        """Inside, the language model's head is given the hidden states at positions [batch, k] alone.

        The head stays the model's own, whatever it consists of: transforms, biases, scaled or capped logits. The list
        is empty where it was given all of them.
        """
        reached: list[bool] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
            output.last_hidden_state = _at(output[0], positions)
            reached.append(True)
            return output

        def keep_late(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
            if reached or not inputs:
                return None
            reached.append(True)
            return _at(inputs[0], positions), *inputs[1:]

        hooks = [self.base.register_forward_hook(keep)]
        # A family's language model (OPT) may go past the base's own forward.
        hooks.append(self.model.get_output_embeddings().register_forward_pre_hook(keep_late))
        try:
            yield reached
        finally:
            for hook in hooks:
                hook.remove()


def _at(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[batch, length, n] at positions [batch, k] -> [batch, k, n]."""
    return states[torch.arange(len(states), device=states.device)[:, None], positions]
