"""What is typed, and experiment files: what is wrong is refused at once, and nothing is made."""

import dataclasses
import fcntl
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from building import randomised
from hypothesis import given
from hypothesis import strategies as st
from mutations import bounds, tries
from test_hostile_files import write_run

from gpt3jax import cli, config
from gpt3jax.config import Experiment, Model, Train
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.decoding.generator import Generator
from gpt3jax.errors import ConfigError
from gpt3jax.train.run_setup import data_identity
from gpt3jax.train.schedules import batch_windows, sequences_after, total_tokens
from gpt3jax.user_code import load_experiment

TINY = (Path(__file__).parents[2] / "experiments/tiny.py").read_text()
SECONDS = 2
"""That a refusal may take."""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder of its own for the files of a test."""
    return tmp_path_factory.mktemp("words")


# Experiment files.


STRANGE = ("", " ", "None", "True", "-1", "1.5", "1e999", "10**30", "[]", "'x'", "(", "\n", "\0")


@st.composite
def broken_source(draw):
    """tiny.py with tokens left out, doubled or replaced, or lines indented by tabs."""
    words = re.findall(r"\w+|\s+|.", TINY)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(len(words) // 2, len(words) - 1))
        words[at] = draw(st.sampled_from((*STRANGE, 2 * words[at])))
    return "".join(words).replace("    ", draw(st.sampled_from(("    ", "\t", "  ")))).encode()


def changed(layers):
    return TINY.replace("n_layers=4", layers).encode()


HEAD = b"from gpt3jax.config import *\nimport dataclasses\n"
BODY = TINY.encode() + b"\nwhole = experiment\n\ndef experiment():\n    "
SOURCES = {
    "bytes that are not UTF-8": TINY.encode() + b"'caf\xe9'\n",
    "another coding": b"# -*- coding: no-such -*-\n" + TINY.encode(),
    "NUL": TINY.encode() + b"\0\n",
    "a NUL first": b"\0" + TINY.encode(),
    "a long comment": b"# " + b"x" * (5 << 20) + b"\n" + TINY.encode(),
    "brackets": b"x = " + b"(" * 100_000,
    "signs": b"x = " + b"-" * 100_000 + b"1\n",
    "a long sum": b"x = 1" + b"+1" * 100_000 + b"\n",
    "blocks": b"".join(b" " * k + b"if 1:\n" for k in range(200)),
    "a list": BODY + b"return [whole()]\n",
    "its class": BODY + b"return Experiment\n",
    "another's class": BODY + b"return whole().model\n",
    "a subclass": HEAD + BODY + b"return type('X', (Experiment,), {})(**vars(whole()))\n",
    "a generator": BODY + b"yield whole()\n",
    "an argument": BODY.replace(b"experiment():\n    ", b"experiment(x):\n    ") + b"pass\n",
    "a name that is a number": HEAD + BODY + b"return dataclasses.replace(whole(), name=3)\n",
    "a name that leads out": HEAD + BODY + b"return dataclasses.replace(whole(), name='../x')\n",
    "a seed that is no integer": HEAD + BODY + b"return dataclasses.replace(whole(), seed=1.5)\n",
    "a model that is none": HEAD + BODY + b"return dataclasses.replace(whole(), optimizer=None)\n",
    "a number of numpy": changed("n_layers=__import__('numpy').int64(4)"),
    "a large number": changed("n_layers=10**400"),
    "a huge number": changed("n_layers=10**5000"),
    "a message of megabytes": b"raise ValueError('x\\n' * 1_000_000)\n",
    "a message for terminals": b"raise ValueError('\\x1b[2J\\a\\r\\ud800')\n",
    "an error without words": b"class E(Exception):\n  def __str__(self): 1 / 0\nraise E\n",
    "an error that is nobody's": b"class E(BaseException): pass\nraise E('x')\n",
    "SystemExit": b"raise SystemExit\n",
    "SystemExit in words": BODY + b"import sys; sys.exit('no')\n",
    "GeneratorExit": b"raise GeneratorExit\n",
    "StopIteration": BODY + b"raise StopIteration\n",
    "an end": b"assert False\n",
    "recursion": BODY + b"return experiment()\n",
    "memory": b"raise MemoryError\n",
    "a group": b"raise ExceptionGroup('many', [ValueError(1), OSError(2)])\n",
}  # fmt: skip


def is_loaded_or_refused(file):
    """Whether the experiment was given; otherwise it is refused in a line that names the file."""
    try:
        found = load_experiment(file)
    except ConfigError as error:
        line = cli.one_line(error)
        assert file.name in line and "\n" not in line and len(line) <= 300, line
        assert line.isprintable()
        return False
    assert isinstance(found, Experiment)
    assert Experiment.from_json(found.to_json()) == found
    return True


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@tries(150)
@given(source=broken_source())
def test_a_broken_experiment_file_is_loaded_or_refused_in_a_line(here, source):
    file = here / "broken.py"
    file.write_bytes(source)
    with bounds(here):
        is_loaded_or_refused(file)


@pytest.mark.parametrize("name", SOURCES)
def test_a_hostile_experiment_file_is_refused_in_a_line(here, name):
    file = here / "hostile.py"
    file.write_bytes(SOURCES[name])
    with bounds(here):
        assert is_loaded_or_refused(file) == (name in ("a long comment", "a subclass"))


# The command line.

HOSTILE_WORDS = (
    "nan", "inf", "-inf", "-1", "0", "1000000000000000", "9" * 5000, "1e308", "1e-320", "1.5", "",
    " ", "None", "True", "[]", "-", "--", "x" * 5000, "\udcff", "\u202eü\U0001f600", "\x1b[2J",
    "a\nb", "[/b]", "{}", "%s", "~", "/", ".", "../../../etc/passwd", "/dev/full", "/dev/zero",
    "/dev/null/x", "/proc/self/mem", "0:1", "5:4", "0:1000000000000000", "\u0663:\u0664",
)  # fmt: skip


def flags_of(kind, prefix="--"):
    """The flags of a config dataclass, as tyro makes them."""
    for field in dataclasses.fields(kind):
        name, inner = f"{prefix}{field.name.replace('_', '-')}", NESTED.get(field.name)
        yield from flags_of(inner, f"{name}.") if inner else (name,)


NESTED = {
    field.name: getattr(config, field.name.capitalize())
    for field in dataclasses.fields(Experiment)
    if hasattr(config, field.name.capitalize())
}
OF_EXPERIMENT = (
    *(flag for flag in flags_of(Experiment) if flag != "--data.sources"),
    "--data.sources.0.path", "--data.sources.0.weight", "--data.sources.0.name", "--data.sources",
)  # fmt: skip
FLAGS = {
    "train": (
        *OF_EXPERIMENT, "--stuck-after", "--rewind-to", "--skip", "--allow-change", "--process",
        "--coordinator", "--processes",
    ),
    "plan": (*OF_EXPERIMENT, "--chips", "--budget", "--price", "--keep", "--finalists"),
    "generate": (
        "--prompt", "--prompt-file", "--new-tokens", "--samples", "--temperature", "--top-k",
        "--top-p", "--stop", "--seed", "--beams", "--step",
    ),
    "report": ("--out",),
    "verify": ("--replay",),
    "data show": ("--batch", "--batch-sequences", "--seed"),
    "data prepare": (
        "--context", "--vocabulary", "--tokenizer", "--field", "--validation-fraction",
        "--workers", "--seed", "--shard",
    ),
}  # fmt: skip
POSITIONAL = {"generate", "report", "data show"}


@st.composite
def hostile_line(draw, command):
    """Words after a command, and its file or folder: flags with and without a value, and more."""
    words = []
    for _ in range(draw(st.integers(1, 2))):
        words.append(draw(st.sampled_from((*FLAGS[command] * 3, "--no-such-flag", "stray"))))
        words += draw(st.sampled_from(HOSTILE_WORDS).map(lambda word: [word]) | st.just([]))
    return words


@pytest.fixture(scope="module")
def given_words(here, corpus, prepared):
    """Per command, the words that make it right: what is hostile comes on top."""
    experiment = Experiment(
        name="small",
        model=Model(2, 32, 4, 8, vocabulary=300, context=48, band=12),
        data=config.Data((config.Source("words", str(prepared)),)),
        schedule=config.Schedule(1e-3, warmup_tokens=10, decay_tokens=1000),
        train=Train(batch_tokens=8 * 48, tokens=9600),
    )
    (here / "small.py").write_text(
        "from gpt3jax.config import Experiment\n"
        f"def experiment():\n    return Experiment.from_json({experiment.to_json()!r})\n"
    )
    # It has neither checkpoints nor metrics, so that `generate` and `report` end there.
    identity = {**experiment.identity(), "data": data_identity(experiment)}
    files = {"experiment.json": experiment.to_json(), "identity.json": json.dumps(identity)}
    files |= {"metrics.jsonl": "", "skips.json": "[]"}
    run = write_run(here / "run", [(name, text.encode()) for name, text in files.items()]).path
    (run / "tokenizer.model").write_bytes((prepared / "tokenizer.model").read_bytes())
    prepare = ["--corpus", str(corpus), "--out", "made", "--vocabulary", "300"]
    with (here / "run/lock").open("a+") as lock:
        # Held, so that `train` refuses what it cannot find fault with.
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield {
            "train": ["small.py", "--run", "run"],
            "plan": ["small.py", "--chips", "h100:2"],
            "generate": ["run"],
            "report": ["run"],
            "verify": ["run"],
            "data show": ["run"],
            "data prepare": [*prepare, "--context", "48", "--workers", "1"],
        }


def tree(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("command", FLAGS)
def test_hostile_words_are_refused_in_a_line_at_once_and_nothing_is_made(
    command, given_words, here, capsys, monkeypatch
):
    monkeypatch.setattr("gpt3jax.runtime.memory.retain_freed_memory", lambda: None)
    monkeypatch.chdir(here)

    @tries(40, cost=10)
    @given(line=hostile_line(command))
    def check(line):
        shutil.rmtree("made", ignore_errors=True)
        before = tree(here)
        if run_line([*command.split(), *given_words[command], *line], here, capsys):
            assert tree(here) == before

    # What is imported at first use is not counted.
    run_line([*command.split(), *given_words[command]], here, capsys, seconds=60)
    check()


def run_line(words, folder, capsys, seconds=SECONDS):
    """Whether a command line is refused; it takes a line to say so, and no time."""
    with bounds(folder, seconds):
        try:
            code, by_tyro = cli.main(words), False
        except SystemExit as leaving:
            code, by_tyro = leaving.code, True
    err = capsys.readouterr().err
    assert "Traceback" not in err
    if code == 0:
        return False
    assert code == 2, err
    if not by_tyro:
        assert err.startswith("error: ") and err.count("\n") == 1 and len(err) <= 310, err
    return True


@pytest.mark.parametrize("out", ["/dev/full", "/dev/null/x", "/proc/x", "x" * 300, "small.py"])
def test_places_that_cannot_be_written_are_refused(given_words, here, capsys, monkeypatch, out):
    monkeypatch.chdir(here)
    monkeypatch.setattr("gpt3jax.runtime.memory.retain_freed_memory", lambda: None)
    # The run of another test file has metrics, so that its report comes to be written.
    run = write_run(here / "logged").path
    small, prepare = given_words["train"][0], given_words["data prepare"]
    lines = [
        ["train", small, "--run", out],
        ["report", str(run), "--out", out],
        ["data", "prepare", *prepare, "--out", out],
    ]
    for line in lines:
        before = tree(here)
        assert run_line(line, Path("/"), capsys, seconds=20)
        assert tree(here) == before


@pytest.mark.parametrize(
    "line", ["train small.py --run", "report run --out", "generate run --prompt-file"]
)
def test_a_folder_without_a_name_is_not_the_one_we_are_in(
    given_words, here, capsys, monkeypatch, line
):
    monkeypatch.chdir(here)
    assert cli.main([*line.split(), ""]) == 2
    assert f"{line.split()[-1]} is empty" in capsys.readouterr().err


def test_a_message_is_cut_once_and_keeps_its_beginning_and_its_end():
    long = ConfigError(f"what: {'x' * 1000}. Mend it")
    assert cli.one_line(long).startswith("what: xxx") and cli.one_line(long).endswith(". Mend it")
    assert len(cli.one_line(long)) <= 300 >= len(cli.one_line(OSError("y" * 1000)))
    assert cli.one_line(ConfigError("a\x1b[2J\u202eb")) == "a\ufffd[2J\ufffdb"


def test_a_file_that_was_just_changed_is_not_taken_for_what_it_was(here, monkeypatch):
    """Within a second, and to the same length: as a sweep may write them."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = here / "again.py"
    for seed in (1, 2):
        file.write_text(TINY.replace('name="tiny"', f'seed={seed}, name="tiny"'))
        os.utime(file, (1e9, 1e9))
        assert load_experiment(file).seed == seed


