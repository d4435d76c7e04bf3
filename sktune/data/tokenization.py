"""Texts to tokens: with offsets, cut to a length, and never to nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sktune.errors import UserError
from sktune.progress import progress

_CHUNK = 1000  # texts per tokenizer call: bounds the memory of offsets and of texts before they are cut


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenized text.

    `offsets` are the character spans of the tokens; `full` holds ids and offsets before the cut, where
    there was one.
    """

    input_ids: list[int]
    token_type_ids: list[int] | None
    offsets: list[tuple[int, int]]
    full: Tokens | None = None

    @property
    def truncated(self) -> bool:
        """Whether the text was cut to the maximum length."""
        return self.full is not None


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int, add_special_tokens: bool, pair: bool) -> None:
    """Refuse a tokenizer without offsets, and a maximum length that special tokens fill.

    Raises:
        UserError: naming the tokenizer.
    """
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise UserError(
            f"model.tokenizer: {name} ({type(tokenizer).__name__}) is a slow tokenizer and cannot say which "
            "characters a token covers. Use one with a tokenizer.json (a fast tokenizer)."
        )
    special = tokenizer.num_special_tokens_to_add(pair=pair) if add_special_tokens else 0
    if special >= max_length:
        raise UserError(
            f"data.max_length is {max_length}, but the tokenizer {name} adds {special} special tokens to each"
            f" input. Set it to at least {special + 1}."
        )


def some_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token that says nothing, to stand for an empty text where no special tokens are added."""
    candidates = (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
    return int(next((token for token in candidates if token is not None), 0))


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    max_length: int | None,
    add_special_tokens: bool,
    token_type_ids: bool,
) -> Iterator[Tokens]:
    """Tokenize texts, or pairs of them, in order.

    A text that is too long is cut on the tokenizer's own truncation side; of a pair, the longer text gives
    first (`longest_first`). A text without any token becomes one token that says nothing.

    Args:
        tokenizer: a fast tokenizer.
        texts: the texts, or the first texts of the pairs.
        pairs: the second texts, or None.
        max_length: tokens kept, special tokens counted; None keeps all.
        add_special_tokens: whether the tokenizer puts its special tokens around each input.
        token_type_ids: whether to keep segment ids, where the tokenizer makes them.
    """
    with progress("tokenizing", len(texts), "texts", shown=len(texts) > _CHUNK) as advance:
        for start in range(0, len(texts), _CHUNK):
            chunk = list(texts[start : start + _CHUNK])
            second = None if pairs is None else list(pairs[start : start + _CHUNK])
            whole = _call(tokenizer, chunk, second, None, add_special_tokens, token_type_ids)
            limit = max_length or max(len(tokens.input_ids) for tokens in whole)
            long = [i for i, tokens in enumerate(whole) if len(tokens.input_ids) > limit]
            if long:
                long_second = None if second is None else [second[i] for i in long]
                cut = _call(
                    tokenizer,
                    [chunk[i] for i in long],
                    long_second,
                    max_length,
                    add_special_tokens,
                    token_type_ids,
                )
                for i, tokens in zip(long, cut, strict=True):
                    whole[i] = Tokens(tokens.input_ids, tokens.token_type_ids, tokens.offsets, full=whole[i])
            yield from whole
            advance(len(chunk))


def _call(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    pairs: list[str] | None,
    max_length: int | None,
    add_special_tokens: bool,
    token_type_ids: bool,
) -> list[Tokens]:
    batch = tokenizer(
        texts,
        pairs,
        add_special_tokens=add_special_tokens,
        padding=False,
        truncation="longest_first" if max_length is not None else False,
        max_length=max_length,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,  # its own warning about long texts: ours are cut and counted
    )
    types = batch.get("token_type_ids") if token_type_ids else None
    result = []
    for i, ids in enumerate(batch["input_ids"]):
        offsets = [(int(s), int(e)) for s, e in batch["offset_mapping"][i]]
        segments = None if types is None else list(types[i])
        if not ids:
            ids, offsets = [some_token(tokenizer)], [(0, 0)]
            segments = None if segments is None else [0]
        result.append(Tokens(list(ids), segments, offsets))
    return result


def continuation(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of `text` where it follows other words, its leading space included.

    Tokenized behind a one-letter word that is then taken away, so it comes out right for SentencePiece (whose
    first word gets a space mark of its own), byte-level BPE (where the space is part of the token) and
    WordPiece alike.
    """
    if not text.strip():
        return []
    anchor = "x"
    joined = f"{anchor} {text.lstrip(' ')}"
    encoded = tokenizer(joined, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [int(token) for token, (_, end) in spans if end > len(anchor)]
