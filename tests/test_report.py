"""The report says what the records say, in figures that need nothing else."""

import itertools
import json
import re
from pathlib import Path

import matplotlib
import pytest

from gpt3jax.commands.report import report
from gpt3jax.config import Data, Experiment, Model, Schedule, Source, Train
from gpt3jax.errors import ConfigError
from gpt3jax.model.param_specs import count_params, flops_per_token
from gpt3jax.report.compare import write_report
from gpt3jax.report.page import PF_DAY, STYLE, Curve, frontier
from gpt3jax.report.wall_time import draw_times
from gpt3jax.run_dir import Run
from gpt3jax.train.monitor.goodput import PHASES, Goodput

MODEL = Model(n_layers=2, d_model=8, n_heads=2, d_head=4, vocabulary=300, context=16)
FIGURES = [
    "loss.png",
    "loss_by_compute.png",
    "learning_rate.png",
    "gradient_norm.png",
    "throughput.png",
    "where_the_time_went.png",
]


def step_record(step: int) -> dict:
    loss = 5 / step**0.1
    record = {
        "step": step, "sequences": 2 * step, "tokens": 32 * step, "loss": loss,
        "grad_norm": 1 / step,
        "learning_rate": 1e-3 * step, "batch_tokens": 32, "tokens_per_s": 100.0 + step,
        "mfu": 0.3,
    }  # fmt: skip
    if step % 10 == 0:
        record |= {"val_loss": loss + 0.1, "val_bits_per_byte": loss / 2}
        record |= {"val_windows": 64, "val_windows_available": 140}
    return record


RECORDS = [
    {"step": 0, "sequences": 0, "tokens": 0, "val_loss": 5.7, "val_bits_per_byte": 2.8},
    *map(step_record, range(1, 31)),
]
SPENT = {"step": 60.0, "replay": 0.0, "data": 1.0, "evaluate": 5.0, "save": 2.0, "compile": 9.0,
         "restore": 0.0, "start": 3.0, "idle": 0.0}  # fmt: skip
CLOCK = {
    "event": "clock", "time": 180.0, "began": 100.0, "until": 180.0, "step": 30, "killed": False,
    "seconds": {phase: seconds for phase, seconds in SPENT.items() if seconds},
}  # fmt: skip
START = {"event": "start", "step": 0, "device": "cpu", "gpt3jax": "0.1.0", "commit": "abc"}


