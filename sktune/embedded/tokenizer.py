"""The SentencePiece tokenizer of the embedded model, and its Hugging Face folder."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from transformers import LlamaTokenizer, PreTrainedTokenizerBase

PAD = "<pad>"


def train_tokenizer(lines: Iterable[str], folder: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a BPE SentencePiece model as LLaMA's is (byte fallback, digits apart, no normalisation).

    Args:
        lines: training text, one sentence per item.
        folder: receives tokenizer.model, tokenizer.json and tokenizer_config.json.
        vocab_size: pieces including `<unk> <s> </s> <pad>` (ids 0 to 3) and the 256 bytes.

    Returns:
        The tokenizer as `AutoTokenizer.from_pretrained(folder)` gives it: it adds `<s>` in front.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        pad_piece=PAD,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    tokenizer = LlamaTokenizer(
        vocab=vocab, merges=_merges(pieces), pad_token=PAD, add_bos_token=True, padding_side="right"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _merges(pieces: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """Merge rules of a BPE model: for each piece, in order of rank, every two pieces that spell it."""
    ordinary = [
        i
        for i in range(pieces.get_piece_size())
        if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i))
    ]
    ranked = [pieces.id_to_piece(i) for i in sorted(ordinary, key=pieces.get_score, reverse=True)]
    known = set(ranked)
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
