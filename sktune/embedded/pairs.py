"""Templated sentence pairs: does the second follow from the first (entailment), contradict it, or neither?"""

from __future__ import annotations

import random

from sktune.embedded.lexicon import listed
from sktune.embedded.names import Split

LABELS = ("entailment", "neutral", "contradiction")

# Each subject with what it also is.
_SUBJECTS = {
    **dict.fromkeys(listed("man woman teacher nurse cook sailor"), "adult"),
    **dict.fromkeys(listed("boy girl toddler pupil"), "child"),
    **dict.fromkeys(listed("dog horse cat cow goat fox"), "animal"),
}
# Each activity with what doing it also means; activities of different groups exclude each other.
_ACTIONS = {
    **dict.fromkeys(listed("running walking jumping climbing racing"), "moving"),
    **dict.fromkeys(["sleeping", "sitting", "lying down", "dozing"], "resting"),
    **dict.fromkeys(["eating", "chewing", "having lunch"], "having a meal"),
    **dict.fromkeys(listed("singing shouting crying howling"), "making noise"),
}
_PLACES = {
    **dict.fromkeys(["in a kitchen", "in a bedroom", "in a barn", "in a cellar", "in a hall"], "indoors"),
    **dict.fromkeys(["on a beach", "in a field", "on a hill", "in a meadow", "on a lawn"], "outdoors"),
}
_QUALITIES = listed("tall thin young old tired happy small quiet proud hungry")
_EXTRAS = [
    "for a friend",
    "for the first time",
    "to win a prize",
    "because of the rain",
    "before the concert",
    "for money",
    "to please the crowd",
    "after a long trip",
    "for an hour",
    "with great skill",
]


def pair(rng: random.Random, split: Split, label: str) -> tuple[str, str]:
    """`(premise, hypothesis)` with the wanted label; `train` uses half of the places and extras."""

    def pick(words: list[str]) -> str:
        return rng.choice(words[::2] if split == "train" else words)

    subject, action, place = rng.choice(list(_SUBJECTS)), pick(list(_ACTIONS)), pick(list(_PLACES))
    quality = rng.choice(_QUALITIES)
    premise = f"{_with_article(quality)} {subject} is {action} {place} ."
    who = _with_article(rng.choice([subject, _SUBJECTS[subject], f"{quality} {subject}"]))
    if label == "neutral":
        doing = rng.choice([action, _ACTIONS[action]])
        return premise, f"{who} is {doing} {pick(_EXTRAS)} ."
    if label == "entailment":
        doing = rng.choice([action, _ACTIONS[action], ""])
        where = rng.choice([place, _PLACES[place]] if not doing else [place, _PLACES[place], ""])
        return premise, " ".join(f"{who} is {doing} {where} .".split())
    if rng.random() < 0.5:
        doing = pick([other for other in _ACTIONS if _ACTIONS[other] != _ACTIONS[action]])
        return premise, f"{who} is {rng.choice([doing, _ACTIONS[doing]])} ."
    where = pick([other for other in _PLACES if _PLACES[other] != _PLACES[place]])
    return premise, f"{who} is {rng.choice([where, _PLACES[where]])} ."


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
