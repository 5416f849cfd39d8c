"""Each check of a run is seen to fail, where it can be by a real fault; the command as a whole."""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from building import changed

from gpt3jax import cli
from gpt3jax.config import Mesh
from gpt3jax.data.manifest import load_manifest
from gpt3jax.doctor import diagnose, machine
from gpt3jax.doctor.diagnose import attempt, examine
from gpt3jax.model.param_specs import param_specs, spec_leaves
from gpt3jax.run_dir import Run
from gpt3jax.runtime.chips import CHIPS, GiB
from gpt3jax.train.monitor import event_log
from gpt3jax.user_code import load_experiment

ROOT = Path(__file__).parents[1]
HOUR = 3600


def found(check, *given):
    """(status, finding, cure), as a command would print them."""
    made = attempt(check, *given)
    assert made.name == check.__name__.replace("_", " ")
    assert (made.status == "ok") == (not made.cure)
    assert len(made.finding) + len(made.cure) <= 174
    return made.status, made.finding, made.cure


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in machine.MANAGED:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "runs" / "test")


@pytest.fixture
def spread(experiment):
    """The experiment on all the devices there are."""
    return dataclasses.replace(experiment, mesh=Mesh())


def of_size(size, **changes):
    return dataclasses.replace(load_experiment(f"experiments/gpt3_{size}.py"), **changes)


