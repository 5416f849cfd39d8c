"""With --json, stdout is one JSON document and nothing else, whatever the command."""

import inspect
import json
import shlex
import sys
from pathlib import Path

import pytest
from building import changed, random_run

from gpt3jax.cli import COMMANDS, main

FAKE = Path(__file__).parent / "sweep/fake_train.py"
WITH_JSON = [name for name, of in COMMANDS.items() if "json" in inspect.signature(of).parameters]
WORDS = {
    "bench": "data FILE --repeats 1",
    "data overlap": "RUN --task TASK",
    "doctor": "FILE --run new",
    "evaluate": "RUN --tasks TASK --shots 0 1 --beams 1",
    "generate": "RUN --prompt the --new-tokens 2",
    "perplexity": "RUN --windows 2",
    "plan": "FILE --chips h100:1",
    "report": "RUN",
    "sweep": f"FILE --trials 1 --launch {shlex.quote(shlex.join([sys.executable, str(FAKE)]))}",
    "verify": "RUN",
}
"""What to type after each command."""
MAY_FIND_FAULTS = {"doctor", "verify"}
"""Their exit code is about the machine and the run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("json")


@pytest.fixture
def typed(folder, experiment, one_device, monkeypatch):
    """What the names in `WORDS` stand for: a run, an experiment file with a space, and a task."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("gpt3jax.runtime.memory.retain_freed_memory", lambda: None)
    small = changed(experiment, model={"n_layers": 1}, train={"steps": 2})
    run, file, task = folder / "run", folder / "file.py", folder / "task.jsonl"
    if not run.exists():
        file.write_text(
            "from gpt3jax.config import Experiment\n\n\ndef experiment():\n"
            f"    return Experiment.from_json({small.to_json()!r})\n\n\n"
            'def space(trial):\n    return {"x": trial.suggest_float("x", 0, 2)}\n'
        )
        lines = [{"context": f"\nthe {n}", "completion": " cat"} for n in range(3)]
        task.write_text("".join(json.dumps(line) + "\n" for line in lines))
        records = [{"step": n, "tokens": 48 * n, "loss": 5.0 - n, "val_loss": 5.0} for n in (1, 2)]
        made = random_run(run, small)
        made.metrics_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return {"RUN": str(run), "FILE": str(file), "TASK": str(task)}


@pytest.mark.parametrize("command", WITH_JSON)
def test_with_json_stdout_is_one_document_and_no_more(command, typed, capfd):
    words = [typed.get(word, word) for word in shlex.split(WORDS[command])]
    code = main([*command.split(), *words, "--json"])
    out, err = capfd.readouterr()
    assert code == 0 or command in MAY_FIND_FAULTS, err
    assert json.loads(out) and "error:" not in err
