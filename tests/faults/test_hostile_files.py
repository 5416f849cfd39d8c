"""Files of a run, of data and of checkpoints that are broken or made to harm: refused in a line."""

import dataclasses
import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import HUGE, as_bytes, bounds, broken_bytes, broken_value, refused, tries

from gpt3jax.checkpoint import manifest
from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.config import Data, Experiment, Model, Schedule, Source, Train
from gpt3jax.data.manifest import load_manifest, verify
from gpt3jax.errors import ConfigError
from gpt3jax.report.compare import write_report
from gpt3jax.run_dir import Run, Skip
from gpt3jax.serde import short_hash
from gpt3jax.train.metrics import cut_after
from gpt3jax.train.monitor import event_log, phase_timer
from gpt3jax.train.monitor.goodput import goodput
from gpt3jax.train.run_setup import identities, run_lock

EXPERIMENT = Experiment(
    name="small",
    model=Model(n_layers=2, d_model=32, n_heads=4, d_head=8, vocabulary=300, context=48),
    data=Data((Source("words", "data/words"), Source("more", "data/more", 0.5))),
    schedule=Schedule(1e-3, warmup_tokens=10, decay_tokens=1000),
    train=Train(batch_tokens=96, tokens=960),
)
IDENTITY = {**EXPERIMENT.identity(), "data": {"tokenizer": "0" * 16, "sources": [], "seed": 0}}
CLOCK = {"began": 100.0, "until": 180.0, "step": 10, "seconds": {"step": 60.5, "compile": 8.5}}
EVENTS = [
    {"event": "start", "time": 1.0, "step": 0, "device": "cpu", "gpt3jax": "0.1.0", "commit": "a"},
    {"event": "change", "time": 2.0, "before": "0" * 16, "what": ["seed was 0, now 1"]},
    {"event": "save", "time": 3.0, "step": 4, "state": "0" * 16, "seconds": 0.5},
    {"event": "clock", "time": 4.0, **CLOCK, "killed": False},
]
RECORDS = [{"step": 0, "tokens": 0, "val_loss": 5.7, "val_bits_per_byte": 4.0}] + [
    {"step": k, "tokens": 96 * k, "loss": 5.0 / k, "grad_norm": 1.0, "learning_rate": 1e-3,
     "batch_tokens": 96, "tokens_per_s": 9.5, "mfu": 0.1, "seconds": 1.0 * k}
    for k in range(1, 5)
]  # fmt: skip


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


FILES = {
    "experiment.json": EXPERIMENT.to_json(),
    "identity.json": json.dumps(IDENTITY, indent=2) + "\n",
    "skips.json": json.dumps([dataclasses.asdict(Skip(4, 8, 16))]) + "\n",
    "clock.json": json.dumps({**CLOCK, "began": 200.0, "until": 290.0}),
    "ledger.jsonl": lines(EVENTS),
    "metrics.jsonl": lines(RECORDS),
}


@st.composite
def broken_file(draw, name):
    """The bytes of one of FILES, changed as bytes or as JSON."""
    if draw(st.booleans()):
        return draw(broken_bytes(FILES[name].encode()))
    if name.endswith(".json"):
        return as_bytes(draw(broken_value(json.loads(FILES[name]))))
    rows = [json.loads(line) for line in FILES[name].splitlines()]
    at = draw(st.integers(0, len(rows) - 1))
    broken = draw(broken_value(rows[at]))
    return b"\n".join(as_bytes(row) for row in [*rows[:at], broken, *rows[at + 1 :]]) + b"\n"


broken_files = st.sampled_from(sorted(FILES)).flatmap(
    lambda name: st.tuples(st.just(name), broken_file(name))
)