def test_all_checks_pass_here_and_leave_no_files(spread, run, tmp_path):
    checks = examine(spread, run)
    assert {check.status for check in checks} <= {"ok", "warning"}, checks
    names = [check.name for check in checks]
    assert names == [
        "python", "packages", "pairings", "open files", "compiled programs", "hosts",
        "devices", "products", "clock", "write access", "lock", "disk", "data", "memory",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_without_an_experiment_its_checks_are_skipped(run):
    names = {check.name for check in examine(None, run)}
    assert names.isdisjoint({"disk", "data", "memory"}) and "write access" in names


def test_without_devices_their_checks_are_skipped(spread, run, monkeypatch):
    def fail():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    checks = {check.name: check for check in examine(spread, run)}
    assert {"products", "memory"}.isdisjoint(checks) and "data" in checks
    assert checks["devices"].status == "failure"
    assert checks["devices"].finding == "jax finds none with JAX_PLATFORMS=cuda: AssertionError"
    assert checks["devices"].cure == "unset JAX_PLATFORMS"


def test_an_exception_in_a_check_is_a_failure(run, monkeypatch):
    def clock(_):
        raise RuntimeError("x " * 300)

    monkeypatch.setattr(diagnose, "clock", clock)
    checks = {check.name: check for check in examine(None, run)}
    assert checks["clock"].status == "failure"
    assert checks["clock"].finding.startswith("RuntimeError: x x") and checks["clock"].cure
    assert len(checks["clock"].finding) < 200
    assert checks["lock"].status == "ok", "the others are still made"


def test_a_package_from_the_future_fails_the_clock(run, tmp_path, monkeypatch):
    file = tmp_path / "package.py"
    file.touch()
    monkeypatch.setattr(diagnose, "PACKAGE", tmp_path)
    assert found(diagnose.clock, run)[0] == "ok"
    os.utime(file, (time.time() + HOUR,) * 2)
    status, finding, cure = found(diagnose.clock, run)
    assert status == "failure" and "the clock is behind" in finding and cure.startswith("sudo ")


def test_a_ledger_from_the_future_is_a_warning(run):
    run.path.mkdir(parents=True)
    event_log.record(run.ledger_file, "start", step=0)
    assert found(diagnose.clock, run)[0] == "ok"
    with run.ledger_file.open("a") as file:
        file.write(json.dumps({"event": "save", "time": time.time() + HOUR}) + '\n{"event": "sa')
    status, finding, _ = found(diagnose.clock, run)
    assert status == "warning" and "the run's last event" in finding


def test_a_folder_that_is_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    status, finding, cure = found(diagnose.write_access, Run(tmp_path / "file" / "run"))
    assert status == "failure" and "file cannot be written: Not a directory" in finding
    assert "--run" in cure


def test_a_folder_of_another_user_cannot_be_written():
    """By a process that is nobody, where the tests run as root, whom nothing stops."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom gpt3jax.run_dir import Run\n"
        "from gpt3jax.doctor import diagnose\n"
        "if os.getuid() == 0:\n    os.setuid(65534)\n"
        "made = diagnose.attempt(diagnose.write_access, Run(Path(sys.argv[1], 'new')))\n"
        "print(made.status, made.finding, made.cure, sep='|')\n"
    )
    with tempfile.TemporaryDirectory() as closed:  # Not tmp_path, which only its owner enters.
        os.chmod(closed, 0o555)
        done = subprocess.run(
            [sys.executable, "-c", script, closed],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    status, finding, cure = done.stdout.strip().split("|")
    assert (status, finding) == ("failure", f"{closed} cannot be written: Permission denied")
    assert cure == f"sudo install -d -o $(id -un) {closed}/new"


def test_a_file_system_without_locks_is_rejected_and_left_clean(run, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    status, finding, _ = found(diagnose.write_access, run)
    assert status == "failure" and "No locks available" in finding
    assert list(tmp_path.iterdir()) == []


def test_a_run_locked_by_another_process_is_a_warning(run):
    run.path.mkdir(parents=True)
    run.lock_file.write_text("123")
    assert found(diagnose.lock, run) == ("ok", "free", "")
    script = (
        "import sys\nfrom pathlib import Path\nfrom gpt3jax.run_dir import Run\n"
        "from gpt3jax.train.run_setup import run_lock\n"
        f"with run_lock(Run(Path({str(run.path)!r}))):\n    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        status, finding, cure = found(diagnose.lock, run)
        number = run.lock_file.read_text()
        holder.stdin.close()
    assert number.split()[0] == str(holder.pid), "the file is as it was"
    assert status == "warning" and f"trained by process {number}" in finding
    assert cure == f"Wait for it, or make it save and exit: kill {holder.pid}"
    assert found(diagnose.lock, run)[0] == "ok", "the kernel has freed it"


@pytest.mark.parametrize(
    ("holder", "cure"),
    [
        ("12 of no-such-host since 2026-11-23 07:32:41", ": ssh no-such-host kill 12"),
        ("12", ": kill 12"),
        ("", "Wait for it"),
    ],
)
def test_a_lock_holder_on_another_host_is_killed_over_ssh(run, holder, cure):
    run.path.mkdir(parents=True)
    run.lock_file.write_text(holder)
    with run.lock_file.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        made = found(diagnose.lock, run)
    assert made[0] == "warning" and made[2].endswith(cure)


def test_checkpoints_larger_than_any_disk_are_rejected(run):
    status, finding, cure = found(diagnose.disk, of_size("175b"), run)
    assert status == "failure" and finding.startswith("3 + 1 checkpoints of 2.2 TB need 8.8 TB, ")
    assert "--run" in cure and "--train.keep" not in cure, "one would be too many"


def test_a_full_disk_fails_and_existing_checkpoints_count(experiment, run, monkeypatch):
    elements = sum(
        jax.numpy.zeros(spec.shape).size for spec in spec_leaves(param_specs(experiment.model))
    )
    each = 12 * 1.05 * elements
    usage = shutil.disk_usage(run.path.parents[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(3 * each)))
    status, _, cure = found(diagnose.disk, experiment, run)
    assert status == "failure" and cure.endswith("--train.keep 1"), "keep is 3: four are needed"
    for step in ("100", "200"):
        (run.checkpoints / step / "part").mkdir(parents=True)
        (run.checkpoints / step / "part" / "data").write_bytes(b"x" * int(each))
    assert found(diagnose.disk, experiment, run)[0] == "ok"
    (run.checkpoints / "200").rename(run.checkpoints / "200.stray")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(2.9 * each)))
    assert found(diagnose.disk, experiment, run)[0] == "failure", (
        "what nobody prunes does not count"
    )


def test_a_file_system_without_free_inodes_fails(experiment, run, monkeypatch):
    told = os.statvfs("/")
    system = SimpleNamespace(f_bavail=told.f_bavail, f_frsize=told.f_frsize, f_blocks=told.f_blocks)
    system.f_bfree, system.f_files, system.f_favail = told.f_bfree, 10_000, 30
    monkeypatch.setattr(os, "statvfs", lambda _: system)
    status, finding, _ = found(diagnose.disk, experiment, run)
    assert status == "failure" and "takes only 30 more files" in finding
    system.f_files = system.f_favail = 0
    assert found(diagnose.disk, experiment, run)[0] == "ok", "not told is not none"


def test_a_model_too_large_for_this_machine_is_rejected():
    status, finding, cure = found(diagnose.memory, of_size("175b"))
    assert status == "failure" and finding.startswith("by estimate a step takes ")
    assert cure == "More devices: gpt3jax plan experiments/gpt3_175b.py --chips KIND:COUNT"


def machine_with(monkeypatch, size):
    monkeypatch.setattr(diagnose, "_memory_limit", lambda local: (size, "free per device"))


def test_flags_that_make_a_model_fit_are_suggested(spread, monkeypatch):
    alone = dataclasses.replace(spread, mesh=Mesh(fsdp=8))
    need = diagnose._estimate(alone, *there(8)).peak_bytes
    machine_with(monkeypatch, diagnose.CPU_FACTOR * need)
    assert found(diagnose.memory, alone)[0] == "ok"
    machine_with(monkeypatch, need)
    status, finding, cure = found(diagnose.memory, alone)
    assert status == "warning" and "a CPU may take 5 times that" in finding
    assert cure == "If it fails: --train.microbatch 4"
    machine_with(monkeypatch, 0.95 * need)
    status, _, cure = found(diagnose.memory, alone)
    assert status == "failure" and cure.startswith("Add --mesh.data ")
    flags = dict(zip(cure.split()[1::2], cure.split()[2::2], strict=True))
    mesh = Mesh(*(int(flags[f"--mesh.{axis}"]) for axis in ("data", "fsdp", "tensor")))
    mended = dataclasses.replace(
        alone,
        mesh=mesh,
        model=dataclasses.replace(alone.model, remat=flags["--model.remat"]),
        train=dataclasses.replace(alone.train, microbatch=int(flags["--train.microbatch"])),
    )
    assert found(diagnose.memory, mended)[0] == "warning", "the flags do what they say"


def there(devices):
    return diagnose.Slice(diagnose.UNKNOWN, (devices,)), "cpu"


def test_accelerators_use_their_reported_memory_limit(spread, monkeypatch):
    need = diagnose._estimate(spread, *there(8)).peak_bytes

    class Card:
        device_kind, platform, limit = "NVIDIA H100 80GB HBM3", "gpu", 0.0

        def memory_stats(self):
            return {"bytes_limit": Card.limit}

    monkeypatch.setattr(jax, "devices", lambda: [Card()] * 8)
    monkeypatch.setattr(jax, "local_devices", lambda: [Card()] * 8)
    for limit, status in ((1.1, "ok"), (1.05, "warning"), (0.99, "failure")):
        Card.limit = limit * need
        assert found(diagnose.memory, spread)[0] == status, limit
    monkeypatch.setattr(Card, "memory_stats", lambda self: None)
    said = f"of {CHIPS['h100'].hbm / GiB:.2f} GiB per device"
    assert found(diagnose.memory, spread)[1].endswith(said), "else what is known of the chip"


def test_an_illegal_mesh_fails_except_on_one_host_of_several(experiment, monkeypatch):
    status, finding, cure = found(diagnose.memory, experiment)
    assert status == "failure" and "Add --mesh.data " in cure
    assert "the product of the axes must be that" in finding
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    status, finding, _ = found(diagnose.memory, experiment)
    assert status == "warning" and finding.startswith("alone on this host, mesh")


def test_an_indivisible_batch_is_rejected_with_alternatives(spread):
    some = dataclasses.replace(spread.train, microbatch=4)
    status, finding, cure = found(diagnose.memory, dataclasses.replace(spread, train=some))
    assert status == "failure" and "--train.microbatch is 4" in finding and "Add --mesh" in cure
    odd = dataclasses.replace(spread.train, batch_tokens=7 * 48)
    status, finding, cure = found(diagnose.memory, dataclasses.replace(spread, train=odd))
    assert status == "failure" and finding.endswith("that work are 2, 4, 7")
    assert cure == "Use one of them, or change --train.batch-tokens"


def test_cpu_devices_share_the_memory_of_the_machine():
    available, whose = diagnose._memory_limit(jax.local_devices())
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**27 < 8 * available <= total and whose == "free per device"


def test_missing_incomplete_or_incompatible_data_is_rejected(experiment, prepared, tmp_path):
    copy = tmp_path / "copy"
    source = dataclasses.replace(experiment.data.sources[0], path=str(copy))
    at_copy = changed(experiment, data={"sources": (source,)})
    status, finding, cure = found(diagnose.data, at_copy, Run(tmp_path))
    assert status == "failure" and finding == "words does not exist"
    assert cure.startswith("gpt3jax data prepare --corpus FILES --out ")
    assert cure.endswith("/copy --context 48 --vocabulary 300")
    shutil.copytree(prepared, copy)
    assert found(diagnose.data, at_copy, Run(tmp_path))[0] == "ok"

    small = dataclasses.replace(at_copy.model, vocabulary=256)
    smaller = dataclasses.replace(at_copy, model=small)
    status, finding, _ = found(diagnose.data, smaller, Run(tmp_path))
    assert status == "failure" and "--model.vocabulary is 256" in finding
    long = dataclasses.replace(at_copy.model, context=96)
    status, _, cure = found(diagnose.data, dataclasses.replace(at_copy, model=long), Run(tmp_path))
    assert status == "failure" and "--context 96" in cure

    shard = copy / load_manifest(str(copy)).train.shards[0].name
    shard.write_bytes(shard.read_bytes()[:-1])
    status, finding, cure = found(diagnose.data, at_copy, Run(tmp_path))
    assert status == "failure" and finding.endswith("or truncated")
    assert cure.startswith("Restore it, or gpt3jax data prepare")


def gpt3jax(*words, cwd):
    """The command in a process of its own, on one CPU device."""
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "gpt3jax", "doctor", *map(str, words)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_command_prints_json_and_exits_0_or_1(experiment, tmp_path):
    (tmp_path / "saved.json").write_text(experiment.to_json())
    (file := tmp_path / "mine.py").write_text(
        "from pathlib import Path\nfrom gpt3jax.config import Experiment\ndef experiment():\n"
        "    text = Path(__file__).with_name('saved.json').read_text()\n"
        "    return Experiment.from_json(text)\n"
    )
    done = gpt3jax(file, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads(done.stdout)
    assert len(checks) == 14
    assert all(set(check) == {"name", "status", "finding", "cure"} for check in checks)

    done = gpt3jax(file, "--data.sources.0.path", "nowhere", cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 15 and max(map(len, lines)) < 200
    line = next(line for line in lines if line.startswith("failure"))
    assert line.split()[1] == "data" and "gpt3jax data prepare" in line
    assert lines[-1].endswith("failure 1")


def test_only_doctor_may_omit_the_experiment_file(capsys):
    assert cli.parse("doctor", ["--run", "there"]) == {"run": Path("there"), "json": False}
    parsed = cli.parse("doctor", [str(ROOT / "experiments/tiny.py"), "--train.keep", "7"])
    assert parsed["experiment"].train.keep == 7
    for words in (["doctor", "README.md"], ["doctor", "--train.keep", "7"]):
        with pytest.raises(SystemExit, match="^2$"):
            cli.main(words)
    capsys.readouterr()


def test_help_needs_neither_jax_nor_a_file():
    script = (
        "import sys\nfrom gpt3jax.cli import main\n"
        "try:\n    main(['doctor', '--help'])\n"
        "except SystemExit as leaving:\n    assert leaving.code == 0\n"
        "assert not {'jax', 'grain'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: gpt3jax doctor [FILE.py]")
