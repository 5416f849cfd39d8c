"""The page in a real browser: what it draws, what moves, and what a hostile text cannot do."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from browser import needs_browser, opened
from building import changed, logits_of, random_run, randomised

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.cli import main
from gpt3jax.config import Mesh
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.decoding.decode import Sampling
from gpt3jax.inspect import page as pages
from gpt3jax.inspect import record as looking
from gpt3jax.inspect.capture import attention_of, capture
from gpt3jax.inspect.page import as_data, page, token_text
from gpt3jax.inspect.record import GenerationSettings, inspect_run, inspect_shape
from gpt3jax.run_dir import Run

SECTIONS = ["whole", "track", "lens", "heads", "anatomy", "training", "shots"]
HOSTILE = [
    "<script>document.title='taken'</script>",
    "</script><script>document.title='taken'</script>",
    "<img src=/taken.png onerror=\"document.title='taken'\">",
    "]]><!--<script>",
    "\u2028\u0000${document.title='taken'}{{script}}",
]


@pytest.fixture(scope="module")
def asked():
    return GenerationSettings("the cat <script>", 5, Sampling(temperature=0.8), seed=1)


@pytest.fixture
def run(experiment, tmp_path):
    roomy = changed(experiment, model={"band": 6, "n_layers": 4})
    return random_run(tmp_path / "run", roomy, step=5)


WATCHER = Path(__file__).with_name("watcher.html").read_text()
LISTS = Path(__file__).with_name("lists.html").read_text()


def of_text(model, tokens):
    """The record of a text that a model with random parameters reads; no other sections."""
    params = randomised(model)
    read = SimpleNamespace(params=params)
    sampling = Sampling(temperature=0.8)
    record, _ = looking._text_record(read, model, tokens, sampling, (), lambda *_: None)
    shown = inspect_shape(SimpleNamespace(name="x", model=model)) | record
    facts = {"prompt_length": 3, "sampling": dataclasses.asdict(sampling), "seed": 0}
    return params, shown | facts


def in_percent(text):
    """What a list says, as shares: `<0.01%` is nearly 0."""
    return [0.0 if each == "<0.01%" else float(each.rstrip("%")) / 100 for each in text]


@needs_browser
@pytest.mark.long
def test_attention_lists_match_numpy_sort_of_the_weights(model, tmp_path):
    """Of 141 tokens, of which a query's 44 largest weights are on the page."""
    model = dataclasses.replace(model, context=160)
    tokens = np.random.default_rng(0).integers(0, 300, 141)
    params, record = of_text(model, tokens)
    assert record["heads"]["kept"] == 44
    found, _, log = opened(page("Lists", record), LISTS, tmp_path)
    assert "CONSOLE" not in log and "error" not in found, (log, found.get("error"))
    activations = capture(params, jnp.asarray(tokens)[None], model, ("queries", "keys")).activations
    of_layers = [np.asarray(attention_of(activations, layer, model)[0]) for layer in range(4)]
    assert len(found["lists"]) == 16 * 9
    for head, t, text, dotted in found["lists"]:
        layer, h = divmod(head, 4)
        weights = of_layers[layer][h, t, : t + 1]
        order = np.argsort(-weights, kind="stable")
        seen = t + 1 if model.is_dense(layer) else min(t + 1, model.band)
        shown = re.findall(r"#(\d+) ([\d.<]+%)", text.split(" mostly to ")[1])
        best = order[: min(4, seen)]
        assert [int(token) for token, _ in shown] == tokens[best].tolist(), (head, t, text)
        shares = in_percent([share for _, share in shown])
        np.testing.assert_allclose(shares, weights[best], rtol=0.06, atol=1e-4)
        left = sorted(order[44:]) if model.is_dense(layer) else []
        assert dotted == [s for s in left if s != t], (head, t)
    assert "stores the 44 largest weights" in found["text"]


@needs_browser
def test_undefined_statistics_of_a_single_token_are_shown_as_n_a(model, tmp_path):
    """A single token has no previous token and no next token."""
    _, record = of_text(model, np.array([5]))
    assert np.isnan(record["heads"]["facts"]["previous"]).all()
    watcher = LISTS.replace("[0, 2, 30, 43, 44, 70, 80, 110, 140]", "[0]").replace(
        "found.text =",
        "const sort = inside.querySelector('#heads select'); sort.value = 'previous';"
        "sort.dispatchEvent(new frame.contentWindow.Event('change')); found.text =",
    )
    found, _, log = opened(page("One", record), watcher, tmp_path)
    assert "CONSOLE" not in log and "error" not in found, (log, found.get("error"))
    assert found["text"].count("n/a") >= 16 and "NaN" not in found["text"]
    assert "mean 0.00 nats" not in found["text"]


