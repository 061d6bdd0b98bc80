"""The grammar's laws against enumeration, and its judge on every kind of middle."""

import itertools
import math
import random
from collections import Counter

import pytest

from difftilt.errors import InputError
from difftilt.tasks.stories import grammar
from difftilt.tasks.stories.catalogue import HEROES, SLOT, TOPICS
from difftilt.tasks.stories.grammar import Situation, Story

EXAMPLE = Situation("baking", "anna", "cake", 1)


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def stories(count: int, seed: int = 0) -> list[Story]:
    generator = random.Random(seed)
    return [grammar.story(generator) for _ in range(count)]


def a_context(situation: Situation) -> tuple:
    return tuple(lines[0] for lines in grammar.contexts(situation))


class TestTexts:
    def test_expansions_are_all_choices(self):
        found = grammar.expansions("{a|b} cat {sat|slept well} here")
        assert sorted(found) == [
            "a cat sat here",
            "a cat slept well here",
            "b cat sat here",
            "b cat slept well here",
        ]

    def test_every_sentence_fits_its_slot_and_is_fully_written(self):
        for situation in grammar.situations():
            for lines in (
                *grammar.contexts(situation),
                grammar.middles(situation),
                grammar.endings(situation),
            ):
                for sentence in lines:
                    assert 3 <= len(sentence) <= SLOT
                    assert all(word.isalpha() and word.islower() for word in sentence)

    def test_no_middle_states_two_causes(self):
        for situation in grammar.situations():
            causes = TOPICS[situation.topic].causes
            about = (situation.hero, situation.thing)
            lists = [grammar.sentences_of(cause.middles, *about) for cause in causes]
            flat = list(itertools.chain(*lists))
            assert len(set(flat)) == len(flat) == len(grammar.middles(situation))

    def test_own_endings_tell_the_cause(self):
        for situation in grammar.situations():
            owners = Counter(
                ending for number in range(4) for ending in grammar.following(situation, number)
            )
            assert set(owners.values()) == {1, 2}
            moods = {ending for ending, count in owners.items() if count == 2}
            assert all(ending[0] == situation.hero for ending in moods)


class TestLaws:
    def test_every_conditional_law_sums_to_one(self):
        for situation in grammar.situations():
            context = a_context(situation)
            assert math.isclose(sum(grammar.prior(context).values()), 1, abs_tol=1e-12)
            for number in range(4):
                total = sum(grammar.following(situation, number).values())
                assert math.isclose(total, 1, abs_tol=1e-12)

    def test_ending_law_sums_to_one_and_is_what_the_reward_says(self):
        context = a_context(EXAMPLE)
        for middle in [*grammar.prior(context), words("the bread sang")]:
            law = grammar.ending_law(context, middle)
            assert math.isclose(sum(law.values()), 1, abs_tol=1e-12)
            for ending in grammar.endings(EXAMPLE):
                told = math.exp(grammar.log_likelihood(context, middle, ending))
                assert math.isclose(told, law[ending], rel_tol=1e-12)

    def test_posterior_is_bayes_rule_over_a_brute_force_joint(self):
        """The joint is made by walking the generative story, from the raw templates alone."""
        situation = Situation("race", "ben", "relay", 0)
        context, topic = a_context(situation), TOPICS["race"]
        about = ("ben", "relay")
        every = sorted(grammar.endings(situation))
        joint: Counter = Counter()
        for odds, cause in zip((0.4, 0.3, 0.2, 0.1), topic.causes, strict=True):
            lines = grammar.sentences_of(cause.middles, *about)
            own = grammar.sentences_of(cause.endings, *about)
            mood = grammar.sentences_of(grammar.MOODS[cause.mood], *about)
            for middle in lines:
                mass = odds / len(lines)
                for ending in own:
                    joint[middle, ending] += mass * 0.96 * 0.75 / len(own)
                for ending in mood:
                    joint[middle, ending] += mass * 0.96 * 0.25 / len(mood)
                for ending in every:
                    joint[middle, ending] += mass * 0.04 / len(every)
        assert math.isclose(sum(joint.values()), 1, abs_tol=1e-12)
        for ending in every:
            evidence = sum(mass for (_, y), mass in joint.items() if y == ending)
            exact = grammar.posterior(context, ending)
            assert math.isclose(sum(exact.values()), 1, abs_tol=1e-12)
            assert math.isclose(grammar.evidence(context, ending), math.log(evidence))
            for middle, mass in exact.items():
                assert math.isclose(mass, joint[middle, ending] / evidence, rel_tol=1e-9)

    def test_drawn_causes_follow_the_odds_of_the_hint(self):
        """Chi-square of four causes on 4,000 stories of a hint, 3 degrees: 35 is p = 1e-7."""
        counts = (Counter(), Counter())
        for story in stories(8000):
            situation = grammar.situation_of(story.context)
            counts[situation.hint][grammar.middles(situation)[story.middle][0]] += 1
        for hint, odds in enumerate(grammar.CAUSE_ODDS):
            total = counts[hint].total()
            square = sum(
                (counts[hint][c] - total * p) ** 2 / (total * p) for c, p in enumerate(odds)
            )
            assert square < 35

    def test_ideal_rate_agrees_with_the_exact_posterior(self):
        for story in stories(20, seed=1):
            context, ending = story.context, story.ending
            verdicts = {z: grammar.judge(context, z, ending) for z in grammar.prior(context)}
            shares = dict.fromkeys(grammar.VERDICTS, 0.0)
            sums = dict.fromkeys(grammar.VERDICTS, 0.0)
            for middle, mass in grammar.prior(context).items():
                told = math.exp(grammar.log_likelihood(context, middle, ending))
                shares[verdicts[middle]] += mass
                sums[verdicts[middle]] += mass * told
            rewards = {v: sums[v] / shares[v] if shares[v] else 0.0 for v in shares}
            exact = grammar.posterior(context, ending).items()
            coherent = sum(mass for z, mass in exact if verdicts[z] == "coherent")
            assert math.isclose(grammar.ideal_rate(shares, rewards), coherent, rel_tol=1e-9)