def write_run(folder, changes=()):
    """The folder as it was left by training, but for the files in `changes`."""
    folder.mkdir(exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_bytes(dict(changes).get(name, text.encode()))
    return Run(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile") / "run"


@tries(300)
@given(broken=broken_files)
def test_a_run_with_a_broken_file_is_read_or_refused_in_a_line(folder, broken):
    run = write_run(folder, [broken])
    with bounds(folder):
        for work in (*readers(run), *writers(run), *readers(run)):
            refused(work)


def writers(run):
    """What a resume does to these files."""
    return lambda: phase_timer.close_interrupted_session(run), lambda: cut_after(
        run.metrics_file, 2
    )


def readers(run):
    """All that is read of a run without jax."""

    def experiment():
        found = run.experiment()
        assert Experiment.from_json(found.to_json()) == found

    def time():
        spent = goodput(run)
        assert spent is None or all(0 <= share <= 1 for share in spent.shares().values())

    return (
        experiment, run.identity, run.skips, run.metrics, time,
        lambda: event_log.read(run.ledger_file), lambda: identities(run),
    )  # fmt: skip


def at(record, path):
    """What lies in nested JSON, by its dotted path."""
    for key in filter(None, path.split(".")):
        record = record[int(key) if key.isdecimal() else key]
    return record


GROUPS = ("", "model", "schedule", "train", "optimizer", "mesh", "evaluate", "data.sources.1")
FIELDS = [
    f"{group}.{name}".lstrip(".")
    for group in GROUPS
    for name in at(json.loads(FILES["experiment.json"]), group)
]


@pytest.mark.parametrize("path", FIELDS)
def test_each_field_of_an_experiment_is_of_its_type(path):
    record = json.loads(FILES["experiment.json"])
    group, _, name = path.rpartition(".")
    for value in ([1], {"a": 1}, 10**400, 1j):
        if path == "evaluate.shots" and value == [1]:
            continue  # It is one.
        at(record, group)[name] = HUGE if value == 1j else value
        with pytest.raises(ConfigError, match=name.replace("_", "[-_]")):
            Experiment.from_json(as_bytes(record).decode())


def test_a_field_that_is_not_known_names_the_nearest():
    text = FILES["experiment.json"].replace('"n_layers"', '"n_layer"')
    with pytest.raises(ConfigError, match="model.n_layer is not known; model.n_layers is"):
        Experiment.from_json(text)


@tries(15, cost=100)
@given(broken=broken_files)
def test_a_report_of_a_broken_run_is_drawn_or_refused_in_a_line(folder, broken, quick_figures):
    run = write_run(folder, [broken])
    with bounds(folder):
        refused(lambda: write_report([run.path]))


@pytest.fixture(scope="module")
def quick_figures():
    from gpt3jax.report import page

    old = dict(page.STYLE)
    page.STYLE |= {"savefig.dpi": 20, "figure.constrained_layout.use": False}
    yield
    page.STYLE |= old


@st.composite
def broken_manifest(draw, whole, sealed):
    """A manifest's bytes, changed; half of those changed as JSON have a hash that agrees."""
    if draw(st.integers(0, 3)) == 0:
        return draw(broken_bytes(whole))
    record = draw(broken_value(json.loads(whole)))
    if isinstance(record, dict) and draw(st.booleans()):
        record = sealed(record)
    return as_bytes(record)


def sealed_data(record):
    try:
        shards = [
            [shard["name"], shard["windows"], shard["sha256"]]
            for split in ("train", "validation")
            for shard in record[split]["shards"]
        ]
        names = ("version", "tokenizer", "context", "dtype")
        return record | {"hash": short_hash([*(record[name] for name in names), shards])}
    except (KeyError, TypeError):
        return record


def sealed_checkpoint(record):
    record.pop("hash", None)
    return record | {"hash": short_hash(record)}


@tries(150)
@given(draw=st.data())
def test_a_broken_data_manifest_is_read_or_refused_in_a_line(folder, prepared, draw):
    data = folder.parent / "data"
    if not data.exists():
        shutil.copytree(prepared, data)
    whole = (prepared / "manifest.json").read_bytes()
    (data / "manifest.json").write_bytes(draw.draw(broken_manifest(whole, sealed_data)))

    def windows():
        from gpt3jax.data.loader import held_out, windows

        found = Data((Source("words", str(data)),))
        windows(found, 0, 48)[0]
        held_out(found, 2, 48)

    with bounds(data):
        for read in (lambda: load_manifest(data), lambda: verify(data), windows):
            refused(read)


def make_checkpoint(folder):
    """A sealed folder like one that Orbax has written."""
    for name in ("params/kernel/c/0/0", "params/kernel/zarr.json", "_METADATA"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name * 9)
    leaves = {"params/kernel": manifest.Leaf((4, 2), "float32", "0" * 16)}
    manifest.CheckpointManifest(
        4, 8, (Skip(1, 2, 3),), "0" * 16, {"gpt3jax": "0.1.0"}, leaves
    ).write(folder)
    return folder


@tries(300)
@given(draw=st.data())
def test_a_broken_checkpoint_manifest_is_read_or_refused_in_a_line(folder, draw):
    checkpoint = make_checkpoint(folder.parent / "4")
    whole = (checkpoint / manifest.MANIFEST_FILE).read_bytes()
    broken = draw.draw(broken_manifest(whole, sealed_checkpoint))
    (checkpoint / manifest.MANIFEST_FILE).write_bytes(broken)

    def read():
        found = manifest.read_manifest(checkpoint)
        manifest.check_files(checkpoint, found)
        assert found.state and found.step >= 0 and found.sequences >= 0

    with bounds(checkpoint):
        refused(read)


def link_to(target):
    return lambda path: path.symlink_to(target)


SPECIAL = {
    "zeros": link_to("/dev/zero"),
    "a full disk": link_to("/dev/full"),
    "a loop": lambda path: path.symlink_to(path.name),
    "a link to nothing": link_to("nowhere"),
    "a FIFO": os.mkfifo,
    "a folder": lambda path: path.mkdir(),
    "a file outside": lambda path: path.symlink_to(os.environ["CANARY"]),
    "an endless file": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}


SONG = "_METADATA" * 9
"""What a file of a checkpoint holds, too: only where it lies tells them apart."""


@pytest.fixture
def canary(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    (tmp_path / "canary").write_text(SONG)
    yield
    assert (tmp_path / "canary").read_text() == SONG


@pytest.mark.usefixtures("canary")
@pytest.mark.parametrize("name", [*FILES, "lock", "tokenizer.model"])
@pytest.mark.parametrize("special", SPECIAL)
def test_what_is_no_file_of_a_run_is_neither_waited_for_nor_written_to(tmp_path, name, special):
    run = write_run(tmp_path / "run")
    (run.path / name).unlink(missing_ok=True)
    SPECIAL[special](run.path / name)

    def lock():
        with run_lock(run):
            pass

    with bounds(run.path):
        for read in readers(run):
            refused(read)
        if not refused(lock):
            assert special in ("a folder", "an endless file")
            for write in writers(run):
                refused(write)


@pytest.mark.usefixtures("canary")
@pytest.mark.parametrize("name", ["report/index.html", "report/loss.png", "samples/0.txt"])
@pytest.mark.parametrize("special", ["zeros", "a FIFO", "a file outside"])
def test_a_report_is_not_written_through_a_link_nor_shows_what_one_leads_to(
    tmp_path, name, special
):
    run = write_run(tmp_path / "run")
    (run.path / name).parent.mkdir()
    SPECIAL[special](run.path / name)
    with bounds(run.path):
        assert refused(lambda: write_report([run.path]))


@pytest.mark.usefixtures("canary")
@pytest.mark.parametrize("name", ["manifest.json", "_METADATA", "params/kernel/c/0/0"])
@pytest.mark.parametrize("special", SPECIAL)
def test_what_is_no_file_of_a_checkpoint_is_damage(tmp_path, name, special):
    checkpoint = make_checkpoint(tmp_path / "4")
    (checkpoint / name).unlink()
    SPECIAL[special](checkpoint / name)
    with bounds(checkpoint):
        assert refused(lambda: Checkpointer(tmp_path).manifest(4)), "it was taken for whole"


@pytest.mark.usefixtures("canary")
@pytest.mark.parametrize(
    "name",
    [
        "../canary",
        "params/../../canary",
        "params/../_METADATA",
        "./_METADATA",
        "/dev/zero",
        "",
        ".",
        "a\0b",
        "\ud800",
        "x" * 9999,
    ],
)
def test_names_in_a_checkpoint_manifest_lead_nowhere_else(tmp_path, name):
    checkpoint = make_checkpoint(tmp_path / "4")
    whole = manifest.read_manifest(checkpoint)
    true = {name: whole.files["_METADATA"]}
    wrong = dataclasses.replace(whole, files=whole.files | true)
    with bounds(checkpoint):
        assert refused(lambda: manifest.check_files(checkpoint, wrong))


def test_a_manifest_of_many_names_takes_no_long_time(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "4")
    (checkpoint / manifest.MANIFEST_FILE).unlink()
    whole = manifest.CheckpointManifest(4, 8, (), "0" * 16, {}, {})
    names = [f"params/{number}" for number in range(60_000)]
    record = json.loads(json.dumps(dataclasses.asdict(whole) | {"state": whole.state}))
    record["files"] = {name: {"bytes": 171, "sha256": "0" * 64} for name in names}
    (checkpoint / manifest.MANIFEST_FILE).write_bytes(as_bytes(sealed_checkpoint(record)))
    with bounds(checkpoint):
        found = manifest.read_manifest(checkpoint)
        assert len(found.files) == len(names)
        assert refused(lambda: manifest.check_files(checkpoint, found))
