"""Tasks asked while training: the same numbers as asked afterwards, on any mesh."""

import json
from pathlib import Path

import jax
import pytest
from building import changed

from gpt3jax.cli import main
from gpt3jax.config import Mesh
from gpt3jax.data.manifest import TOKENIZER
from gpt3jax.run_dir import Run
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.evaluation import Evaluation
from gpt3jax.train.state import init_state
from gpt3jax.train.train import train


@pytest.fixture
def asked(experiment, tmp_path):
    """Multiple choice, of words that the corpus has."""
    lines = [
        {"context": f"\n{word} is", "choices": [" red", " the", f" {word}"], "truth": n % 3}
        for n, word in enumerate(("cat", "dog", "sun", "tree", "sea", "stone"))
    ]
    file = tmp_path / "choice.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return changed(
        experiment,
        train={"steps": 2, "save_every": 2},
        evaluate={"sample_tokens": 0, "every": 2, "tasks": (str(file),), "shots": (0, 2)},
    )


@pytest.mark.long
@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_tasks_while_training_score_as_evaluate_does_afterwards(asked, mesh, tmp_path, capsys):
    run = tmp_path / "run"
    train(changed(asked, mesh=mesh), run)
    (last,) = (record for record in Run(run).metrics() if record["step"] == 2)
    words = ["evaluate", str(run), "--tasks", asked.evaluate.tasks[0], "--shots", "0", "2"]
    assert main([*words, "--beams", "0", "--json", "--mesh.data", "8", "--mesh.fsdp", "1"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["shots"] for row in rows] == [0, 2]
    for row in rows:
        assert last[f"choice_{row['shots']}_shot"] == row["score"]
        assert row["examples"] == 6 and row["chance"] == pytest.approx(1 / 3)
    results = json.loads((run / "evaluations" / "2" / "results.json").read_text())
    assert results["settings"][1]["examples"][0]["prompts"][0].count("\n") == 3
    assert (run / "evaluations" / "2" / "index.html").exists()


def test_perplexity_is_the_validation_loss_and_its_means_agree(asked, tmp_path, capsys):
    train(changed(asked, mesh={"data": 8}), tmp_path / "run")
    (last,) = (record for record in Run(tmp_path / "run").metrics() if record["step"] == 2)
    words = ["perplexity", str(tmp_path / "run"), "--windows", "16", "--json"]
    assert main([*words, "--mesh.data", "8", "--mesh.fsdp", "1"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("val_loss", "val_bits_per_byte"):
        assert found[name] == last[name], "the same bits on the same mesh"
    by_position = found["loss_by_position"]
    assert len(by_position) == asked.model.context
    assert sum(by_position) / len(by_position) == pytest.approx(found["val_loss"], rel=1e-6)
    assert found["val_bits_per_byte"] > 0 and found["words"] > 0
    # Shared out over `tensor`, too.
    assert main([*words, "--mesh.data", "1", "--mesh.fsdp", "2", "--mesh.tensor", "4"]) == 0
    spread = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert spread["loss_by_position"] == pytest.approx(by_position, rel=1e-4)
    assert jax.device_count() == 8
    # And of the model as it writes with packed matrices.
    assert main([*words, "--weights", "int8"]) == 0
    packed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert packed["loss_by_position"] == pytest.approx(by_position, rel=0.01)
    assert packed["loss_by_position"] != pytest.approx(by_position, rel=1e-5)
    run = str(tmp_path / "run")
    assert main(["generate", run, "--new-tokens", "3", "--weights", "int8"]) == 0


def test_between_evaluations_the_devices_hold_no_second_copy(asked, one_device):
    """Neither of what judges the tasks nor of what writes the sample."""

    def held():
        return sum(array.nbytes for array in jax.live_arrays())

    asked = changed(asked, evaluate={"sample_tokens": 2})
    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = init_state(asked).params
        file = Path(asked.data.sources[0].path) / TOKENIZER
        evaluation = Evaluation(asked, mesh, file)
        before, size = held(), sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        for _ in range(2):
            assert evaluation.measure(params, lambda: False)["val_windows"] == 16
            evaluation.sample(params)
            assert held() - before < size / 10