class TestReading:
    def test_every_drawn_story_parses(self):
        for story in stories(500, seed=2):
            situation = grammar.situation_of(story.context)
            assert story.context[0][0] == situation.hero
            assert story.middle in grammar.middles(situation)
            assert story.ending in grammar.endings(situation)

    def test_contexts_tell_their_situation(self):
        for situation in grammar.situations():
            assert grammar.situation_of(a_context(situation)) == situation

    @pytest.mark.parametrize(
        "change",
        [
            lambda c: (c[0], c[1]),
            lambda c: (c[0], c[1], words("the dog barked")),
            lambda c: (words("ben wanted to bake a cake"), c[1], c[2]),
        ],
    )
    def test_foreign_contexts_are_refused(self, change):
        context = change(a_context(EXAMPLE))
        with pytest.raises(InputError, match="does not begin a story"):
            grammar.situation_of(context)

    def test_foreign_endings_are_refused(self):
        context = a_context(EXAMPLE)
        with pytest.raises(InputError, match="does not end the story"):
            grammar.log_likelihood(context, next(iter(grammar.prior(context))), words("the end"))


class TestJudge:
    ending = words("the cake burned black and smoke filled the kitchen")

    @pytest.mark.parametrize(
        ("middle", "verdict"),
        [
            ("she forgot the cake in the hot oven", "coherent"),
            ("she set the timer very carefully", "wrong cause"),
            ("she added salt instead of sugar today", "wrong cause"),
            ("he forgot the cake in the hot oven", "invalid"),
            ("she forgot the pie in the hot oven", "invalid"),
            ("she forgot the cake in the hot", "invalid"),
            ("her alarm did not ring on monday", "invalid"),
            ("", "invalid"),
        ],
    )
    def test_verdicts(self, middle, verdict):
        context = a_context(EXAMPLE)
        assert grammar.judge(context, words(middle), self.ending) == verdict

    def test_a_mood_may_come_from_either_cause_of_it(self):
        context, ending = a_context(EXAMPLE), words("anna felt sad all day")
        coherent = {
            grammar.middles(EXAMPLE)[z][0]
            for z in grammar.prior(context)
            if grammar.judge(context, z, ending) == "coherent"
        }
        assert coherent == {2, 3}

    def test_reward_puts_coherent_above_wrong_and_invalid_middles(self):
        context = a_context(EXAMPLE)
        lowest: dict = {}
        for ending in grammar.following(EXAMPLE, 2):
            for middle in [*grammar.prior(context), words("the bread sang")]:
                verdict = grammar.judge(context, middle, ending)
                value = grammar.log_likelihood(context, middle, ending)
                lowest.setdefault(verdict, []).append(value)
        others = lowest["wrong cause"] + lowest["invalid"]
        assert min(lowest["coherent"]) > max(others) + 2

    def test_heroes_have_pronouns(self):
        assert {he for he, _ in HEROES.values()} == {"he", "she"}
