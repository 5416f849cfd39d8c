"""Folders for and from transformers itself: its logits, its tokenizer, its pipeline."""

import json
import math
import os
import random
from itertools import islice

import jax
import numpy as np
import pytest
from building import changed, logits_of, random_run

from gpt3jax import cli
from gpt3jax.config import Source
from gpt3jax.data.byte_level import END_OF_TEXT
from gpt3jax.data.corpora.open import open_corpus
from gpt3jax.data.loader import held_out
from gpt3jax.data.prepare.prepare import prepare
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.decoding.decode import Sampling
from gpt3jax.decoding.generator import load_generator
from gpt3jax.interchange import export as exporting
from gpt3jax.interchange.certificate import CertificateError
from gpt3jax.interchange.export import export
from gpt3jax.interchange.import_ import import_
from gpt3jax.interchange.safetensors import read_folder
from gpt3jax.interchange.tokenizer_files import AWKWARD
from gpt3jax.run_dir import Run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

pytestmark = pytest.mark.parity

CONTEXT = 64


@pytest.fixture(scope="module")
def sources():
    """Some of Python's own source."""
    corpus = open_corpus("python-library", "text")
    documents = (document for part in corpus.parts[:40] for document in corpus.read(part))
    return [document.text for document in documents if hasattr(document, "text")]


