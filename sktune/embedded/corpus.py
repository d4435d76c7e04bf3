"""Pretraining text: running text, text about types, and texts read under an instruction.

Under an instruction such as `recognize the people and places in the text :` the names of the asked-for
types are followed, now and then, by the word for their type. In running text the same words follow names
of every type alike. Whoever reads the instruction first thus comes to expect the right type at each name;
whoever reads the sentence alone has no reason to. Other instructions ask for other things of the same text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from sktune.embedded import pairs, reviews
from sktune.embedded.lexicon import SLOTS
from sktune.embedded.news import ENTITY_TYPES, Newsroom, Sentence

SINGULAR = {"PER": "person", "ORG": "organisation", "LOC": "place", "MISC": "miscellaneous"}
CONTINUED = {"PER": "people", "ORG": "organisations", "LOC": "places", "MISC": "names"}
PLURAL = {"PER": "people", "ORG": "organisations", "LOC": "places", "MISC": "miscellaneous names"}
ANSWERS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}

_TYPE_WORDS = (*SINGULAR.values(), *CONTINUED.values())
_NUMBERS = ("one", "two", "three", "four", "five", "six")
_VERBS = ("recognize", "find", "mark", "identify", "label", "tag", "spot", "name")
_TEXTS = ("text", "sentence", "news", "report", "article")
_REVIEW_PROMPTS = (
    "judge whether the review is positive or negative :",
    "decide if the review is positive or negative :",
    "say whether the text is positive or negative :",
    "is the sentence positive or negative ?",
    "classify the sentiment of the review , positive or negative :",
)
_PAIR_PROMPTS = (
    "does the second sentence follow from the first , yes , maybe or no ?",
    "decide whether the second sentence follows from the first :",
    "judge whether the first sentence entails the second :",
    "say yes , maybe or no : does the first sentence entail the second ?",
    "read two sentences and decide whether the second is true given the first :",
)


def documents(seed: int) -> Iterator[str]:
    """Endless pretraining documents, the same for the same seed; a line break parts the two of a pair."""
    rng = random.Random(seed)
    newsroom = Newsroom(rng, "pretraining")
    while True:
        (kind,) = rng.choices(list(_SHARES), weights=list(_SHARES.values()))
        yield kind(newsroom)


def running_text(newsroom: Newsroom) -> str:
    """One to three sentences of news, in which the words for types follow names of every type alike."""
    rng = newsroom.rng
    sentences = []
    for _ in range(rng.randint(1, 3)):
        sentence = newsroom.sentence()
        names = [i for start, end, _ in sentence.spans for i in range(start, end)]
        sentences.append(_marked(rng, sentence, {i: rng.choice(_TYPE_WORDS) for i in names}, share=0.35))
    return " ".join(sentences)


def type_statement(newsroom: Newsroom) -> str:
    """An instruction, a sentence, and what one of its names is."""
    sentence = _with_names(newsroom)
    statement = _statement(sentence, newsroom.rng.choice(sentence.spans))
    return f"say what the name stands for : {sentence.text} {statement} ."


def marked_text(newsroom: Newsroom) -> str:
    """An instruction, then sentences in which about half the words of the wanted names carry their type."""
    rng = newsroom.rng
    wanted = rng.sample(ENTITY_TYPES, 4 if rng.random() < 0.7 else rng.randint(1, 3))
    words = [instruction(rng, wanted)]
    for _ in range(rng.randint(1, 2)):
        sentence = newsroom.sentence()
        marks: dict[int, str] = {}
        for start, end, kind in sentence.spans:
            if kind in wanted:
                marks |= {start: SINGULAR[kind]} | dict.fromkeys(range(start + 1, end), CONTINUED[kind])
        words.append(_marked(rng, sentence, marks))
    return " ".join(words)


def counted_text(newsroom: Newsroom) -> str:
    """An instruction to count, then a sentence with the number of each name behind its first word."""
    sentence = newsroom.sentence()
    marks = {start: number for (start, _, _), number in zip(sentence.spans, _NUMBERS, strict=False)}
    return f"count the names in the {newsroom.rng.choice(_TEXTS)} : {_marked(newsroom.rng, sentence, marks)}"


def sorted_text(newsroom: Newsroom) -> str:
    """An instruction of another kind, then a sentence in which names, numbers and days are told apart."""
    sentence = newsroom.sentence()
    marks = {i: "number" for i, word in enumerate(sentence.words) if word.isdigit()}
    marks |= {i: "day" for i, word in enumerate(sentence.words) if word in SLOTS["day"]}
    marks |= {i: "name" for start, end, _ in sentence.spans for i in range(start, end)}
    text = newsroom.rng.choice(_TEXTS)
    return f"mark the names , numbers and days in the {text} : {_marked(newsroom.rng, sentence, marks)}"


def name_list(newsroom: Newsroom) -> str:
    """An instruction, a sentence, and its names one by one with their types."""
    sentence = _with_names(newsroom)
    said = " , ".join(_statement(sentence, span) for span in sentence.spans)
    return f"{instruction(newsroom.rng, ENTITY_TYPES, verb='list')} {sentence.text} -> {said} ."


def review_text(newsroom: Newsroom) -> str:
    """A review; two times in three under an instruction, its polarity named at the end."""
    rng = newsroom.rng
    label = rng.choice(reviews.LABELS)
    text = reviews.review(rng, "pretraining", label)
    return text if rng.random() < 1 / 3 else f"{rng.choice(_REVIEW_PROMPTS)} {text} {label}"


def pair_text(newsroom: Newsroom) -> str:
    """A sentence pair; three times in four under an instruction, the answer at the end."""
    rng = newsroom.rng
    label = rng.choice(pairs.LABELS)
    text = "\n".join(pairs.pair(rng, "pretraining", label))
    return text if rng.random() < 1 / 4 else f"{rng.choice(_PAIR_PROMPTS)} {text} {ANSWERS[label]}"


def instruction(rng: random.Random, wanted: list[str] | tuple[str, ...], verb: str | None = None) -> str:
    """An instruction that asks for names of the wanted types, in any order."""
    plurals = [PLURAL[kind] for kind in rng.sample(list(wanted), len(wanted))]
    listed = " and ".join([" , ".join(plurals[:-1]), plurals[-1]]) if len(plurals) > 1 else plurals[0]
    return f"{verb or rng.choice(_VERBS)} the {listed} in the {rng.choice(_TEXTS)} :"


def _with_names(newsroom: Newsroom) -> Sentence:
    while not (sentence := newsroom.sentence()).spans:
        pass
    return sentence


def _marked(rng: random.Random, sentence: Sentence, marks: dict[int, str], share: float = 0.5) -> str:
    """The sentence with about that share of the marks, each behind its word."""
    kept = {i: mark for i, mark in marks.items() if rng.random() < share}
    return " ".join(f"{word} {kept[i]}" if i in kept else word for i, word in enumerate(sentence.words))


def _statement(sentence: Sentence, span: tuple[int, int, str]) -> str:
    start, end, kind = span
    article = {"PER": "a ", "ORG": "an ", "LOC": "a ", "MISC": ""}[kind]
    return f"{' '.join(sentence.words[start:end])} is {article}{SINGULAR[kind]}"


# Percent of the documents.
_SHARES: dict[Callable[[Newsroom], str], int] = {
    running_text: 28,
    marked_text: 33,
    type_statement: 3,
    name_list: 3,
    counted_text: 5,
    sorted_text: 5,
    review_text: 13,
    pair_text: 10,
}
