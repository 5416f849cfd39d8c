"""Only demonstrations tell the answer, and training text keeps what is held out apart."""

import math
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from gpt3jax.code import load_module
from gpt3jax.data.documents import hash_key
from gpt3jax.evals import patterns
from gpt3jax.evals.patterns import FEW, HELD_OUT, PAIRS, PATTERNS, RULES, SYMBOLS, TRAINING

KNOWN = set(SYMBOLS)
IN_CONTEXT = Path(__file__).parents[2] / "experiments/in_context.py"


def lines(text):
    """(what is given, what is answered) of every line of a pattern, as names."""
    start, *found = text.split(" \n ")
    assert start == ""
    return [(sides[:-1], sides[-1:]) if "=>" not in line else sides for line, sides in found]


def shown_to(task):
    """The demonstrations of each group, as pairs of sides."""
    groups = defaultdict(list)
    for each in task.demonstrations:
        groups[each.group] += lines(each.shown)
    return groups


def rules_of(pairs):
    """The rules that all of these lines follow."""
    return {
        name for name, rule in RULES.items()
        if all(list(rule(tuple(left))) == right for left, right in pairs)
    }  # fmt: skip


def test_symbols_are_divided_by_their_hash():
    assert set(HELD_OUT) | set(TRAINING) == set(SYMBOLS) and len(set(SYMBOLS)) == len(SYMBOLS)
    assert not set(HELD_OUT) & set(TRAINING)
    assert all((hash_key(symbol) % 3 == 0) == (symbol in HELD_OUT) for symbol in SYMBOLS)
    assert 0.3 < len(HELD_OUT) / len(SYMBOLS) < 0.37 and len(SYMBOLS) > 1000


@pytest.mark.parametrize("make", PATTERNS.values(), ids=PATTERNS)
def test_a_task_is_made_of_held_out_symbols_alone(make):
    task = make()
    assert len(task.examples) == 500 and len(task.demonstrations) == 500 * FEW
    used = {
        symbol
        for each in (*task.examples, *task.demonstrations)
        for side in lines(each.shown)[0]
        for symbol in side
    }
    assert used <= set(HELD_OUT) and len(used) > 0.9 * len(HELD_OUT)
    assert Counter(each.group for each in task.demonstrations) == {
        each.group: FEW for each in task.examples
    }


def test_the_pair_that_is_asked_is_a_quarter_of_its_groups_demonstrations():
    task = patterns.substitution()
    groups = shown_to(task)
    values = set()
    for example in task.examples:
        ((key, value),) = lines(example.shown)
        shown = Counter((*left, *right) for left, right in groups[example.group])
        assert shown[(*key, *value)] == FEW // PAIRS and len(shown) == PAIRS
        assert len({symbol for pair in shown for symbol in pair}) == 2 * PAIRS
        values.add((*key, *value))
    assert len(values) > 400, "groups have mappings of their own"
    # The most that a score can be, as said: what share of draws of K shows the pair.
    draw, hits = random.Random(0), Counter()
    for example in task.examples:
        for k in (1, 4, 8):
            hits[k] += lines(example.shown)[0] in draw.sample(groups[example.group], k)
    for k, count in hits.items():
        most = 1 - math.comb(12, k) / math.comb(16, k)
        assert abs(count / 500 - most) < 4 * math.sqrt(most * (1 - most) / 500)


def test_one_demonstration_tells_the_rule_and_none_tells_nothing():
    task = patterns.hidden_rule()
    groups = shown_to(task)
    found = Counter()
    for example in task.examples:
        first, *others = groups[example.group]
        (rule,) = rules_of([first])
        assert rules_of([first, *others, *lines(example.shown)]) == {rule}
        found[rule] += 1
    assert set(found) == set(RULES) and min(found.values()) > 90
    assert task.chance == 1 / len(RULES)


def test_the_seed_decides():
    for make in PATTERNS.values():
        assert make(count=5) == make(count=5) != make(1, count=5)
    first = list(patterns.documents(0, 20))
    assert first == list(patterns.documents(0, 20)) != list(patterns.documents(1, 20))
    assert len(set(first)) == 20


def test_training_documents_show_each_pattern_and_no_symbol_that_is_held_out():
    pairs, rules = set(), Counter()
    for number, text in enumerate(patterns.documents(0, 2000)):
        found = lines(text)
        assert patterns.SHORTEST <= len(found) <= patterns.LONGEST
        used = {symbol for line in found for side in line for symbol in side}
        assert not used & set(HELD_OUT)
        if number % 2:
            (rule,) = rules_of(found)
            rules[rule] += 1
        else:
            mapping = {(*left, *right) for left, right in found}
            assert len(mapping) <= PAIRS and len({left for left, _ in mapping}) == len(mapping)
            pairs |= mapping
    assert set(rules) == set(RULES) and len(pairs) > 3000, "each document has its own mapping"


def test_the_documents_of_in_context_are_patterns_without_held_out_symbols_and_other_text():
    module = load_module(IN_CONTEXT)
    in_patterns, counts = set(), Counter()
    for text in module.documents():
        is_pattern = text.startswith(" \n")
        counts[is_pattern] += 1
        if is_pattern:
            in_patterns |= {symbol for line in lines(text) for side in line for symbol in side}
        else:
            held_out = set(HELD_OUT).intersection(re.findall(r"[a-z]+", text))
            assert not any(f" \n {symbol} " in text for symbol in held_out)
    assert in_patterns == set(TRAINING)
    assert counts[True] == module.PATTERNS and counts[False] > 300
