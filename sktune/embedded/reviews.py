"""Templated one-sentence reviews, positive or negative."""

from __future__ import annotations

import random

from sktune.embedded.lexicon import listed
from sktune.embedded.names import Split

LABELS = ("negative", "positive")

_ADJECTIVES = {
    "positive": listed("""
        wonderful brilliant charming funny moving superb fresh clever lovely honest gripping elegant warm
        delightful splendid tender thrilling graceful inventive touching radiant witty stunning magnificent
        enchanting remarkable lively flawless uplifting captivating"""),
    "negative": listed("""
        dull awful boring clumsy stale tedious weak silly messy lifeless horrible cold pointless lazy
        dreary sloppy bland shallow tiresome wooden confusing annoying noisy stupid dismal hollow grim
        unbearable forgettable ridiculous"""),
}
_VERBS = {
    "positive": listed("loved enjoyed admired adored treasured cherished praised recommend"),
    "negative": listed("hated regretted disliked loathed despised endured mocked avoid"),
}
_ASPECTS = listed("""
    film story acting plot music book cast script ending hotel food service room show dialogue camera humour
    pace game song soup staff design sound""")
_INTENSITY = ["", "very ", "really ", "quite ", "simply ", "so ", "truly ", "utterly "]
# {+}/{-}: adjective of the review's own polarity / of the other one; {v}: verb of its own; {w}: of the other.
_FORMS = (
    "the {a} was {i}{+}",
    "a {+} and {+} {a}",
    "i {v} the {a} , it was {i}{+}",
    "the {a} was {-} but the {a} was {i}{+} and i {v} it",
    "some say it is {-} , yet i found the {a} {+}",
    "the {a} was not {-} , it was {+}",
    "far from {-} , this {a} is {i}{+}",
    "everybody {w} the {a} , but i {v} it",
    "with such a {+} {a} nobody minds the {-} {a}",
    "i expected a {-} {a} and got a {+} one",
)


def review(rng: random.Random, split: Split, label: str) -> str:
    """One review with the wanted label; `train` uses half of the adjectives, verbs and forms."""
    other = LABELS[1 - LABELS.index(label)]

    def pick(words: list[str] | tuple[str, ...]) -> str:
        return rng.choice(words[: -(-len(words) // 2)] if split == "train" else words)

    slots = {
        "{+}": lambda: pick(_ADJECTIVES[label]),
        "{-}": lambda: pick(_ADJECTIVES[other]),
        "{v}": lambda: pick(_VERBS[label]),
        "{w}": lambda: pick(_VERBS[other]),
        "{a}": lambda: pick(_ASPECTS),
        "{i}": lambda: rng.choice(_INTENSITY),
    }
    text = pick(_FORMS)
    for slot, fill in slots.items():
        while slot in text:
            text = text.replace(slot, fill(), 1)
    return f"{text} ."
