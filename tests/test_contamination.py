"""`gpt3jax data overlap`: planted test questions are found in prepared data, and only those."""

import json
from pathlib import Path

import pytest

from gpt3jax.cli import main
from gpt3jax.data import loader
from gpt3jax.data.manifest import TOKENIZER
from gpt3jax.data.prepare.prepare import prepare
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.evals.results import digest
from gpt3jax.evals.tasks.files import load_tasks


@pytest.fixture
def planted(prepared, tmp_path):
    """Two questions that stand in the training text, and one that does not."""
    tokenizer = Tokenizer.load(Path(prepared) / TOKENIZER)
    texts = [tokenizer.decode(ids) for ids in loader.documents(prepared)]
    words = [text.split()[3:20] for text in texts if len(text.split()) > 30]
    rows = [
        {"context": " ".join(words[0]).upper() + "!", "completion": " yes"},
        {"context": "no " * 20, "completion": " yes"},
        {"context": ", ".join(words[-1]), "completion": " yes"},
    ]
    file = tmp_path / "planted.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_documents_are_the_training_text_one_by_one(prepared):
    tokenizer = Tokenizer.load(Path(prepared) / TOKENIZER)
    found = list(loader.documents(prepared))
    assert len(found) > 10
    assert not any(tokenizer.end_of_text in ids for ids in found)
    whole = loader.load_manifest(prepared).train
    assert sum(len(ids) + 1 for ids in found) <= whole.tokens + len(whole.shards)


def test_documents_of_pairs_are_whole_pairs(prepared, tmp_path):
    pairs = [{"prompt": f"{n} cats", "completion": f" and {n} dogs"} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    prepare(
        str(tmp_path / "pairs.jsonl"), str(tmp_path / "data"), context=40, vocabulary=300,
        tokenizer=str(Path(prepared) / TOKENIZER), pairs=("prompt", "completion"), workers=1,
    )  # fmt: skip
    tokenizer = Tokenizer.load(Path(prepared) / TOKENIZER)
    found = [tokenizer.decode(ids) for ids in loader.documents(tmp_path / "data")]
    assert set(found) <= {f"{n} cats and {n} dogs" for n in range(40)} and len(found) > 30


def test_planted_questions_are_found_and_scored_apart(prepared, planted, tmp_path, capsys):
    results = tmp_path / "results.json"
    examples = [{"score": score} for score in (1.0, 0.5, 1.0)]
    setting = {"task": "planted", "shots": 0, "draw": 0, "examples": examples}
    results.write_text(json.dumps({"settings": [setting]}))
    words = ["data", "overlap", str(prepared), "--task", str(planted)]
    assert main([*words, "--results", str(results), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["n"] == 13 and list(record["grams"]) == ["0", "2"]
    (score,) = record["scores"]
    assert (score["clean"], score["dirty"]) == (0.5, 1.0)
    assert score["change"] == pytest.approx(0.5 / (2.5 / 3) - 1)
    assert main(words) == 0
    assert "2 (66.7%)" in capsys.readouterr().out


def test_of_merged_results_only_those_of_the_same_questions_count(
    prepared, planted, tmp_path, capsys
):
    results = tmp_path / "results.json"
    same = digest(load_tasks([str(planted)])[0])
    settings = [
        {"task": "planted", "shots": shots, "draw": 0, "asked": {"questions": questions},
         "examples": [{"score": 1.0}] * count}
        for shots, questions, count in (
            (0, same, 3), (1, "other", 3), (2, "other", 2), (4, same, 3),
        )
    ]  # fmt: skip
    results.write_text(json.dumps({"settings": settings}))
    words = ["data", "overlap", str(prepared), "--task", str(planted), "--results", str(results)]
    assert main([*words, "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert [each["shots"] for each in record["scores"]] == [0, 4]
    results.write_text(json.dumps({"settings": settings[1:3]}))
    assert main(words) == 2 and "not the same" in capsys.readouterr().err


def test_results_of_another_evaluation_are_refused(prepared, planted, tmp_path, capsys):
    results = tmp_path / "results.json"
    words = ["data", "overlap", str(prepared), "--task", str(planted), "--results", str(results)]
    for text, said in (
        ("{}", "cannot be read"),
        ("[" * 100, "cannot be read"),
        ('{"settings": [{"task": "planted", "shots": 0, "draw": 0, "examples": [{"score": 1}]}]}',
         "not the same"),
    ):  # fmt: skip
        results.write_text(text)
        assert main(words) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
