"""Templated newswire sentences with named entities (people, organisations, places, miscellaneous names)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import permutations

from sktune.embedded.lexicon import EVENT_SUFFIXES, ORG_HEADS, ORG_SUFFIXES, PLACE_HEADS, SLOTS, TEAM_SUFFIXES
from sktune.embedded.names import NameMaker, Split

ENTITY_TYPES = ("PER", "ORG", "LOC", "MISC")

# {per} {org} {loc} {misc}: names; {team}: a town's name that stands for its club; {nat}: a nationality; the other
# slots are lists of the lexicon, +s their plurals. A decoder reads leftwards context only, so what tells the type
# stands in front: right in front of the name here,
_NEAR = (
    "the {role} {per} {said} that the {thing} {will}",
    "the {orgkind} {org} {said} that the {thing} {will}",
    "a {disaster} {hit} the {lockind} of {loc}",
    "the {misckind} {misc} was shown in {loc}",
    "{sport} : {team} {beat} {team} {goals} - {goals}",
    "the {nat} {role} {per} {won} the {misckind} {misc}",
    "the {orgkind} {org} {bought} the {orgkind} {org}",
    "the {role} was born in {loc}",
    "shares of {org} rose {num} percent",
    "{people} of {org} and {org} {said} that the {thing} {will}",
    "mr {per} {bought} the {orgkind} {org}",
    "{per} , the {role} of {org} , {said} that the {thing} {will}",
    "{people} left for {loc}",
    "between {loc} and {loc} lies the {lockind} {loc}",
    "{sport} : {team} play {team} in the {misc}",
    "the {nat} {orgkind} {org} makes the {misckind} {misc}",
    "{people} heard the {misckind} {misc} by {per}",
    "the {sport} club {team} hired the {role} {per}",
)
# further away, the same words for every type (@: its kind noun, #: a name of it),
_FAR = (
    "three {@}+s are in the news : {#} , {#} and {#}",
    "the {@}+s of the year are {#} and {#}",
    "the {@} that {people} {won} {when} is {#}",
    "the list of {@}+s begins with {#} and ends with {#}",
    "of all {@}+s {people} like {#} and {#} best",
    "the {@} that {people} {said} to be the best of {num} is {#}",
)
# or in an order that has to be matched with the order of the names.
_ORDERED = (
    "the {@1} and the {@2} are called {#1} and {#2}",
    "a {@1} and a {@2} are in the news : the first is {#1} , the second is {#2}",
    "{people} remember a {@1} and a {@2} , {#1} and {#2}",
    "the {@1} , not the {@2} , is {#1} , while the other is {#2}",
)
_KIND_SLOTS = {"PER": "role", "ORG": "orgkind", "LOC": "lockind", "MISC": "misckind"}
_NAME_SLOTS = {"PER": "per", "ORG": "org", "LOC": "loc", "MISC": "misc"}


def _filled(template: str, first: str, second: str = "PER") -> str:
    for mark, kind in (("1", first), ("2", second), ("", first)):
        template = template.replace(f"{{@{mark}}}", f"{{{_KIND_SLOTS[kind]}}}")
        template = template.replace(f"{{#{mark}}}", f"{{{_NAME_SLOTS[kind]}}}")
    return template


FAMILIES: tuple[list[str], ...] = (
    list(_NEAR),
    [_filled(template, kind) for template in _FAR for kind in ENTITY_TYPES],
    [_filled(t, *kinds) for t in _ORDERED for kinds in permutations(ENTITY_TYPES, 2)],
)
OPENINGS = ("", "", "on {day} , ", "{when} , ", "officials {said} that ", "according to {org} , ")
CLOSINGS = ("", "", " on {day}", " {when}", " , {people} {said}", " in the {lockind} of {loc}")


@dataclass(frozen=True)
class Sentence:
    """Words and the typed spans among them: `(first word, one past the last word, type)`, in order."""

    words: tuple[str, ...]
    spans: tuple[tuple[int, int, str], ...]

    @property
    def text(self) -> str:
        """The words, each parted by one space."""
        return " ".join(self.words)

    @property
    def tags(self) -> list[str]:
        """One IOB2 tag per word."""
        tags = ["O"] * len(self.words)
        for start, end, kind in self.spans:
            tags[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
        return tags


class Newsroom:
    """Writes sentences of one split: its names, and for `train` only half of the templates and cue words."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng = rng
        self.names = NameMaker(rng, split)
        half = split == "train"
        known = random.Random(0)  # which half of the templates is the same for every seed
        self.families = [known.sample(family, len(family) // 2) if half else family for family in FAMILIES]
        self.slots = {slot: words[: -(-len(words) // 2)] if half else words for slot, words in SLOTS.items()}

    def sentence(self) -> Sentence:
        """One sentence, its first word capitalised, a full stop at its end."""
        choice = self.rng.choice
        words: list[str] = []
        spans: list[tuple[int, int, str]] = []
        for token in f"{choice(OPENINGS)}{choice(choice(self.families))}{choice(CLOSINGS)} .".split():
            slot = token.removesuffix("+s").strip("{}")
            if slot == token:
                words.append(token)
            elif slot in self.slots:
                words.extend(choice(self.slots[slot]).split())
                words[-1] += token[token.index("}") + 1 :].removeprefix("+")
            else:
                kind, name = self.entity(slot)
                spans.append((len(words), len(words) + len(name), kind))
                words.extend(name)
        words[0] = words[0][:1].upper() + words[0][1:]
        return Sentence(tuple(words), tuple(spans))

    def entity(self, slot: str) -> tuple[str, list[str]]:
        """A fresh name for an entity slot: its type and its words."""
        draw, choice, dice = self.names.draw, self.rng.choice, self.rng.random()
        if slot == "nat":
            return "MISC", [draw("nationality")]
        name = [draw("name")]
        if slot == "per":
            return "PER", [*name, draw("name")] if dice < 0.4 else name
        if slot == "loc":
            return "LOC", [choice(PLACE_HEADS), *name] if dice < 0.1 else name
        if slot == "team":
            return "ORG", [*name, choice(TEAM_SUFFIXES)] if dice < 0.3 else name
        if slot == "misc":
            return "MISC", [*name, choice(EVENT_SUFFIXES)] if dice < 0.3 else name
        if slot != "org":
            raise KeyError(slot)
        if dice < 0.1:
            return "ORG", [draw("acronym")]
        if dice < 0.2:
            return "ORG", [*choice(ORG_HEADS).split(), *name]
        return "ORG", [*name, choice(ORG_SUFFIXES)] if dice < 0.4 else name