def make_run(path: Path, records=RECORDS, events=(START, CLOCK), tail: str = "") -> Path:
    experiment = Experiment(
        name="fake",
        model=MODEL,
        data=Data((Source("text", "data/text"),)),
        schedule=Schedule(1e-3, warmup_tokens=10, decay_tokens=1000),
        train=Train(batch_tokens=32, tokens=960),
    )
    (path / "samples").mkdir(parents=True)
    (path / "experiment.json").write_text(experiment.to_json())
    lines = [json.dumps(record) + "\n" for record in records]
    (path / "metrics.jsonl").write_text("".join(lines) + tail)
    (path / "ledger.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def rows(capsys: pytest.CaptureFixture, *runs: Path) -> list[dict]:
    report(runs, json=True)
    return json.loads(capsys.readouterr().out)


def test_every_figure_is_a_png_and_the_page_is_self_contained(tmp_path, capsys):
    runs = [make_run(tmp_path / name) for name in ("a", "b_$^$", "[c]")]
    report(runs, tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()
    for name in FIGURES:
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert text.count("src='data:image/png;base64,iVBOR") == len(FIGURES)
    for reference in ("http:", "https:", "url(", "@import", "<link", "<script"):
        assert reference not in text
    printed = capsys.readouterr().out
    assert all(name in text and name in printed for name in ("a", "b_$^$", "[c]"))
    assert f"{count_params(MODEL):,}" in text and f"{count_params(MODEL):,}" in printed


def test_what_differs_comes_first_and_nothing_else_is_named(tmp_path, capsys):
    """Fields that only one of the runs has, too; names, times and paths do not count."""
    later = {**START, "event": "resume", "time": 5.0, "commit": "<b>", "jax": "0.11.2"}
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b", events=(START, later, CLOCK))
    file = tmp_path / "b" / "experiment.json"
    record = json.loads(file.read_text())
    record["schedule"]["peak_learning_rate"], record["seed"], record["name"] = 2e-3, 7, "other"
    record["optimizer"] = {"name": "muon"}
    file.write_text(json.dumps(record))
    for run, manifest in zip(runs, ("1", "2"), strict=True):
        sources = [{"name": "text", "weight": 1.0, "manifest": manifest, "order": "0"}]
        data = {"tokenizer": "t", "sources": sources}
        (run / "identity.json").write_text(json.dumps({"data": data}))
    a, b = (row["differs"] for row in rows(capsys, *runs))
    assert (a["schedule.peak_learning_rate"], b["schedule.peak_learning_rate"]) == (
        "0.001",
        "0.002",
    )
    assert (a["seed"], b["seed"]) == ("0", "7")
    assert (a["optimizer.b1"], b["optimizer.b1"]) == ("0.9", "–")
    assert a["optimizer.adamw"] == "–" and '"b1": 0.9' in b["optimizer.adamw"]
    assert (a["jax"], b["jax"]) == ("–", "0.11.2")
    assert '"manifest": "2"' in b["data.sources"]
    named = {name for name in a if not name.startswith(("optimizer.", "schedule."))}
    assert named == {"seed", "commit", "jax", "data.sources"} and a.keys() == b.keys()
    report(runs, tmp_path / "out")
    printed = capsys.readouterr().out
    text = (tmp_path / "out/index.html").read_text()
    assert text.index("What differs") < text.index("peak_learning_rate") < text.index("Results")
    assert "&lt;b&gt;" in text and "<b>" not in text
    assert printed.index("peak_learning_rate") < printed.index("validation loss")


def test_of_three_runs_each_has_its_own_value_or_that_of_the_first(tmp_path, capsys):
    runs = [make_run(tmp_path / name) for name in "abc"]
    for run, seed in ((runs[1], 1), (runs[2], 0)):
        record = json.loads((run / "experiment.json").read_text())
        record["seed"], record["train"]["steps"] = seed, 9 if seed else None
        (run / "experiment.json").write_text(json.dumps(record))
    found = [row["differs"] for row in rows(capsys, *runs)]
    assert [each["seed"] for each in found] == ["0", "1", "0"]
    assert [each["train.steps"] for each in found] == ["–", "9", "–"]
    assert all(len(each) == 2 for each in found)


def test_one_run_differs_in_nothing(tmp_path, capsys):
    report([make_run(tmp_path / "a")], tmp_path / "out")
    assert "What differs" not in (tmp_path / "out/index.html").read_text()
    assert "what differs" not in capsys.readouterr().out


def test_a_json_row_matches_the_records(tmp_path, capsys):
    (row,) = rows(capsys, make_run(tmp_path / "a"))
    out = tmp_path / "a/report"
    assert row == {
        "name": "a",
        "path": str(tmp_path / "a"),
        "parameters": count_params(MODEL),
        "tokens": 960,
        "steps": 30,
        "loss": 5 / 30**0.1,
        "val_loss": RECORDS[-1]["val_loss"],
        "val_bits_per_byte": RECORDS[-1]["val_bits_per_byte"],
        "val_windows": 64,
        "val_windows_available": 140,
        "base_val_loss": None,
        "tokens_per_s": 115.5,
        "mfu": 0.3,
        "seconds": 60.0,
        "wall_seconds": 80.0,
        "goodput": 0.75,
        "seconds_by_phase": SPENT,
        "device": "cpu",
        "code": "0.1.0 (abc)",
        "differs": {},
        "figures": [str(out / name) for name in FIGURES],
        "page": str(out / "index.html"),
    }


def test_time_sums_over_resumes_and_every_code_version_is_listed(tmp_path, capsys):
    resume = START | {"event": "resume", "commit": "def", "step": 20}
    again = CLOCK | {"began": 200.0, "until": 240.0, "seconds": {"replay": 10.0, "step": 30.0}}
    (row,) = rows(capsys, make_run(tmp_path / "a", events=[START, CLOCK, resume, again]))
    assert (row["seconds"], row["wall_seconds"]) == (90, 140)
    assert (row["seconds_by_phase"]["idle"], row["seconds_by_phase"]["replay"]) == (20, 10)
    assert row["goodput"] == 90 / 140
    assert row["code"] == "0.1.0 (abc), 0.1.0 (def)"


def test_a_run_without_recorded_times_shows_dashes(tmp_path, capsys):
    clocked, not_clocked = make_run(tmp_path / "a"), make_run(tmp_path / "b", events=[START])
    (row,) = rows(capsys, not_clocked)
    for name in ("seconds", "wall_seconds", "goodput", "seconds_by_phase"):
        assert row[name] is None
    assert [Path(figure).name for figure in row["figures"]] == FIGURES[:-1]
    assert "Time by phase" not in Path(row["page"]).read_text()
    report((clocked, not_clocked), tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()
    assert (tmp_path / "out" / FIGURES[-1]).exists()
    assert "<th scope=row>goodput</th><td>75.0%</td><td>–</td>" in text
    assert "<th scope=row>step</th><td class=time>60.0 s <small>75.0%</small></td><td class" in text
    assert "<th scope=row>replay</th><td class=time>–</td>" in text
    printed = capsys.readouterr().out
    assert re.search(r"goodput +75.0% +–", printed) and re.search(r"wall, hours +0.022 +–", printed)


def test_bars_match_the_shares_and_large_ones_are_labelled():
    seconds = {phase: 0.0 for phase, _ in PHASES} | {"step": 60.0, "compile": 36.0, "idle": 4.0}
    figure = draw_times([("$x^$", Goodput(100.0, seconds, 1, 0))] * 2, 5.0)
    (axes,) = figure.axes
    bars = [bar for bar in axes.patches if bar.get_width()]
    places = [(round(bar.get_x(), 9), round(bar.get_width(), 9)) for bar in bars]
    assert places == [(0, 0.6), (0.6, 0.36), (0.96, 0.04)] * 2
    assert bars[0].get_y() != bars[3].get_y()
    words = [text.get_text() for text in axes.texts]
    assert words == ["step\n60%", "compile\n36%", "$x^$", "1.7 min"] * 2
    assert [text.get_text() for text in figure.legends[0].texts] == ["step", "compile", "idle"]
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[:9] == colours[9:] and len(set(colours)) == len(PHASES)


@pytest.mark.parametrize("share", [0.07, 0.08, 0.09, 0.1, 0.11, 0.12, 0.14])
def test_bar_labels_fit_and_names_do_not_overlap_the_times(share):
    runs = []
    for phase, _ in PHASES:
        other = "idle" if phase != "idle" else "step"
        seconds = {p: 0.0 for p, _ in PHASES} | {phase: share * 4e7, other: (1 - share) * 4e7}
        runs.append((f"{phase}-Adam-lr-6e-4-" * 5, Goodput(4e7, seconds, 1, 0)))
    with matplotlib.rc_context(STYLE):
        figure = draw_times(runs, STYLE["figure.figsize"][0])
        figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    bars = [bar.get_window_extent() for bar in axes.patches]
    for text, box in zip(axes.texts, boxes, strict=True):
        inside = [b for b in bars if b.x0 <= box.x0 and box.x1 <= b.x1 and b.overlaps(box)]
        assert len(inside) == (1 if "\n" in text.get_text() else 0), text.get_text()


def test_records_of_a_step_are_merged_and_later_fields_win(tmp_path, capsys):
    measured = [
        {"step": 30, "tokens": 960, "val_loss": 9.0, "val_bits_per_byte": 8.0},
        {"step": 30, "tokens": 960, "val_loss": 1.5, "val_bits_per_byte": 0.5},
        {"step": 12, "tokens": 384, "val_loss": 3.5},
    ]
    logged = [record for record in RECORDS if record["step"] != 12] + measured
    run = make_run(tmp_path / "a", logged, tail='{"step": 31, "loss": NaN}\n{"st')
    records = Run(run).metrics()
    assert [record["step"] for record in records] == list(range(32))
    assert records[30] == step_record(30) | measured[1]
    assert records[12] == measured[2]
    assert records[31] == {"step": 31, "loss": None}
    (row,) = rows(capsys, make_run(tmp_path / "b", logged))
    assert (row["steps"], row["val_loss"], row["val_bits_per_byte"]) == (30, 1.5, 0.5)
    assert row["loss"] == 5 / 30**0.1, "of the last logged batch"


def test_samples_are_escaped(tmp_path):
    run = make_run(tmp_path / "<b>run")
    (run / "samples/0.txt").write_text("first")
    (run / "samples/10.txt").write_text("<script>alert('x')</script>&amp;")
    (run / "samples/9.txt").write_text("neither first nor last")
    text = write_report([run])[2].read_text()
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;amp;" in text
    assert "<script" not in text and "<b>" not in text
    assert "first" in text and "neither" not in text


def test_a_half_written_last_line_is_ignored(tmp_path, capsys):
    whole = make_run(tmp_path / "whole")
    cut = make_run(tmp_path / "cut", tail='{"step": 31, "tok')
    first, second = rows(capsys, whole, cut)
    assert second | {"name": "whole", "path": first["path"]} == first


def test_a_run_before_its_first_step_shows_its_validation_loss(tmp_path, capsys):
    (row,) = rows(capsys, make_run(tmp_path / "a", RECORDS[:1], [START]))
    assert (row["loss"], row["val_loss"], row["tokens_per_s"]) == (None, 5.7, None)
    assert [Path(figure).name for figure in row["figures"]] == ["loss.png"]


def test_missing_or_empty_runs_and_unwritable_folders_are_rejected(tmp_path):
    run, empty = make_run(tmp_path / "a"), make_run(tmp_path / "empty", [], tail='{"st')
    (tmp_path / "file").touch()
    for runs, out, words in (
        ([], None, "nothing to report"),
        ([tmp_path / "none"], None, "is not a run"),
        ([run, empty], None, "no step was logged"),
        ([run], tmp_path / "file", "Choose another --out"),
    ):
        with pytest.raises(ConfigError, match=words) as refusal:
            write_report(runs, out)
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 200 + len(str(tmp_path))


def test_runs_with_the_same_folder_name_are_distinguished(tmp_path, capsys):
    runs = [make_run(tmp_path / where / "tiny", RECORDS[:1]) for where in ("a", "b")]
    assert [row["name"] for row in rows(capsys, *runs)] == [str(run) for run in runs]


def test_frontier_and_compute_use_the_papers_units():
    assert frontier(1) == pytest.approx(2.57)
    assert frontier(3640) == pytest.approx(1.734, abs=5e-4)
    # Table D.1: GPT-3 175B on 300B tokens takes 3,640 petaflop/s-days, attention not counted.
    model = Model(96, 12288, 96, 128)
    records = [{"tokens": 0, "loss": 9.0}, {"tokens": 300 * 10**9, "loss": 1.7}]
    compute, _ = Curve("175B", records, flops_per_token(model)).series("loss", compute=True)
    assert compute == [pytest.approx(3640, rel=0.03)]
    assert pytest.approx(1e15 * 24 * 3600) == PF_DAY


def test_fine_tuned_runs_show_forgetting_and_early_stopping(tmp_path, capsys):
    tuned = [
        record | ({"base_val_loss": 4 + record["step"] / 10} if "val_loss" in record else {})
        for record in RECORDS
    ]
    end = {"event": "early stop", "step": 10, "patience": 2}
    base = make_run(tmp_path / "base")
    over = make_run(tmp_path / "over", tuned, events=(START, end, CLOCK))
    on = make_run(tmp_path / "on", tuned, events=(START, end, START, CLOCK))
    report((base, over, on), tmp_path / "out", json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["base_val_loss"] for row in rows] == [None, [4.0, 5.0], [4.0, 7.0]]
    assert [row["steps"] for row in rows] == [30, 10, 30]
    assert rows[1]["val_loss"] == RECORDS[10]["val_loss"] and rows[1]["tokens"] == 320
    page = (tmp_path / "out" / "index.html").read_text()
    assert "base's validation, nats/token" in page and "4.0000, then 5.0000" in page


def test_a_comparison_does_not_overwrite_the_first_runs_report(tmp_path, capsys):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", RECORDS[:20])
    _, _, own = write_report([a])
    before = own.read_bytes()
    report((a, b))
    both = a / "report-b/index.html"
    assert own == a / "report/index.html" and both.exists()
    assert own.read_bytes() == before and str(both) in capsys.readouterr().out
    runs = [a, b, *(make_run(tmp_path / f"{n}-{'x' * 40}") for n in range(3))]
    _, _, many = write_report(runs)
    assert many.parent.name.startswith("report-5-runs-") and len(many.parent.name) < 40