@pytest.fixture(scope="module")
def gpt2_tokenizer(sources, tmp_path_factory):
    """GPT-2's kind, trained here, as transformers saves it; the folder."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(sources, 600, special_tokens=[END_OF_TEXT], show_progress=False)
    folder = tmp_path_factory.mktemp("gpt2-tokenizer")
    trained.save_model(str(folder))
    transformers.GPT2TokenizerFast.from_pretrained(folder).save_pretrained(folder)
    return folder


def network(family, vocabulary=600):
    """One of each family, with every parameter drawn at random."""
    common = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt_neo":
        config = transformers.GPTNeoConfig(
            max_position_embeddings=CONTEXT, hidden_size=48, num_layers=4, num_heads=4,
            attention_types=[[["global", "local"], 2]], window_size=12, **common,
        )  # fmt: skip
    else:
        config = transformers.GPT2Config(
            n_positions=CONTEXT, n_embd=48, n_layer=3, n_head=4,
            activation_function="gelu" if family == "cerebras" else "gelu_new", **common,
        )  # fmt: skip
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def their_logits(made, tokens):
    with torch.no_grad():
        return made(torch.tensor(tokens).long()).logits.numpy()


def our_logits(run, tokens):
    generator, model = load_generator(run), Run(run).experiment().model
    logits = logits_of(generator.params, tokens, model)
    return np.asarray(logits)[..., : model.vocabulary]


def random_tokens():
    return np.random.default_rng(0).integers(0, 600, (2, CONTEXT)).astype(np.int32)


@pytest.mark.parametrize("shard", ["50KB", "5GB"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "cerebras"])
def test_each_family_comes_in_with_its_logits_and_goes_out_with_its_bits(
    family, shard, gpt2_tokenizer, tmp_path
):
    made, theirs = network(family), tmp_path / "theirs"
    made.save_pretrained(theirs, max_shard_size=shard)
    assert len(list(theirs.glob("*.safetensors"))) == 1 or shard == "50KB"
    transformers.AutoTokenizer.from_pretrained(gpt2_tokenizer).save_pretrained(theirs)
    import_(theirs, tmp_path / "run")
    tokens = random_tokens()
    expected = their_logits(made, tokens)
    np.testing.assert_allclose(our_logits(tmp_path / "run", tokens), expected, rtol=0, atol=1e-4)

    found = export(tmp_path / "run", tmp_path / "out")
    assert found.peer and found.difference < 1e-4 and found.texts > len(AWKWARD)
    assert found.parameters == sum(p.numel() for p in made.parameters()) + (
        3 * 48 * 4 if family == "gpt_neo" else 0  # Our biases of q, k and v, which are zero.
    )
    weights = dict(made.named_parameters())
    for name, tensor in read_folder(tmp_path / "out").items():
        values, known = tensor.read(), weights.pop(name).detach().numpy()
        if "q_proj" in name:  # d_head is 12: scaled twice.
            np.testing.assert_allclose(values, known, rtol=2e-7)
        else:
            np.testing.assert_array_equal(values, known)
    assert not weights

    import_(tmp_path / "out", tmp_path / "again")
    states = [
        json.loads((tmp_path / run / "checkpoints/0/manifest.json").read_text())["leaves"]
        for run in ("run", "again")
    ]
    assert states[0] == states[1], "bit for bit"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dense_every", [1, 2])
@pytest.mark.parametrize("mup_base", [None, (12, 3)])
def test_a_run_with_all_biases_is_the_same_model_there(
    experiment, tmp_path, dense_every, dtype, mup_base
):
    """Those of q, k and v of banded models are folded into their neighbours; so is muP."""
    shape = {"dense_every": dense_every, "mup_base": mup_base}
    run = random_run(tmp_path / "run", changed(experiment, model=shape))
    found = export(run.path, tmp_path / "out", dtype=dtype)
    assert found.family == ("gpt2" if dense_every == 1 else "gpt_neo")
    assert found.difference <= found.tolerance
    if dtype == "float32":
        assert found.difference < 1e-4


def test_greedy_text_is_the_same_in_a_pipeline(experiment, tmp_path):
    run = random_run(tmp_path / "run", experiment, seed=1)
    export(run.path, tmp_path / "out")
    pipeline = transformers.pipeline("text-generation", model=str(tmp_path / "out"))
    prompt = "the cat  sat"
    (found,) = pipeline(prompt, do_sample=False, max_new_tokens=20, return_tensors=True)
    generator = load_generator(run.path)
    ids = generator.tokenizer.encode(prompt)
    rows = generator.tokens(ids, new_tokens=20, sampling=Sampling(temperature=0))
    assert found["generated_token_ids"] == ids + [int(token) for (token,) in rows]
    drawn = pipeline(prompt, max_new_tokens=5, num_return_sequences=2)
    assert all(each["generated_text"].startswith(prompt) for each in drawn)


@pytest.mark.parametrize("kind", ["ours", "gpt2"])
def test_tokenizers_agree_on_source_and_on_awkward_texts(
    kind, experiment, gpt2_tokenizer, sources, tmp_path
):
    if kind == "ours":
        run = random_run(tmp_path / "run", experiment).path
    else:
        network("gpt2").save_pretrained(tmp_path / "theirs")
        saved = transformers.AutoTokenizer.from_pretrained(gpt2_tokenizer)
        saved.save_pretrained(tmp_path / "theirs")
        import_(tmp_path / "theirs", tmp_path / "run")
        run = tmp_path / "run"
    export(run, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = Tokenizer.load(run / "tokenizer.model")
    assert theirs.eos_token_id == ours.end_of_text
    for text in [*AWKWARD, *(source[:20_000] for source in islice(sources, 30))]:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids) == text
        if kind == "gpt2" and END_OF_TEXT not in text:
            assert saved(text)["input_ids"] == ids, "as the folder that was imported"


@pytest.mark.parametrize(
    "name", ["h.0.attn.attention.k_proj.weight", "h.1.ln_2.bias", "ln_f.weight", "wpe.weight"]
)
def test_a_weight_that_is_disturbed_breaks_the_certificate(experiment, tmp_path, monkeypatch, name):
    tensors = exporting._tensors

    def disturbed(*arguments):
        for each, values in tensors(*arguments):
            if each == f"transformer.{name}":
                values = values.copy()
                values[..., :1] += 0.05
            yield each, values

    monkeypatch.setattr(exporting, "_tensors", disturbed)
    run = random_run(tmp_path / "run", experiment)
    with pytest.raises(CertificateError, match="the export is not valid: its logits differ by"):
        export(run.path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["run"]


def test_a_tokenizer_that_is_disturbed_breaks_the_certificate(experiment, tmp_path, monkeypatch):
    write = exporting.write_tokenizer

    def disturbed(folder, *arguments):
        write(folder, *arguments)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["split_special_tokens"] = False
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    monkeypatch.setattr(exporting, "write_tokenizer", disturbed)
    run = random_run(tmp_path / "run", experiment)
    with pytest.raises(CertificateError, match="tokenizer gives different ids for '<|endoftext|>'"):
        export(run.path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["run"]


def test_the_command_prints_the_certificate(experiment, tmp_path, capsys):
    run = random_run(tmp_path / "run", experiment)
    words = ["export", str(run.path), "--to", "huggingface", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    assert "certificate: transformers 5." in capsys.readouterr().out


def test_nothing_here_is_left_at_its_start():
    """What the comparisons rest on."""
    for family in ("gpt2", "gpt_neo", "cerebras"):
        for name, parameter in network(family).named_parameters():
            spread = parameter.detach().numpy().std()
            assert spread > 0.2, name
    assert jax.default_backend() == "cpu"


def test_perplexity_is_what_transformers_computes_on_two_kinds_of_text(
    experiment, tmp_path, capsys
):
    """Nats by their logits, bytes and words of the text that their tokenizer decodes."""
    draw = random.Random(3)
    for name, letters in (("words", "abcdefg  é\n"), ("symbols", "∑∂√≈ω+-*/ ")):
        rows = [{"text": "".join(draw.choices(letters, k=draw.randint(9, 300)))} for _ in range(99)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    data = tmp_path / "data"
    prepare(str(tmp_path), str(data), context=48, vocabulary=300, validation_fraction=0.2)
    given = changed(experiment, data={"sources": (Source("d", str(data)),)})
    run = random_run(tmp_path / "run", given)
    export(run.path, tmp_path / "out")
    capsys.readouterr()
    assert cli.main(["perplexity", str(run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    windows = held_out(run.experiment().data, 0, 48).windows
    made = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    log_p = torch.log_softmax(torch.tensor(their_logits(made, windows[:, :-1])).double(), -1)
    nats = -log_p.gather(-1, torch.tensor(windows[:, 1:, None]).long()).sum().item()
    ids = [int(id_) for id_ in windows[:, 1:].flat if id_ != tokenizer.eos_token_id]
    size = len(tokenizer.decode(ids, clean_up_tokenization_spaces=False).encode())
    assert found["windows"] == found["windows_available"] == len(windows)
    assert found["bytes"] == size and found["tokens"] == windows[:, 1:].size
    np.testing.assert_allclose(found["val_loss"], nats / windows[:, 1:].size, rtol=1e-5)
    np.testing.assert_allclose(found["val_bits_per_byte"], nats / math.log(2) / size, rtol=1e-5)
