"""The tuned model in a user's own Python: what users of transformers and peft expect of one, around `TunedModel`."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BatchEncoding, PretrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from sktune.backbone import NOTHING, Backbone, Woven
from sktune.backbone.vocabulary import padding_token
from sktune.data.examples import Example
from sktune.data.prompt_template import PromptTemplate
from sktune.errors import UserError
from sktune.methods.method import Method
from sktune.model.continuing import continuing
from sktune.model.given_model import Source, source_of
from sktune.model.identity import identity
from sktune.model.saving import UNKNOWN_DATA, label_names, save_adapter
from sktune.model.tuned_model import TunedModel, TunedOutput
from sktune.sections import DataSection
from sktune.tasks.config import TaskConfig
from sktune.tasks.heads import IGNORED, Head, LanguageHead
from sktune.terminal import say


class AttachedModel(TunedModel):
    """A tuned model that belongs to its caller's loop, Trainer or script; made by `sktune.attach` and `sktune.load`.

    Attributes:
        tokenizer: the model's; where the method's text brings the BOS, a copy that puts no special tokens around a row.
        config: a copy of the model's configuration, with the labels' names (`id2label`); changing it changes nothing.
        task: the section of the task.
        labels: the labels' names in order; None where they have none.
        belongs_to: what its saved weights are compared with (see `identity`).
        source: the frozen model, in the words of a recipe; None where it has no name to be loaded by.
        data: a recipe's section, for its templates.
    """

    accepts_loss_kwargs = True
    """Tells `transformers.Trainer` to pass `num_items_in_batch`: accumulated batches then weigh as one would."""
    _keys_to_ignore_on_save = None
    supports_gradient_checkpointing = True

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        head: Head,
        *,
        tokenizer: PreTrainedTokenizerBase,
        task: TaskConfig,
        num_labels: int | None,
        labels: Sequence[str] | None = None,
        source: Source | None = None,
        data: DataSection | None = None,
    ) -> None:
        super().__init__(backbone, method, head)
        self.data = data or DataSection(path=UNKNOWN_DATA)
        self.source = source or source_of(backbone.model, tokenizer)
        goes_on = method.config.opens_sequence and not backbone.is_encoder
        self.tokenizer = continuing(tokenizer) if goes_on else tokenizer
        self.task = task
        self.num_labels = num_labels
        self.labels = None if labels is None else tuple(labels)
        self.config = _config(backbone.config, task, num_labels, self.labels)
        self.belongs_to: dict[str, Any] = identity(backbone, tokenizer, method, task, num_labels, self.labels)
        self.detached = False
        self._disabled = False
        self._opening = _opening(backbone, method, tokenizer)
        self.register_load_state_dict_post_hook(_without_frozen)

    # -- calls ----------------------------------------------------------------------------------------------------

    def encode(
        self, texts: str | Sequence[str], pairs: str | Sequence[str] | None = None, **options: Any
    ) -> BatchEncoding:
        """Tokens of texts as this model is to read them.

        With a BOS only where no text of the method brings one; through the templates of the recipe that it was trained
        with; a pair as an encoder's two segments, or as one text.

        Args:
            texts: one or several.
            pairs: second texts, where the model reads two.
            options: of the tokenizer: `truncation`, `max_length`, `padding_side` ...

        Returns:
            `input_ids`, `attention_mask` [B, L] int64 on the model's device, and an encoder's `token_type_ids`.
        """
        first = [texts] if isinstance(texts, str) else list(texts)
        second = [pairs] if isinstance(pairs, str) else None if pairs is None else list(pairs)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        if second is None or not self.backbone.is_encoder:
            field = "text_template" if second is None else "pair_template"
            template = PromptTemplate(f"data.{field}", getattr(self.data, field))
            seconds = [""] * len(first) if second is None else second
            both = zip(first, seconds, strict=True)
            first, second = [template.fill(Example(0, text, other)) for text, other in both], None
        encoded = self.tokenizer(first, second, **{"padding": True, "return_tensors": "pt", **options})
        return encoded.to(self.device)

    def woven(self) -> Woven:
        if self.detached:
            raise UserError("this model was detached: attach a method again")
        return NOTHING if self._disabled else super().woven()

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
    ) -> TunedOutput | tuple[Any, ...]:
        """Reads a batch with what the method adds to it, as a model of transformers would.

        A row's BOS is not read where the method's text has brought one.

        Args:
            input_ids: [B, L] int64.
            attention_mask: [B, L], 1 for real tokens, padding on either side; None: no padding.
            token_type_ids: [B, L], encoders' segments.
            labels: [B], [B, L] for tokens and language, [B, labels] for several labels a text; -100 does not count, of
                numbers NaN.
            num_items_in_batch: what to divide the loss by; None: the labels that count in this batch.
            inputs_embeds: [B, L, d], the tokens' embeddings, instead of `input_ids`.
            position_ids: refused, see below.
            output_hidden_states: whether the output holds `hidden_states`, of the input's own positions.
            return_dict: False: a tuple of what the output holds.
            use_cache: without effect: a pass keeps no cache; `generate` does.

        Raises:
            UserError: for position_ids (positions go on behind what the method puts in front, in order), and for both
                or neither of input_ids and inputs_embeds.
        """
        if position_ids is not None:
            raise UserError(
                "position_ids: positions go on behind what the method puts in front, one a token; leave them out (rows "
                "packed out of several texts cannot be told apart here: in TRL, set packing and padding_free to False)"
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("forward takes exactly one of input_ids and inputs_embeds")
        if input_ids is not None:
            attention_mask, labels = self._opened_once(input_ids, attention_mask, labels)
        output = super().forward(
            input_ids,
            attention_mask,
            token_type_ids,
            labels,
            num_items_in_batch,
            inputs_embeds=inputs_embeds,
            hidden_states=[] if output_hidden_states else None,
        )
        return output.to_tuple() if return_dict is False else output

    def generate(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **options: Any
    ) -> Any:
        """Continues texts with the tuned language model, through transformers' `generate` and its cache.

        Args:
            input_ids: [B, L] int64, as `encode` makes them; a second BOS is not read.
            attention_mask: [B, L], padding on either side; None: no padding.
            options: what transformers' `generate` takes: `max_new_tokens`, `do_sample`, `num_beams` ...

        Returns:
            [B, L + new] int64, each row its input and what was written, padding on the left; or what `options` ask for.

        Raises:
            UserError: where the model is no language model, and for options that cannot be with what the method adds.
        """
        if input_ids is None:
            raise UserError("generate: give input_ids and attention_mask, as tuned.encode(texts) makes them")
        mask, _ = self._opened_once(input_ids, attention_mask, None)
        own = self.generation_config
        if options.get("generation_config") is None and own is not None and own.pad_token_id is None:
            options.setdefault("pad_token_id", padding_token(self.tokenizer, self.backbone.vocabulary_size))
        return super().generate(input_ids, mask, **options)

    def base_model(self, *args: Any, **named: Any) -> BaseModelOutput:
        """The hidden states [B, L, d] that the head reads, as `last_hidden_state`; takes what `forward` takes.

        By this name transformers' models have the part without the head: TRL computes the loss from it.

        Raises:
            UserError: for rows with a second BOS, at which there is no hidden state to predict the first word from.
        """
        ids = named.get("input_ids", args[0] if args else None)
        if (
            ids is not None
            and self._opening is not None
            and bool(self._doubled(ids, named.get("attention_mask")).any())
        ):
            raise UserError(
                "a row begins with a BOS, and the method's text has brought one: give the trainer "
                "processing_class=tuned.tokenizer, which puts none in front"
            )
        output = self(*args, **{**named, "output_hidden_states": True, "labels": None})
        return BaseModelOutput(last_hidden_state=output.hidden_states[-1], hidden_states=output.hidden_states)

    def _opened_once(
        self, ids: torch.Tensor, mask: torch.Tensor | None, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Takes a row's BOS for padding, where the method's text has brought one and the row goes on after it."""
        if self._opening is None or self._disabled:
            return mask, labels
        again = self._doubled(ids, mask)
        if labels is not None and self.head.per_token:
            labels = labels.masked_fill(again, IGNORED)
        return (torch.ones_like(ids) if mask is None else mask).masked_fill(again, 0), labels

    def _doubled(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[B, L] bool: the BOS at the beginning of a row of several tokens."""
        real = torch.ones_like(ids) if mask is None else mask
        first = (real != 0).long().argmax(1, keepdim=True)
        doubled = (ids.gather(1, first) == self._opening) & (real.sum(1, keepdim=True) > 1)
        return torch.zeros_like(ids, dtype=torch.bool).scatter(1, first, doubled)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the method adds nothing: the head, as it is trained, reads the plain model.

        Raises:
            UserError: where the model's own weights are what trains (full, top_layers).
        """
        if self.method.config.trains_backbone:
            raise UserError(
                "disable_adapter: this method trains the model's own weights, so the plain model is no longer there; "
                "load it again"
            )
        before, self._disabled = self._disabled, True
        try:
            yield
        finally:
            self._disabled = before

    # -- what trains ----------------------------------------------------------------------------------------------

    def parameters_to_train(self) -> list[nn.Parameter]:
        """What an optimizer takes: `torch.optim.AdamW(tuned.parameters_to_train(), lr=3e-3)`; fp32, all of them."""
        return list(self.trainable_parameters().values())

    def print_trainable_parameters(self) -> None:
        """Prints how many parameters train, of how many; as peft's models do."""
        trainable, total = self.parameter_counts()
        say(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """What was trained, and the head's constants; nothing of the frozen model, which is loaded by itself."""
        found: Any = OrderedDict() if destination is None else destination
        trained = {name: p if keep_vars else p.detach() for name, p in self.trainable_parameters().items()}
        for name, part in (("method", self.method), ("head", self.head)):
            trained |= part.state_dict(prefix=f"{name}.", keep_vars=keep_vars)
        for name, tensor in trained.items():
            found[prefix + name] = tensor
        return found

    def save(self, folder: str | Path) -> Path:
        """`sktune.save_adapter`: the folder gives this model again with `sktune.load(folder)`."""
        return save_adapter(self, folder)

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """`save`, by the name that models of transformers and peft have."""
        self.save(save_directory)

    # -- what tools ask of a model of transformers ------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.backbone.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What the frozen model computes in; what trains is fp32."""
        return self.backbone.dtype

    @property
    def generation_config(self) -> Any:
        """The model's own, which `generate` goes by; None where it writes no texts."""
        return getattr(self.backbone.model, "generation_config", None)

    def get_input_embeddings(self) -> Any:
        """The frozen model's embeddings of tokens."""
        return self.backbone.model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The language model's head, where it answers; else None."""
        return self.backbone.model.get_output_embeddings() if isinstance(self.head, LanguageHead) else None

    def add_model_tags(self, tags: str | Sequence[str]) -> None:
        """Tags of a hub's model card, which an adapter's folder does not have; without effect."""

    @property
    def loss_type(self) -> str | None:
        """By this Trainer tells that a language model's first label does not count."""
        return "ForCausalLM" if isinstance(self.head, LanguageHead) else None

    def _get_name(self) -> str:
        # By this it tells that smoothed labels are those of the next token.
        return type(self.backbone.model).__name__ if isinstance(self.head, LanguageHead) else super()._get_name()

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recomputes every block in backward from now on; `transformers.Trainer` calls it.

        Raises:
            UserError: for what is not supported: `use_reentrant`, only some of the blocks, offloading.
        """
        settings = dict(activation_checkpointing_kwargs or {})
        if settings.pop("use_reentrant", False) or settings or every_n_layers != 1 or offload:
            raise UserError(
                "activation_checkpointing_kwargs: blocks are recomputed one by one, without use_reentrant, "
                "every_n_layers, offload or other settings; leave them out"
            )
        self.backbone.gradient_checkpointing = True

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        """`activation_checkpointing_enable` by the name that earlier versions of transformers call."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **settings)

    def gradient_checkpointing_disable(self) -> None:
        """Keeps the blocks' activations from now on."""
        self.backbone.gradient_checkpointing = False


def _config(
    given: PretrainedConfig, task: TaskConfig, num_labels: int | None, labels: Sequence[str] | None
) -> PretrainedConfig:
    config = copy.deepcopy(given)
    names = label_names(labels, num_labels)
    if names is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    config.problem_type = task.problem_type  # type: ignore[assignment]
    return config


def _opening(backbone: Backbone, method: Method, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The BOS that a decoder's text opens the sequence with, so that a row is not to bring another."""
    bos = tokenizer.bos_token_id
    if backbone.is_encoder or not method.config.opens_sequence or bos is None:
        return None
    opens = list(tokenizer("a", add_special_tokens=True)["input_ids"])[:1] == [bos]
    return int(bos) if opens else None


def _without_frozen(module: nn.Module, incompatible: Any) -> None:
    """Of keys that a state lacks, those of the frozen model are as they should be."""
    assert isinstance(module, AttachedModel)
    expected = set(module.state_dict())
    frozen = {f"backbone.{name}" for name in module.backbone.state_dict()} - expected
    incompatible.missing_keys[:] = [
        key for key in incompatible.missing_keys if key[max(key.find("backbone."), 0) :] not in frozen
    ]