def test_a_line_is_named_however_the_file_is(here, monkeypatch):
    monkeypatch.chdir(here)
    Path("wrong.py").write_text("x = 1\n\nraise ValueError('no')\n")
    with pytest.raises(ConfigError, match=r"^wrong\.py:3: ValueError: no"):
        load_experiment("wrong.py")
    Path("wrong.py").write_text(TINY.replace("n_layers=4", "n_layers=0"))
    with pytest.raises(ConfigError, match=r"^wrong\.py:\d+: --model.n-layers is 0"):
        load_experiment("wrong.py")


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1])
def test_every_seed_that_is_taken_writes(prepared, seed):
    model = Model(1, 8, 1, 8, vocabulary=300, context=16)
    tokenizer = Tokenizer.load(prepared / "tokenizer.model")
    generator = Generator(randomised(model), model, tokenizer)
    assert len(list(generator.tokens([2], new_tokens=1, seed=seed))) == 1


@tries(200)
@given(
    full=st.integers(1, 30), size=st.integers(1, 3), start=st.integers(1, 5000),
    ramp=st.integers(0, 20_000), batch=st.integers(0, 300),
)  # fmt: skip
def test_a_batch_is_found_at_once_where_walking_leads(full, size, start, ramp, batch):
    experiment = ramped(full, size, start, ramp)
    walked = 0
    for _ in range(batch):
        walked += batch_windows(8 * walked, experiment)
    assert sequences_after(batch, experiment) == walked


def test_a_ramp_that_nobody_could_walk_takes_no_time(here):
    experiment = ramped(full=1000, size=1, start=1, ramp=10**13)
    with bounds(here, SECONDS):
        assert sequences_after(10**12, experiment) > 10**12
        assert total_tokens(experiment) == experiment.train.tokens


def ramped(full, size, start, ramp):
    """An experiment whose batch grows to `full` microbatches of `size` windows of 8 tokens."""
    train = Train(
        batch_tokens=8 * size * full, microbatch=size, ramp_from_tokens=start, ramp_tokens=ramp,
        tokens=10**12, steps=10**15,
    )  # fmt: skip
    model = Model(1, 8, 1, 8, vocabulary=300, context=8)
    data, rates = config.Data((config.Source("a", "a"),)), config.Schedule(1e-3, 1, 10)
    return Experiment("ramped", model, data, rates, train)