@pytest.mark.long
def test_a_float8_run_is_shown_in_its_decoding_dtype_with_its_parent(run, asked, tmp_path):
    """Where `tensor` splits the model, too, which has no products in float8."""
    trained = changed(Run(run.path).experiment(), model={"dtype": "float8"})
    child = random_run(tmp_path / "child", trained, seed=2, step=7)
    state = Checkpointer(run.checkpoints).manifest(5).state
    identity = child.identity() | {"parent": {"path": str(run.path), "step": 5, "state": state}}
    child.identity_file.write_text(json.dumps(identity))
    mesh = Mesh(data=2, fsdp=2, tensor=2)
    record = inspect_run(child.path, asked, layers=(0,), task="hidden_rule", mesh=mesh, step=None)
    tokens = record["tokens"].astype(int)
    whole = dataclasses.replace(trained.model, dtype="float32")
    steps = {
        7: (randomised(trained.model, 2), record["predictions"]["target_p"]),
        0: (randomised(trained.model, 0), record["training"]["text"]["target_p"][0]),
    }
    for step, (params, found) in steps.items():
        logits = np.asarray(logits_of(params, jnp.asarray(tokens)[None], whole), np.float64)
        p = np.exp(logits[0, :, :300])
        p /= p.sum(-1, keepdims=True)
        expected = p[np.arange(len(tokens) - 1), tokens[1:]]
        np.testing.assert_allclose(found[:-1], expected, rtol=1e-3, err_msg=str(step))
    assert record["training"]["began"] == f"step 5 of {run.path}"
    script = page("x", record)
    assert "untrained" not in script.lower()


@needs_browser
def test_a_browser_draws_every_section_and_all_of_it_moves(run, asked, tmp_path, capsys):
    """On a mesh of eight devices, by the command."""
    out = tmp_path / "page.html"
    words = ["--prompt", asked.prompt, "--new-tokens", "5", "--seed", "1", "--out", str(out)]
    assert main(["--debug", "inspect", str(run.path), *words]) == 0
    said = capsys.readouterr()
    assert str(out) in said.out
    for stage in ("loading", "generating 5 tokens", "lens", "attention", "checkpoints", "task"):
        assert f"\n{stage}" in "\n" + said.out + said.err, stage
    text = out.read_text()
    assert len(text) < 2_000_000
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|src=", text)
    found, fetched, log = opened(text, WATCHER, tmp_path)
    assert "CONSOLE" not in log and "error" not in found, (log, found.get("error"))
    assert not fetched and found["scripts"] == 2 and found["images"] == 0
    assert found["ready"] == "yes" and found["title"] == "test, step 5: activations and parameters"
    assert found["sections"] == [[name, True] for name in SECTIONS]
    assert found["fits"] == {"wide": True, "narrow": True}
    first, after, back = found["at"]
    assert found["began"] == 0 < first
    assert after == first + 1 and back == first
    assert found["stepped"] == [True] * 4 and found["played"] > first and found["paused"]
    assert {0, 1, 2, 3, 4} <= {*found["lit"]}
    assert all(found[name] for name in ("sorted", "chosen", "checkpoint", "shots", "theme"))
    assert found["checkpoint"] == "untrained"
    exact, to_come, area = found["tips"]
    assert "outside the band" in exact or re.search(r"\n0\.\d{7}|\n[\d.]+e-\d+", exact), exact
    assert "which is masked" in to_come and "% of all" in area


@needs_browser
def test_hostile_texts_are_shown_but_not_executed(run, asked, tmp_path):
    """As tokens, title, demonstrations and answers; with less motion, which shows no half steps."""
    mesh = Mesh(data=2, fsdp=2, tensor=2)
    record = inspect_run(run.path, asked, layers=(1, 2), task="hidden_rule", mesh=mesh, step=5)
    ids = list(record["texts"])
    for number, token in enumerate(ids):
        record["texts"][token] = HOSTILE[number % len(HOSTILE)]
    for setting in record["shots"]["settings"]:
        setting["answer"] = HOSTILE[0]
        for piece in setting["pieces"]:
            piece["text"] = HOSTILE[1]
    record["name"] = record["shots"]["task"] = record["training"]["missing"] = HOSTILE[2]
    found, fetched, log = opened(
        page(HOSTILE[1], record), WATCHER, tmp_path, "--force-prefers-reduced-motion"
    )
    assert "CONSOLE" not in log and "error" not in found, (log, found.get("error"))
    assert not fetched and found["scripts"] == 2 and found["images"] == 0
    assert found["title"] == HOSTILE[1] and found["fits"] == {"wide": True, "narrow": True}
    assert any("<script>" in text for text in found["texts"])
    assert found["played"] > found["at"][2] and {*found["lit"]} == {2}


