"""Evaluation results are stored by setting, reused, and never lost."""

import json
from types import SimpleNamespace

import pytest
from building import changed, random_run
from scipy.stats import binomtest

from gpt3jax.cli import main
from gpt3jax.evals import run as asking
from gpt3jax.evals.protocol import check
from gpt3jax.evals.results import digest
from gpt3jax.evals.scoring import Answer, Scored
from gpt3jax.evals.summary import described, wilson
from gpt3jax.evals.task import Example, Task


class Writer:
    """In a Scorer's place: it always answers `yes`, and counts how often it is asked."""

    calls = 0
    stop_at = None

    def __init__(self, params, model, tokenizer, mesh):
        self.tokenizer, self.model = tokenizer, SimpleNamespace(context=48, dtype="float32")

    def answer(self, prompts, *, candidates, report, **options):
        if Writer.calls == Writer.stop_at:
            raise KeyboardInterrupt
        Writer.calls += 1
        report(1.0)
        tokens = tuple(self.tokenizer.encode(" yes\n"))
        return [
            Answer(tokens, -1.0, tuple(Scored((-1.0,) * len(c), (False,) * len(c)) for c in each))
            for each in candidates
        ]


@pytest.fixture
def run(experiment, tmp_path, one_device, monkeypatch):
    Writer.calls, Writer.stop_at = 0, None
    monkeypatch.setattr(asking, "Scorer", Writer)
    return random_run(tmp_path / "run", changed(experiment, model={"n_layers": 1})).path


@pytest.fixture
def tasks(tmp_path):
    """Two task files; one with half of its answers right, one with none."""
    for name, answers in (("half", (" yes", " no")), ("none", (" no", " no"))):
        lines = [{"context": f"\nis it {n}?", "completion": a} for n, a in enumerate(answers)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return str(tmp_path / "half.jsonl"), str(tmp_path / "none.jsonl")


def evaluate(run, *words):
    return main(["evaluate", str(run), "--tasks", *words])


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_an_evaluation_keeps_the_results_of_those_before(run, tasks, capsys):
    folder = run / "evaluations/5"
    assert evaluate(run, tasks[0], "--shots", "0", "1") == 0
    first = results(folder)["settings"]
    assert evaluate(run, tasks[1], "--shots", "0") == 0
    assert evaluate(run, tasks[0], "--shots", "1", "--seed", "1") == 0
    found = results(folder)
    assert found["settings"][:2] == first
    asked = [(x["task"], x["shots"], x["asked"]["seed"]) for x in found["scores"]]
    assert asked == [("half", 0, 0), ("half", 1, 0), ("none", 0, 0), ("half", 1, 1)]
    page = (folder / "index.html").read_text()
    assert page.count("<h2") == 4 and "1 shot:" in page and "1 shots" not in page
    assert Writer.calls == 4


def test_what_is_there_already_is_not_computed_again(run, tasks, capsys):
    words = (*tasks, "--shots", "0", "1", "few", "--json")
    assert evaluate(run, *words) == 0
    first = capsys.readouterr()
    assert Writer.calls == 6
    assert evaluate(run, *words) == 0
    second = capsys.readouterr()
    assert Writer.calls == 6 and second.out == first.out
    assert "not computed again: 6 of 6 settings" in second.err
    assert evaluate(run, *words, "--draws", "2") == 0
    assert Writer.calls == 6 + 4, "the first draws of the four with demonstrations are there"


def test_finished_settings_survive_an_interruption(run, tasks, capsys):
    Writer.stop_at = 2
    assert evaluate(run, *tasks, "--shots", "0", "1") == 130
    stored = list((run / "evaluations/5/settings").glob("*.json"))
    assert len(stored) == 2 and len(results(run / "evaluations/5")["settings"]) == 2
    Writer.stop_at = None
    assert evaluate(run, *tasks, "--shots", "0", "1") == 0
    assert Writer.calls == 4 and len(results(run / "evaluations/5")["settings"]) == 4


def test_a_damaged_setting_is_computed_again(run, tasks):
    assert evaluate(run, tasks[0], "--shots", "0") == 0
    (file,) = (run / "evaluations/5/settings").glob("*.json")
    whole = file.read_text()
    file.write_text(whole[:-20])
    assert evaluate(run, tasks[0], "--shots", "0") == 0
    assert Writer.calls == 2 and file.read_text() == whole


def test_a_folder_that_cannot_be_written_is_refused_before_any_question(run, tasks, capsys):
    (run / "file").write_text("")
    assert evaluate(run, tasks[0], "--out", str(run / "file/out")) == 2
    assert "cannot be written" in capsys.readouterr().err and Writer.calls == 0


def test_results_of_two_models_are_not_mixed(run, tasks, experiment, tmp_path, capsys):
    other = random_run(tmp_path / "other", changed(experiment, model={"n_layers": 1}), seed=1).path
    words = (tasks[0], "--shots", "0", "--out", str(tmp_path / "out"))
    assert evaluate(run, *words) == 0
    before = (tmp_path / "out/results.json").read_bytes()
    assert evaluate(other, *words) == 2
    assert "other parameters" in capsys.readouterr().err and Writer.calls == 1
    assert (tmp_path / "out/results.json").read_bytes() == before


def test_results_from_before_settings_had_files_are_kept(run, tasks):
    folder = run / "evaluations/5"
    assert evaluate(run, *tasks, "--shots", "0") == 0
    found = results(folder)
    protocol = {"shots": [0], "draws": 1, "seed": 0, "shared": False, "beams": 4, "alpha": 0.6}
    old = [{k: v for k, v in each.items() if k != "asked"} for each in found["settings"]]
    old[0]["task"] = "old"
    record = {k: found[k] for k in ("run", "step", "experiment")}
    for file in (folder / "settings").glob("*.json"):
        file.unlink()
    (folder / "results.json").write_text(
        json.dumps({**record, "protocol": protocol, "settings": old})
    )
    for _ in range(2):
        assert evaluate(run, tasks[1], "--shots", "0") == 0
        # One was asked again since, the other not.
        assert [each["task"] for each in results(folder)["settings"]] == ["old", "none"]


def test_progress_is_one_line_for_all_settings_and_on_stderr(run, tasks, capsys):
    assert evaluate(run, *tasks, "--shots", "0", "1", "few", "--draws", "3") == 0
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("14 settings ")]
    assert lines[-1] == "14 settings 100%" and 3 < len(lines) <= 12
    assert "settings" not in out


