"""A grammar of five-sentence stories whose fourth sentence states why the fifth happened.

    hero, thing, hint ~ uniform      c | hint ~ CAUSE_ODDS      middle z | c, x ~ uniform
    ending y | c, x:  with probability 1 - SLIP one that follows from c, else any of the topic's

The first three sentences x tell the topic, the hero, the thing and the hint; the cause c is hidden
until z states it. Every law is a finite table, so that ``p(z | x)``, ``p(y | x, z)`` and the exact
posterior ``p(z | x, y)`` are known, and any middle can be judged. The reward of an infilling is
``log p(y | x, z)``; a middle that is no sentence of the story leaves the ending to chance: then y
is any ending of the whole grammar.

Sentences are tuples of words; ``catalogue`` holds the texts.
"""

import itertools
import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from difftilt.errors import InputError
from difftilt.tasks.stories.catalogue import HEROES, MOODS, TOPICS, Cause

Sentence = tuple[str, ...]
Verdict = Literal["coherent", "wrong cause", "invalid"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

CAUSE_ODDS = ((0.4, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4))
"""p(cause | hint)."""

OWN_ENDINGS = 0.75
"""Share of a cause's own endings among those that follow from it; the others tell the mood only."""

SLIP = 0.04
"""Probability that an ending has nothing to do with the cause."""


@dataclass(frozen=True)
class Situation:
    """What the first three sentences tell.

    Arguments:
        topic: a key of ``TOPICS``.
        hero: a key of ``HEROES``.
        thing: one of the topic's things.
        hint: 0 or 1.
    """

    topic: str
    hero: str
    thing: str
    hint: int


@dataclass(frozen=True)
class Story:
    """Five sentences.

    Arguments:
        context: the first three, x.
        middle: the fourth, z.
        ending: the fifth, y.
    """

    context: tuple[Sentence, Sentence, Sentence]
    middle: Sentence
    ending: Sentence


def expansions(template: str) -> list[str]:
    """Every choice of the alternatives ``{a|b}`` of a template."""
    parts = re.split(r"\{(.*?)\}", template)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(words) for words in itertools.product(*choices)]


def sentences_of(templates: Iterable[str], hero: str, thing: str) -> list[Sentence]:
    """All sentences of the templates about a hero and a thing."""
    he, his = HEROES[hero]
    him = {"he": "him", "she": "her"}[he]
    names = {"<name>": hero, "<he>": he, "<his>": his, "<him>": him, "<thing>": thing}
    texts = [text for template in templates for text in expansions(template)]
    return [tuple(re.sub(r"<\w+>", lambda m: names[m.group()], text).split()) for text in texts]


def _even(sentences: Sequence[Sentence], mass: float = 1.0) -> dict[Sentence, float]:
    return dict.fromkeys(sentences, mass / len(sentences))


@cache
def situations() -> tuple[Situation, ...]:
    """All of them, equally likely within a topic, topics equally likely."""
    return tuple(
        Situation(name, hero, thing, hint)
        for name, topic in TOPICS.items()
        for hero in HEROES
        for thing in topic.things
        for hint in (0, 1)
    )


@cache
def contexts(situation: Situation) -> tuple[list[Sentence], list[Sentence], list[Sentence]]:
    """The possible first, second and third sentences, each list uniform."""
    topic, about = TOPICS[situation.topic], (situation.hero, situation.thing)
    return (
        sentences_of(topic.openings, *about),
        sentences_of(topic.preparations, *about),
        sentences_of(topic.hints[situation.hint], *about),
    )


@cache
def middles(situation: Situation) -> dict[Sentence, tuple[int, float]]:
    """The cause that each middle states and its probability ``p(z | x)``."""
    about = (situation.hero, situation.thing)
    table: dict[Sentence, tuple[int, float]] = {}
    for number, cause in enumerate(TOPICS[situation.topic].causes):
        law = _even(sentences_of(cause.middles, *about), CAUSE_ODDS[situation.hint][number])
        table |= {sentence: (number, mass) for sentence, mass in law.items()}
    return table


@cache
def following(situation: Situation, number: int) -> dict[Sentence, float]:
    """The endings that follow from a cause, with their probabilities (no slip)."""
    cause: Cause = TOPICS[situation.topic].causes[number]
    about = (situation.hero, situation.thing)
    own = _even(sentences_of(cause.endings, *about), OWN_ENDINGS)
    return own | _even(sentences_of(MOODS[cause.mood], *about), 1 - OWN_ENDINGS)


@cache
def endings(situation: Situation) -> frozenset[Sentence]:
    """All endings of a story's topic, about its hero and thing."""
    count = len(TOPICS[situation.topic].causes)
    return frozenset(itertools.chain(*(following(situation, number) for number in range(count))))


