"""lm-evaluation-harness runs our model on a task of its own, and scores as by transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from building import changed

from gpt3jax.interchange.export import export
from gpt3jax.run_dir import Run
from gpt3jax.train.train import train

lm_eval = pytest.importorskip("lm_eval")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

TASK = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
metric_list:
  - metric: METRIC
"""
KINDS = {
    ("pets", "acc"): """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
""",
    ("goes_on", "exact_match"): """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5, do_sample: false}
""",
    ("reads", "bits_per_byte"): """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
""",
}
"""Tasks by name and metric."""


@pytest.fixture
def run(experiment, one_device, tmp_path):
    experiment = changed(
        experiment, model={"dense_every": 1}, train={"steps": 2, "save_every": 2},
        evaluate={"sample_tokens": 0},
    )  # fmt: skip
    train(experiment, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": f"the {word} sat on", "choices": [" a mat", " stones"], "answer": n % 2}
        for n, word in enumerate(("cat", "dog", "old bird"))
    ]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for (name, metric), kind in KINDS.items():
        text = TASK.replace("NAME", name).replace("METRIC", metric).replace("FILE", str(file))
        (folder / f"{name}.yaml").write_text(text + kind)
    return folder


def test_the_harness_command_runs_our_model(run, tasks, tmp_path):
    out = tmp_path / "out"
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_HUB_OFFLINE": "1",
    }
    words = [
        sys.executable, "-m", "gpt3jax.evals.lm_eval", "--model", "gpt3jax", "--model_args",
        f"run={run.path}", "--tasks", "pets,goes_on,reads", "--include_path", str(tasks),
        "--output_path", str(out), "--log_samples",
    ]  # fmt: skip
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = out.rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    assert 0 <= results["pets"]["acc,none"] <= 1
    assert results["reads"]["bits_per_byte,none"] > 0
    assert results["goes_on"]["exact_match,none"] == 0


def test_all_three_kinds_of_requests_agree_with_transformers_on_the_exported_folder(run, tmp_path):
    """With the folder's own tokenizer: from a text to its numbers, both ways."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from gpt3jax.evals.lm_eval import Gpt3Jax

    export(run.path, tmp_path / "exported", progress=lambda *_: None)
    context = run.experiment().model.context
    theirs = HFLM(pretrained=str(tmp_path / "exported"), device="cpu", dtype="float32",
                  max_length=context, batch_size=1)  # fmt: skip
    ours = Gpt3Jax(str(run.path))

    def requests(kind, *arguments):
        return [Instance(kind, {}, each, n) for n, each in enumerate(arguments)]

    long = "the old bird sat on the cat, and the dog. " * 20
    assert len(ours.tok_encode(long)) > 2 * context, "it does not fit"
    asked = requests(
        "loglikelihood", ("the cat", " sat on a mat"), ("", "stones"), (long, " and the dog"),
        ("the cat", " caf\u00e9\n"),
    )  # fmt: skip
    expected, found = theirs.loglikelihood(asked), ours.loglikelihood(asked)
    for request, (a, is_greedy), (b, ours_is) in zip(asked, expected, found, strict=True):
        tokens = len(ours.tok_encode(request.args[1]))
        assert b == pytest.approx(a, abs=1e-4 * tokens) and is_greedy == ours_is

    asked = requests("loglikelihood_rolling", (long,), ("the cat sat",))
    expected, found = theirs.loglikelihood_rolling(asked), ours.loglikelihood_rolling(asked)
    for request, a, b in zip(asked, expected, found, strict=True):
        assert b == pytest.approx(a, abs=1e-4 * len(ours.tok_encode(request.args[0])))

    how = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
    asked = requests("generate_until", ("the cat sat on", how), ("a dog", how))
    assert ours.generate_until(asked) == theirs.generate_until(asked)
