"""A tokenizer and a model that must agree: which token ids have an embedding."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from sktune.errors import UserError

logger = logging.getLogger(__name__)


def padding_token(tokenizer: PreTrainedTokenizerBase, embeddings: int) -> int:
    """An id to pad with: the tokenizer's, or another where it has none or the model has no embedding for it.

    Any id serves, as padded positions are masked; one that the model lacks would end in an index error.
    """
    own = tokenizer.pad_token_id
    if own is not None and own < embeddings:
        return int(own)
    candidates = (tokenizer.eos_token_id, tokenizer.unk_token_id, 0)
    token = int(next(token for token in candidates if token is not None and token < embeddings))
    why = "it has no padding token" if own is None else f"its padding token {own} is outside the model's {embeddings}"
    logger.info("model.tokenizer: %s; masked positions hold token %d instead", why, token)
    return token


def check_tokens(
    tokenizer: PreTrainedTokenizerBase, embeddings: int, texts: Iterable[Iterable[int]], where: str
) -> None:
    """Refuses token ids that the model has no embedding for.

    Args:
        tokenizer: what made the ids.
        embeddings: how many the model has.
        texts: ids, text by text.
        where: what the texts are, for the message.

    Raises:
        UserError: naming the token, its id and the number of embeddings.
    """
    if len(tokenizer) <= embeddings:
        return
    for ids in texts:
        outside = next((token for token in ids if token >= embeddings), None)
        if outside is not None:
            name = tokenizer.name_or_path or type(tokenizer).__name__
            raise UserError(
                f"model.tokenizer: {name} makes the token {tokenizer.convert_ids_to_tokens(outside)!r} (id {outside}) "
                f"of {where}, and the model has embeddings for {embeddings} tokens, ids 0 to {embeddings - 1}; give "
                "the model's own tokenizer, or a model whose embeddings were resized to this one"
            )