@needs_browser
def test_the_watcher_sees_harm_and_the_policy_keeps_it_out(tmp_path, experiment):
    """Else the tests before would pass whatever a page did."""
    text = page("A shape", inspect_shape(experiment))
    harm = "<script>document.title = 'taken'; console.log('here')</script><img src='/taken.png'>"
    text = text.replace("<main", harm + "<div style='width:2000px'>x</div><main")
    found, fetched, log = opened(
        re.sub("<meta http-equiv.*>", "", text), WATCHER, tmp_path / "open"
    )
    assert found["title"] == "taken" and "CONSOLE" in log and fetched == {"/taken.png"}
    assert found["sections"] == [["anatomy", True]] and not found["fits"]["wide"]
    found, fetched, _ = opened(text, WATCHER, tmp_path / "guarded")
    assert found["title"] == "A shape" and not fetched and found["ready"] == "yes"


def test_a_file_makes_the_page_of_a_model_without_weights(tmp_path, capsys):
    out = tmp_path / "shape.html"
    assert main(["inspect", "experiments/gpt3_175b.py", "--out", str(out)]) == 0
    data = json.loads(re.search(r"id=record>(.*)</script>", out.read_text())[1])
    assert data["model"]["n_layers"] == 96 and data["title"].startswith("gpt3_175b: 174,")
    assert "tokens" not in data and "histogram" not in data["anatomy"]["arrays"][0]
    assert str(out) in capsys.readouterr().out


def test_a_run_without_its_data_is_still_shown(run, asked, prepared, tmp_path, monkeypatch):
    def gone(*_):
        from gpt3jax.errors import ConfigError

        raise ConfigError("the data is not here. Restore it")

    monkeypatch.setattr("gpt3jax.inspect.record.loader.windows", gone)
    monkeypatch.setattr("gpt3jax.inspect.record.shots_record", lambda *_: None)
    mesh = Mesh(data=1, fsdp=-1)
    record = inspect_run(run.path, asked, layers=(0,), task="hidden_rule", mesh=mesh, step=None)
    assert "windows" not in record["training"] and "update" not in record["training"]
    assert record["training"]["missing"] == "the data is not here. Restore it"
    assert record["layers"] == [0] and record["heads"]["keys"].shape[0] == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["--layers", "4"], "--layers has 4: it must be from 0 to 3"),
        (["--new-tokens", "47"], "the context is 48"),
        (["--task", "patterns"], "--task patterns is 2 tasks"),
        (["--temperature", "-1"], "--temperature is -1.0"),
        (["--step", "3"], "has no checkpoint of step 3"),
    ],
)
def test_invalid_arguments_are_refused(run, words, message, capsys):
    assert main(["inspect", str(run.path), "--prompt", "the cat", *words]) == 2
    assert message in capsys.readouterr().err


def test_data_cannot_end_its_script_and_keeps_its_numbers():
    record = {
        "a": np.arange(6, dtype=np.float64).reshape(2, 3),
        "text": "</script>&<!--",
        "n": np.int64(3),
    }
    text = as_data(record)
    assert not re.search("[<>&]", text)
    found = json.loads(text)
    assert found["text"] == record["text"] and found["n"] == 3 and found["a"]["shape"] == [2, 3]
    with pytest.raises(ValueError, match="int64 is not supported"):
        as_data({"a": np.zeros(3, np.int64)})


def test_tokens_that_are_no_text_are_spelled_as_bytes(prepared):
    tokenizer = Tokenizer.load(prepared / "tokenizer.model")
    assert token_text(tokenizer.end_of_text, tokenizer) == "<|endoftext|>"
    spelled = [token_text(token, tokenizer) for token in tokenizer.encode("\u00e4")]
    assert spelled == ["<C3>", "<A4>"] or spelled == ["\u00e4"]
    record = {"x": [{"ids": np.array([5, 9], np.uint32)}], "y": np.array([7], np.int32)}
    assert {*pages.texts(record, tokenizer)} == {"5", "9"}