def test_a_score_of_zero_has_an_interval_that_says_how_little_is_known(run, tasks, capsys):
    assert evaluate(run, tasks[1], "--shots", "0", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    expected = binomtest(0, 2).proportion_ci(0.95, method="wilson")
    assert row["score"] == 0 and row["interval"] == pytest.approx([0, expected.high])
    assert evaluate(run, tasks[1], "--shots", "0") == 0
    assert f"0.0 (0.0 to {100 * expected.high:.1f})" in capsys.readouterr().out


@pytest.mark.parametrize("right, count", [(0, 200), (200, 200), (1, 3), (37, 120), (0, 1)])
def test_intervals_are_wilsons(right, count):
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_zero_of_two_hundred_is_up_to_1_9_per_cent():
    low, high = wilson(0.0, 200)
    assert low == 0 and round(100 * high, 1) == 1.9


def test_what_was_asked_is_said_with_right_plurals():
    asked = {"seed": 3, "beams": 1, "shared": False}
    row = {"examples": 1, "draws": 1, "asked": asked}
    assert described(row) == "1 example, seed 3, 1 beam"
    row |= {"examples": 2000, "asked": asked | {"beams": 4}}
    assert described(row) == "2,000 examples, seed 3, 4 beams"


def test_a_stored_answer_is_checked_by_the_check_of_now():
    examples = (Example(("a",), (" b",)),)
    task = Task("t", examples, "exact match", few=0, check=lambda text, truth: {"ok": text == "B"})
    setting = {"examples": [{"answer": " B", "checks": {"ok": False}}]}
    assert check(setting, task) and not check(setting, task)
    assert setting["examples"][0]["checks"] == {"ok": True}


def test_a_digest_tells_tasks_apart_by_all_that_a_score_depends_on():
    def task(**fields):
        given = {"examples": (Example(("a",), (" b",)),), "metric": "exact match", "few": 1}
        return digest(Task("t", **(given | fields)))

    others = [
        task(), task(examples=(Example(("a",), (" c",)),)), task(metric="F1"),
        task(description="d"),
        task(demonstrations=(Example(("x",), ("y",)),)), task(stop="."),
    ]  # fmt: skip
    assert len(set(others)) == len(others) and task(source="elsewhere") == others[0]
