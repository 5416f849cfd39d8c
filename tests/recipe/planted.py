"""A small raw corpus in which it is known what should go: python tests/recipe/planted.py FOLDER

Good text is Python's own language reference and docstrings in passages; half of them
is the reference. Among the other half are planted near duplicates and test questions, and
around them twenty times as much junk.
"""

import ast
import json
import random
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

JUNK = 20
"""Times as many documents as there are good ones."""
WORDS = 20
"""Of a question."""


@dataclass(frozen=True)
class Planted:
    """Texts in the corpus, by what was done to them."""

    reference: list[str]
    junk: list[str]
    plain: list[str]
    near: list[list[str]]
    """Near duplicates of each other."""
    cut: list[tuple[str, str]]
    """With a question in the middle; and that question."""
    headed: list[tuple[str, str]]
    """With a question at the start."""
    shattered: list[str]
    """With twelve questions far from each other."""
    common: list[str]
    """With the one question that many have."""
    questions: list[str]
    common_question: str

    @property
    def raw(self) -> list[str]:
        """All but the reference, shuffled."""
        texts = [*self.junk, *self.plain, *self.shattered, *self.common]
        texts += [text for group in self.near for text in group]
        texts += [text for text, _ in (*self.cut, *self.headed)]
        random.Random(1).shuffle(texts)
        return texts


def passages() -> list[str]:
    """Text of 1,200 characters and more each, no paragraph twice."""
    texts, found, seen, passage = [*topics.values()], [], set(), ""
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        nodes = ast.walk(ast.parse(file.read_bytes()))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        texts += [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]
    for text in texts:
        for paragraph in text.split("\n\n"):
            if len(paragraph) > 120 and paragraph not in seen:
                seen.add(paragraph)
                passage += paragraph + "\n\n"
            if len(passage) > 1200:
                found.append(passage)
                passage = ""
    return found


def plant() -> Planted:
    """Make the texts; the same ones each time."""
    rng = random.Random(0)
    good = passages()
    rng.shuffle(good)
    reference, good = good[: len(good) // 2], good[len(good) // 2 :]
    vocabulary = sorted({word for text in reference for word in text.split() if word.isalpha()})
    questions = [" ".join(rng.sample(vocabulary, WORDS)).capitalize() + "?" for _ in range(21)]
    *questions, common = questions
    take = iter(good)
    long = [next(take) for _ in range(72)]

    def copies(text: str, count: int) -> list[str]:
        return [text] + [_changed(text, vocabulary, rng) for _ in range(count)]

    def inside(question: str, share: float) -> str:
        text = next(take)
        at = int(share * len(text)) + re.search(r"\s", text[int(share * len(text)) :]).start()
        return f"{text[:at]} {question}{text[at:]}" if share else f"{question} {text}"

    return Planted(
        reference=reference,
        near=[copies(next(take), 3) for _ in range(40)],
        cut=[(inside(question, 0.5), question) for question in questions * 2],
        headed=[(inside(question, 0.0), question) for question in questions[:10]],
        common=[inside(common, 0.5) for _ in range(60)],
        shattered=["".join(f"{text}{question}\n\n" for text, question in
                           zip(long[i::6], questions, strict=False)) for i in range(6)],
        plain=list(take),
        junk=[_junk(rng) for _ in range(JUNK * len(good))],
        questions=questions,
        common_question=common,
    )  # fmt: skip


def _changed(text: str, vocabulary: list[str], rng: random.Random) -> str:
    """With three words changed."""
    words = text.split(" ")
    for at in rng.sample(range(len(words)), 3):
        words[at] = rng.choice(vocabulary)
    return " ".join(words)


def _junk(rng: random.Random) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    word = lambda: "".join(rng.choices(letters, k=rng.randint(2, 4)))  # noqa: E731
    return " ".join(word() for _ in range(150))


def write(folder: Path, planted: Planted) -> None:
    """The corpus in seven files, the reference, and the tests."""
    (folder / "raw").mkdir(parents=True)
    raw = planted.raw
    for i in range(7):
        _write(folder / f"raw/{i}.jsonl", [{"text": text} for text in raw[i::7]])
    _write(folder / "reference.jsonl", [{"text": text} for text in planted.reference])
    asked = [*planted.questions, planted.common_question]
    _write(folder / "tests.jsonl", [{"context": text, "completion": " Yes"} for text in asked])


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    write(Path(sys.argv[1]), plant())
