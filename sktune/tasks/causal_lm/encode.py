"""Prompt and target in one sequence, for the language model's own likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from sktune.data import Coder, EncodedSplit, Example, Row
from sktune.data.examples import ABSENT
from sktune.data.prompt_template import PromptTemplate
from sktune.data.tokenization import continuation, tokenize
from sktune.errors import UserError


def encode_causal(
    examples: Sequence[Example],
    coder: Coder,
    label_words: Mapping[str, str] | None,
    candidates: Sequence[str] | None,
    split: str,
) -> EncodedSplit:
    """Rows of prompt tokens, target tokens and the end-of-sequence token; labels on target and end only.

    The target is the words of the example's label, or the target text, tokenized as the continuation
    after a space. Where both do not fit into `data.max_length`, the prompt's text loses its end, not what the
    template says behind it; one token of a prompt always stays, and only a target that then still does not fit
    loses its own end.

    With `candidates`, labels, every example becomes one row per label, in their order: `group` is the
    example's number, `candidate` the label's, and the labels are on the candidate's tokens and its end, as in
    training. Without, a label outside the label set leaves the prompt alone, unlabelled.

    Raises:
        UserError: for a tokenizer without an end-of-sequence token.
    """
    tokenizer, max_length, special = coder.tokenizer, coder.data.max_length, coder.add_special_tokens
    coder.check(False)
    template = PromptTemplate.of(coder.data)
    template.check(tokenizer, max_length, special)
    eos = tokenizer.eos_token_id
    if eos is None:
        name = tokenizer.name_or_path or type(tokenizer).__name__
        raise UserError(f"task.name: causal_lm needs an end-of-sequence token; tokenizer {name} has none.")
    words = {label: _target(tokenizer, text, eos) for label, text in (label_words or {}).items()}

    prompts = [template.fill(example) for example in examples]
    tokenized = tokenize(tokenizer, prompts, None, max_length=None, add_special_tokens=special, token_type_ids=False)
    rows: list[Row] = []
    cut_prompts: set[int] = set()
    cut_targets: set[int] = set()
    for group, (example, tokens) in enumerate(zip(examples, tokenized, strict=True)):
        prompt = _open(tokens.input_ids, eos, special)
        reference = str(example.reference)
        if candidates is not None:
            targets = [words[label] for label in candidates]
        elif label_words is not None:
            targets = [words.get(reference, [])]
        else:
            targets = [_target(tokenizer, reference, eos)]
        for candidate, target in enumerate(targets):
            room = max(1, max_length - len(target))
            kept_prompt = prompt
            if len(prompt) > room and template.has_tail:
                shorter = template.shorten(example, tokenizer, room, special)
                ids = tokenizer(shorter, add_special_tokens=special, verbose=False)["input_ids"]
                kept_prompt = _open(ids, eos, special)
            kept_prompt = kept_prompt[:room]
            kept_target = target[: max_length - len(kept_prompt)]
            if len(kept_prompt) < len(prompt):
                cut_prompts.add(group)
            if len(kept_target) < len(target):
                cut_targets.add(group)
            rows.append(
                Row(
                    index=len(rows),
                    input_ids=kept_prompt + kept_target,
                    token_type_ids=None,
                    labels=[ABSENT] * len(kept_prompt) + kept_target,
                    reference=reference,
                    group=group,
                    candidate=candidate,
                )
            )
    report = []
    for what, numbers in (("inputs", cut_prompts), ("targets", cut_targets)):
        if numbers:
            cut = f"{len(numbers)} of {len(examples)} {what} truncated"
            report.append(f"{split}: {cut} to {max_length} tokens")
    if empty := sum(example.is_empty for example in examples):
        report.append(f"{split}: {empty} of {len(examples)} texts are empty")
    return EncodedSplit(rows, report)


def _open(prompt: list[int], eos: int, special: bool) -> list[int]:
    # Some tokenizers end every text; the answer is still to come.
    return prompt[:-1] if special and len(prompt) > 1 and prompt[-1] == eos else prompt


def _target(tokenizer: PreTrainedTokenizerBase, text: str, eos: int) -> list[int]:
    return [*continuation(tokenizer, text), eos]
