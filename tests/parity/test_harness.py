"""lm-evaluation-harness runs our model on a task of its own, and scores as by transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from building import changed

from gpt3jax.run import Run
from gpt3jax.train.session import train

lm_eval = pytest.importorskip("lm_eval")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

CHOICE = """
task: pets
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
"""
WRITTEN = """
task: goes_on
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5, do_sample: false}
metric_list:
  - metric: exact_match
"""
ROLLING = """
task: reads
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - metric: bits_per_byte
"""


@pytest.fixture
def run(experiment, one_device, tmp_path):
    experiment = changed(
        experiment, model={"n_layers": 2, "dense_every": 1}, train={"steps": 2, "save_every": 2},
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
    for name, text in (("pets", CHOICE), ("goes_on", WRITTEN), ("reads", ROLLING)):
        (folder / f"{name}.yaml").write_text(text.replace("FILE", str(file)))
    return folder


def test_the_harness_command_runs_our_model(run, tasks, tmp_path):
    out = tmp_path / "out"
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_HUB_OFFLINE": "1",
    }
    words = [
        sys.executable, "-m", "gpt3jax.harness", "--model", "gpt3jax", "--model_args",
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


def test_scores_are_those_of_transformers_through_the_harness(run, monkeypatch):
    from lm_eval.models.huggingface import HFLM
    from mapping import to_gpt2_state_dict
    from tokenizers import Tokenizer as HubTokenizer
    from tokenizers.models import WordLevel

    from gpt3jax.config import Mesh
    from gpt3jax.harness import Gpt3Jax
    from gpt3jax.saved import load_model
    from gpt3jax.sharding.mesh import make_mesh

    saved = load_model(run.path, None, make_mesh(Mesh(data=1), jax.devices()[:1]))
    model = saved.model
    shape = transformers.GPT2Config(
        vocab_size=model.vocabulary, n_positions=model.context, n_embd=model.d_model,
        n_layer=model.n_layers, n_head=model.n_heads, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    network = transformers.GPT2LMHeadModel(shape).eval()
    state = {name: torch.tensor(np.array(value)) for name, value in
             to_gpt2_state_dict(saved.params, model).items()}  # fmt: skip
    network.load_state_dict(state, strict=False)
    words = {str(token): token for token in range(model.vocabulary)}
    stand_in = transformers.PreTrainedTokenizerFast(
        tokenizer_object=HubTokenizer(WordLevel(words, unk_token="0")), eos_token="1"
    )
    theirs = HFLM(pretrained=network, tokenizer=stand_in, device="cpu", max_length=model.context)
    ours = Gpt3Jax(str(run.path))
    draw = np.random.default_rng(0).integers
    requests = [
        (("", ""), draw(0, model.vocabulary, n).tolist(), draw(0, model.vocabulary, m).tolist())
        for n, m in ((3, 2), (model.context - 1, 1), (model.context + 9, 5), (1, 7), (3, 2))
    ]
    expected = theirs._loglikelihood_tokens(requests, disable_tqdm=True)
    for request, a, b in zip(requests, expected, ours._loglikelihood_tokens(requests), strict=True):
        assert b[0] == pytest.approx(a[0], abs=1e-4 * len(request[2]))
        assert a[1] == b[1]
