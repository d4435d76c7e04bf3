"""The tuned model in a user's own Python: what users of transformers and peft expect of one, around `TunedModel`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import BatchEncoding, PretrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from sktune.backbone import NOTHING, Backbone, Woven
from sktune.backbone.vocabulary import padding_token
from sktune.data.examples import Example
from sktune.data.prompt_template import PromptTemplate
from sktune.errors import UserError
from sktune.methods.method import Method
from sktune.model.continuing import continuing, original
from sktune.model.given_model import Source, source_of
from sktune.model.hub import push
from sktune.model.identity import identity
from sktune.model.saving import UNKNOWN_DATA, label_names, save_adapter
from sktune.model.transformers_model import TransformersModel
from sktune.model.tuned_model import TunedOutput
from sktune.sections import DataSection
from sktune.tasks.config import TaskConfig
from sktune.tasks.heads import IGNORED, Head


class AttachedModel(TransformersModel):
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

        Raises:
            UserError: for another number of second texts.
        """
        first = [texts] if isinstance(texts, str) else list(texts)
        second = [pairs] if isinstance(pairs, str) else None if pairs is None else list(pairs)
        if second is not None and len(second) != len(first):
            raise UserError(f"encode: {len(first)} texts and {len(second)} second texts; give one for each")
        # Without the method no text of its own brings a BOS.
        tokenizer = original(self.tokenizer) if self._disabled else self.tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if second is None or not self.backbone.is_encoder:
            field = "text_template" if second is None else "pair_template"
            template = PromptTemplate(f"data.{field}", getattr(self.data, field))
            seconds = [""] * len(first) if second is None else second
            both = zip(first, seconds, strict=True)
            first, second = [template.fill(Example(0, text, other)) for text, other in both], None
        encoded = tokenizer(first, second, **{"padding": True, "return_tensors": "pt", **options})
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

    def save(self, folder: str | Path) -> Path:
        """`sktune.save_adapter`: the folder gives this model again with `sktune.load(folder)`."""
        return save_adapter(self, folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload of an adapter by sktune",
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
    ) -> str:
        """Saves the adapter, with a model card, as a repository of the hub that `sktune.load(repo_id)` reads.

        Args:
            repo_id: `user/name`; made where it is not there.
            commit_message: of the commit.
            private: of a new repository; None: as the account says.
            token: of the account; None: the one that `hf auth login` has kept.
            revision: branch; None: the main one.

        Returns:
            The commit's address.

        Raises:
            UserError: where the hub refuses it or cannot be reached.
        """
        return push(self.save, repo_id, private=private, token=token, revision=revision, message=commit_message)

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """`save`, by the name that models of transformers and peft have."""
        self.save(save_directory)


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
