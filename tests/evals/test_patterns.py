"""Only demonstrations determine answers, and training patterns have no held-out names."""

import math
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from gpt3jax.data.corpora.documents import hash_key
from gpt3jax.evals.tasks import patterns
from gpt3jax.evals.tasks.patterns import FEW, HELD_OUT, NAMES, PAIRS, PATTERNS, RULES, TRAINING
from gpt3jax.user_code import load_module

KNOWN = frozenset(NAMES)
IN_CONTEXT = Path(__file__).parents[2] / "experiments/in_context.py"


def names_in(text):
    """The names of a text of nothing but names, in their order."""
    words = text.split(" ")
    names = [" ".join(pair) for pair in zip(words[::2], words[1::2], strict=True)]
    assert KNOWN.issuperset(names)
    return tuple(names)


def lines(text):
    """(what is given, what is answered) of every line of a pattern or list."""
    start, *found = text.split(" \n ")
    assert start == ""
    sides = [line.split(" => ") if "=>" in line else (line[:5], line[6:]) for line in found]
    return [(names_in(given), names_in(answer)) for given, answer in sides]


def all_names(pairs):
    return {name for pair in pairs for side in pair for name in side}


def shown_to(task):
    """The demonstrations of each group, as pairs of sides."""
    groups = defaultdict(list)
    for each in task.demonstrations:
        groups[each.group] += lines(each.shown)
    return groups


def rules_of(pairs):
    """The rules that all of these lines follow."""
    return {name for name, rule in RULES.items() if all(rule(one) == two for one, two in pairs)}


def test_names_are_divided_by_their_hash():
    assert len(KNOWN) == len(NAMES) == 380
    assert {*HELD_OUT, *TRAINING} == KNOWN and not {*HELD_OUT} & {*TRAINING}
    assert all((hash_key(name) % 3 == 0) == (name in HELD_OUT) for name in NAMES)
    assert 0.3 < len(HELD_OUT) / len(NAMES) < 0.37
    for syllables in (patterns.SYLLABLES, *({n.split()[i] for n in TRAINING} for i in (0, 1))):
        assert set(syllables) == set(patterns.SYLLABLES), "each is met in each place"


@pytest.mark.parametrize("make", PATTERNS.values(), ids=PATTERNS)
def test_a_task_is_made_of_held_out_names_alone(make):
    task = make()
    assert len(task.examples) == 500 and len(task.demonstrations) == 500 * FEW
    used = all_names(lines("".join(each.shown for each in (*task.examples, *task.demonstrations))))
    assert used == set(HELD_OUT)
    assert Counter(each.group for each in task.demonstrations) == {
        each.group: FEW for each in task.examples
    }


def test_the_pair_that_is_asked_is_a_quarter_of_its_groups_demonstrations():
    task = patterns.substitution()
    groups, asked = shown_to(task), set()
    for example in task.examples:
        (pair,) = lines(example.shown)
        shown = Counter(groups[example.group])
        assert shown[pair] == FEW // PAIRS and len(shown) == PAIRS
        assert len(all_names(shown)) == 2 * PAIRS
        asked.add(pair)
    assert len(asked) > 450, "groups have mappings of their own"
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
    groups, found = shown_to(task), Counter()
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


def test_training_patterns_have_no_name_that_is_held_out_and_lists_no_pattern():
    check_documents(patterns.documents(0, 2000), 2000)


def check_documents(documents, count):
    """Of five documents two are mappings, two rules, and one a list, each as it is said."""
    kinds, rules, pairs, listed = Counter(), Counter(), set(), set()
    for text in documents:
        found = lines(text)
        assert patterns.SHORTEST <= len(found) <= patterns.LONGEST
        if "=>" in text:
            (rule,) = rules_of(found)
            kind, rules[rule] = "rule", rules[rule] + 1
        elif len(all_names(found)) == 2 * len(found):
            kind, listed = "list", listed | all_names(found)
        else:
            kind, mapping = "mapping", set(found)
            assert len(mapping) <= PAIRS and len({given for given, _ in mapping}) == len(mapping)
            pairs |= mapping
        kinds[kind] += 1
        assert kind == "list" or not all_names(found) & set(HELD_OUT)
    assert kinds == {"mapping": 2 * count // 5, "rule": 2 * count // 5, "list": count // 5}
    assert listed == KNOWN, "a model has met every name"
    assert set(rules) == set(RULES) and len(pairs) > count


def test_the_documents_of_in_context_are_these_and_text_without_names_in_lines():
    module = load_module(IN_CONTEXT)
    module.PATTERNS = 2000  # Of as many as there are, made in the same way.
    texts = list(module.documents())
    made = [text for text in texts if text.startswith(" \n ")]
    assert texts[-2000:] == made
    check_documents(made, 2000)
    assert len(texts) > 2100
    assert not [line[:5] for text in texts[:-2000] for line in text.split(" \n ")[1:]
                if line[:5] in KNOWN]  # fmt: skip
