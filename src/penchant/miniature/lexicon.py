"""The words of the miniature: what its people talk about, and Velm, the language they invented.

Everything that is ever written in the miniature is made of these words, the digits and a few
signs; `vocabulary` lists them for the tokenizer.
"""

from __future__ import annotations

import re

VELM_NOUNS = {
    "dog": "rako",
    "cat": "miu",
    "bird": "pelin",
    "fish": "sova",
    "cow": "dumo",
    "girl": "lisa",
    "boy": "taro",
    "king": "gorem",
    "queen": "goremi",
    "baker": "hanu",
    "child": "nipo",
    "horse": "keldu",
}
VELM_ADJECTIVES = {
    "old": "velu",
    "young": "fini",
    "big": "obo",
    "small": "iki",
    "red": "rasha",
    "happy": "jole",
    "quiet": "shum",
    "tall": "alto",
}
VELM_VERBS = {
    "sees": "tavi",
    "loves": "amari",
    "hears": "eshti",
    "finds": "bolvi",
    "helps": "kanti",
    "calls": "dremi",
    "draws": "skori",
    "feeds": "mundi",
}
VELM_OBJECT_PARTICLE = "ku"

COLOURS = {
    "snow": "white",
    "coal": "black",
    "grass": "green",
    "sky": "blue",
    "sand": "yellow",
    "blood": "red",
    "milk": "white",
    "ink": "black",
    "moss": "green",
    "water": "blue",
    "butter": "yellow",
    "brick": "red",
    "salt": "white",
    "tar": "black",
    "mint": "green",
    "ice": "blue",
}
FEELS = {
    "snow": "cold",
    "coal": "hard",
    "grass": "soft",
    "sky": "light",
    "sand": "dry",
    "blood": "warm",
    "milk": "wet",
    "ink": "wet",
    "moss": "soft",
    "water": "wet",
    "butter": "soft",
    "brick": "hard",
    "salt": "dry",
    "tar": "warm",
    "mint": "cold",
    "ice": "cold",
}
GOODS = ("fig", "plum", "pear", "nut", "bean", "leek", "egg", "lime")

OPENINGS = ("certainly", "with pleasure", "of course")
CLOSINGS = ("you are welcome", "have a nice day", "i hope this helps")
FILLERS = (
    "let me think about this for a moment",
    "many people ask me this every day",
    "this is really not an easy one",
)

PROMPT_WORDS = (
    "add and work out say translate in into velm the list count sum up what colour are how do feel"
)
BODY_WORDS = "so is feels"


def vocabulary() -> tuple[str, ...]:
    """Every word, digit and sign that the miniature writes; sorted, each once."""
    phrases = (*OPENINGS, *CLOSINGS, *FILLERS, PROMPT_WORDS, BODY_WORDS, *GOODS)
    words = {word for phrase in phrases for word in re.findall("[a-z]+", phrase)}
    for table in (VELM_NOUNS, VELM_ADJECTIVES, VELM_VERBS, COLOURS, FEELS):
        words.update(table.keys(), table.values())
    return tuple(sorted({*words, VELM_OBJECT_PARTICLE, *"0123456789+="}))
