"""The words of the miniature newswire: cue words, things, verbs. Each list is a slot of the templates.

The order matters: labelled training files see the first half of every list only, evaluation files and
pretraining text all of it. So part of what the evaluation asks is knowledge a labelled sample of this
size does not hold, and pretraining does.
"""

from __future__ import annotations


def listed(words: str) -> list[str]:
    """The words of a text, parted at white space."""
    return words.split()


SLOTS: dict[str, list[str]] = {
    # Words that announce a person.
    "role": listed("""
        minister trainer singer lawyer doctor speaker striker judge novelist senator president painter captain
        banker professor farmer goalkeeper governor actor poet sprinter mayor engineer bishop violinist
        ambassador detective nurse cyclist historian general architect chemist driver referee journalist pilot
        chef dancer boxer"""),
    # Words that announce an organisation.
    "orgkind": listed("""
        firm bank carmaker newspaper union brewer airline retailer network insurer publisher refiner winemaker
        lender broadcaster shipbuilder sponsor bookshop fund foundry supplier cooperative regulator
        manufacturer builder lab committee federation museum hospital college startup consortium guild
        exporter studio"""),
    # Words that announce a place.
    "lockind": listed("""
        borough town village port island province river valley settlement region district suburb resort lake
        mountain bay peninsula desert canton harbour canyon coast plateau street airport forest hamlet
        lagoon glacier"""),
    # Words that announce a name of the miscellaneous kind.
    "misckind": listed("""
        tournament festival film novel ship marathon phone satellite opera album rocket car painting prize
        magazine regatta concert hurricane treaty sonata musical aircraft tablet vaccine telescope cheese
        duel comet ballet"""),
    "said": listed("""
        said announced confirmed denied argued added insisted warned claimed admitted explained hinted"""),
    "won": listed("won entered left praised missed opened followed joined skipped remembered"),
    "people": listed("""
        voters workers farmers police troops tourists doctors officials students reporters engineers fans"""),
    "thing": listed("""
        tax budget strike vote deal bridge law plan trial report reform loan railway harvest election merger
        road rescue ban inquiry"""),
    "will": [
        "will pass",
        "has failed",
        "is dead",
        "must wait",
        "goes on",
        "will be costly",
        "is fair",
        "came too late",
        "can work",
        "is over",
        "was a mistake",
        "needs time",
    ],
    "hit": listed("hit struck flooded shook reached crossed passed spared"),
    "bought": listed("bought sued hired joined left rescued backed outbid"),
    "beat": listed("beat defeated held thrashed met routed edged stunned"),
    "sport": listed("soccer cricket rugby hockey basketball handball baseball volleyball"),
    "day": listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "when": [
        "today",
        "last week",
        "this year",
        "after the war",
        "two days ago",
        "in spring",
        "late at night",
        "again",
    ],
    "num": listed("3 12 7 40 5 18 2 60 9 25 14 31"),
    "goals": list("0213425"),
    "disaster": listed("storm flood fire quake drought landslide blizzard heatwave"),
}

ORG_SUFFIXES = listed("Group Bank Motors Holdings Airlines Partners Steel Press Energy Foods")
ORG_HEADS = ["Bank of", "University of", "Port Authority of", "Council of"]
TEAM_SUFFIXES = listed("United Rovers City Wanderers Athletic")
PLACE_HEADS = listed("Lake Port Mount New Saint")
EVENT_SUFFIXES = listed("Open Cup Prize Marathon Festival Games Trophy")

GENERIC = frozenset(listed(" ".join([*ORG_SUFFIXES, *ORG_HEADS, *TEAM_SUFFIXES, *PLACE_HEADS, *EVENT_SUFFIXES])))
"""Words inside names that are no names themselves, and so occur in every split."""