@cache
def all_endings() -> frozenset[Sentence]:
    """All endings of the grammar."""
    return frozenset(itertools.chain(*(endings(situation) for situation in situations())))


@cache
def _situations_by_sentence() -> tuple[dict[Sentence, set[Situation]], ...]:
    """For each of the first three places, the situations in which a sentence stands there."""
    tables: tuple[dict[Sentence, set[Situation]], ...] = ({}, {}, {})
    for situation in situations():
        for table, lines in zip(tables, contexts(situation), strict=True):
            for sentence in lines:
                table.setdefault(sentence, set()).add(situation)
    return tables


def situation_of(context: Sequence[Sentence]) -> Situation:
    """What a context tells.

    Raises:
        InputError: it is not a context of this grammar.
    """
    tables = _situations_by_sentence()
    if len(context) == len(tables):
        told = [table.get(line, set()) for table, line in zip(tables, context, strict=True)]
        found = set.intersection(*told)
    else:
        found = set()
    if len(found) != 1:
        text = " / ".join(" ".join(sentence) for sentence in context)
        raise InputError(f"{text!r} does not begin a story of this grammar; draw one with `story`")
    return found.pop()


def prior(context: Sequence[Sentence]) -> dict[Sentence, float]:
    """``p(z | x)``, all middles."""
    return {z: mass for z, (_, mass) in middles(situation_of(context)).items()}


def ending_law(context: Sequence[Sentence], middle: Sentence) -> dict[Sentence, float]:
    """``p(y | x, z)``, all endings that it allows; for an invalid middle every ending there is."""
    situation = situation_of(context)
    stated = middles(situation).get(middle)
    if stated is None:
        return _even(sorted(all_endings()))
    law = _even(sorted(endings(situation)), SLIP)
    for ending, mass in following(situation, stated[0]).items():
        law[ending] += (1 - SLIP) * mass
    return law


def log_likelihood(context: Sequence[Sentence], middle: Sentence, ending: Sentence) -> float:
    """``log p(y | x, z)`` in nats, finite for every middle.

    Raises:
        InputError: the context or the ending is not of this grammar.
    """
    situation = situation_of(context)
    if ending not in endings(situation):
        raise InputError(f"{' '.join(ending)!r} does not end the story; draw one with `story`")
    stated = middles(situation).get(middle)
    if stated is None:
        return -math.log(len(all_endings()))
    slipped = SLIP / len(endings(situation))
    return math.log(slipped + (1 - SLIP) * following(situation, stated[0]).get(ending, 0.0))


def evidence(context: Sequence[Sentence], ending: Sentence) -> float:
    """``log p(y | x)`` in nats."""
    law = prior(context).items()
    return math.log(sum(p * math.exp(log_likelihood(context, z, ending)) for z, p in law))


def posterior(context: Sequence[Sentence], ending: Sentence) -> dict[Sentence, float]:
    """The exact ``p(z | x, y)``, all middles."""
    log_z = evidence(context, ending)
    return {
        z: p * math.exp(log_likelihood(context, z, ending) - log_z)
        for z, p in prior(context).items()
    }


def judge(context: Sequence[Sentence], middle: Sentence, ending: Sentence) -> Verdict:
    """Whether a middle explains the ending.

    ``invalid``: no sentence of this story at all; ``wrong cause``: the ending does not follow.
    """
    situation = situation_of(context)
    stated = middles(situation).get(middle)
    if stated is None:
        return "invalid"
    return "coherent" if ending in following(situation, stated[0]) else "wrong cause"


def ideal_rate(shares: dict[Verdict, float], rewards: dict[Verdict, float]) -> float:
    """The coherent share of the exact posterior of a prior with these shares of verdicts.

    Arguments:
        shares: of the prior's middles.
        rewards: mean of ``p(y | x, z)`` in each verdict.
    """
    weights = {verdict: shares[verdict] * rewards[verdict] for verdict in shares}
    return weights["coherent"] / sum(weights.values())


def story(generator: random.Random) -> Story:
    """One story of the grammar."""
    name = generator.choice(list(TOPICS))
    thing = generator.choice(TOPICS[name].things)
    situation = Situation(name, generator.choice(list(HEROES)), thing, generator.randrange(2))
    first, second, third = (generator.choice(lines) for lines in contexts(situation))
    context = (first, second, third)
    middle = _drawn(prior(context), generator)
    return Story(context, middle, _drawn(ending_law(context, middle), generator))


def _drawn(law: dict[Sentence, float], generator: random.Random) -> Sentence:
    return generator.choices(list(law), list(law.values()))[0]
