"""The complete recipe on a corpus with known junk, duplicates and tests (planted.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt3jax.data.prepare.prepare import prepare
from gpt3jax.evals.overlap import overlap
from gpt3jax.evals.tasks.files import load_tasks
from gpt3jax.recipe.quality import keeps

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments/data_recipe.py"
ENV = os.environ | {"PYTHONPATH": str(ROOT)}


def test_without_datatrove_it_says_what_to_install():
    code = (
        "import sys, runpy; sys.modules['datatrove'] = None\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "error: datatrove.executor is not installed. pip install 'gpt3jax[recipe]'\n"
    )


@pytest.mark.recipe
def test_words_are_what_stands_between_white_space():
    pytest.importorskip("datatrove", reason="THE RECIPE GOES UNTESTED: make recipe")
    from gpt3jax.recipe.steps import Words

    text, words = " un été\n\tfoo  bar", Words()
    found = words.word_tokenize(text)
    assert found == ["un", "été", "foo", "bar"]
    assert [text[start:end] for start, end in words.span_tokenize(text)] == found
    assert words.sent_tokenize(text) == [" un été", "\tfoo  bar"]


@pytest.fixture(scope="module")
def planted():
    pytest.importorskip("datatrove", reason="THE RECIPE GOES UNTESTED: make recipe")
    from planted import plant

    return plant()


@pytest.fixture(scope="module")
def folder(planted, tmp_path_factory):
    from planted import write

    folder = tmp_path_factory.mktemp("recipe") / "in"
    write(folder, planted)
    return folder


def recipe(folder, *words):
    return subprocess.run(
        [sys.executable, SCRIPT, "--corpus", "raw", "--reference", "reference.jsonl",
         "--tests", "tests.jsonl", "--out", "clean", "--tasks", "3", *words],
        cwd=folder, env=ENV, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def table(folder):
    """What it prints, run for real by two processes."""
    done = recipe(folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def rows(folder):
    return [json.loads(line) for file in sorted(folder.glob("*")) for line in file.open()]


def texts(folder):
    found = [row["text"] for row in rows(folder)]
    assert len(found) == len(set(found))
    return set(found)


@pytest.mark.recipe
def test_quality_keeps_by_the_pareto_rule(planted, folder, table):
    found = rows(folder / "clean.work/kept")
    assert all(keeps(row["metadata"]["quality"] + 1e-6, row["text"]) for row in found)
    kept = texts(folder / "clean.work/kept")
    assert kept <= set(planted.raw)
    junk = len(kept & set(planted.junk))
    assert 0 < junk < 0.005 * len(planted.junk), "a score of 0 is kept in one of 512"
    good = len(kept) - junk
    assert good > 0.25 * (len(planted.raw) - len(planted.junk))
    lines = table.splitlines()
    assert lines[0].split()[:2] == ["read", f"{len(planted.raw):,}"]
    assert lines[1].split()[3:] == [
        f"{len(kept):,}",
        f"{len(planted.raw) - len(kept):,}",
        "dropped",
    ]


@pytest.mark.recipe
def test_one_of_near_duplicates_stays_and_nothing_else_goes(planted, folder, table):
    kept, unique = (texts(folder / "clean.work" / name) for name in ("kept", "unique"))
    several = 0
    for group in planted.near:
        came = kept & set(group)
        several += len(came) > 1
        assert len(unique & set(group)) == min(1, len(came))
    assert several > 8, "or little was tried"
    dropped = sum(max(0, len(kept & set(group)) - 1) for group in planted.near)
    assert len(kept) - len(unique) == dropped
    assert table.splitlines()[2].split()[4:] == [f"{len(unique):,}", f"{dropped:,}", "dropped"]


@pytest.mark.recipe
def test_questions_are_cut_out_and_what_many_have_is_not(planted, folder, table):
    unique, clean = texts(folder / "clean.work/unique"), texts(folder / "clean")
    cut = [(text, question) for text, question in planted.cut if text in unique]
    headed = [(text, question) for text, question in planted.headed if text in unique]
    shattered, common = (unique & set(each) for each in (planted.shattered, planted.common))
    assert len(cut) > 5 and headed and shattered and len(common) > 10
    expected = unique - {text for text, _ in (*cut, *headed)} - shattered
    for text, question in (*cut, *headed):
        at = text.index(question)
        # The question mark is no part of the last word.
        sides = (text[: max(0, at - 200)], text[at + len(question) - 1 + 200 :])
        expected |= {side for side in sides if len(side) >= 200}
    assert clean == expected
    assert not any(question in text for text in clean for question in planted.questions)
    assert common <= clean
    pieces = len(clean - unique)
    assert table.splitlines()[3] == (
        f"{'clean':<26}{len(clean):>12,}    {len(cut) + len(headed)} cut into {pieces} pieces, "
        f"{len(shattered)} dropped"
    )
    assert table.splitlines()[4].endswith(" 8 too common")


@pytest.mark.recipe
def test_the_result_is_prepared_and_the_overlap_analysis_finds_it_clean(planted, folder, table):
    data = prepare(str(folder / "clean"), str(folder / "data"), context=32, vocabulary=300,
                   workers=1)  # fmt: skip
    clean = texts(folder / "clean")
    assert data.train.documents + data.validation.documents == len(clean) and not data.skipped
    tasks = load_tasks([str(folder / "tests.jsonl")])
    (after,) = overlap(tasks, clean, set())
    (before,) = overlap(tasks, planted.raw, set())
    assert after.n == before.n == 13
    assert set(before.dirty) == set(range(21)) and set(after.dirty) == {20}, "the common one"


@pytest.mark.recipe
def test_again_it_prints_the_same_and_other_settings_are_refused(folder, table):
    again = recipe(folder)
    assert (again.returncode, again.stdout) == (0, table)
    other = recipe(folder, "--shingle", "3")
    assert (other.returncode, other.stdout) == (2, "")
    assert "error: clean was started with --shingle 5, now 3" in other.stderr
    mine = recipe(folder, "--out", "raw")
    assert mine.returncode == 2 and "raw exists: nothing is overwritten" in mine.stderr


@pytest.mark.recipe
@pytest.mark.parametrize("kind", ["slurm", "ray"])
def test_executors_of_clusters_are_made(folder, table, kind, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import data_recipe

    asked = data_recipe.parse(
        ["--corpus", "raw", "--reference", "r", "--tests", "t", "--out", str(tmp_path / "out"),
         "--executor", kind, "--partition", "low"]
    )  # fmt: skip
    made = data_recipe.executors(asked)
    assert [each.world_size for each in made] == [1, 8, 8, 14, 1, 8, 8, 1]
    if kind == "slurm":
        script = made[1].get_launch_file_contents(made[1].get_sbatch_args(8), "true")
        assert "#SBATCH --partition=low" in script and "--array=0-7%2" in script
        assert all(b.depends is a for a, b in zip(made, made[1:], strict=False))
