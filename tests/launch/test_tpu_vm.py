"""launch/tpu_vm.py: what it asks gcloud for, and what it makes of the answers."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from fake_gcloud import FakeGcloud, make_repository, one_error, queued, refused, says, state

sys.path.insert(0, str(Path(__file__).parents[2] / "launch"))

import tpu_vm  # noqa: E402
import tpu_vm_plan  # noqa: E402

HERE = "--name gpt --zone us-east5-b"
TPU = f"{HERE} --accelerator-type v6e-16 --runtime-version v2-alpha-tpuv6e"
TRAIN = "experiments/tiny.py --run /mnt/shared/runs/tiny --train.steps 5"
UP = f"{TPU} {TRAIN}"
SSH = ["--ssh-flag=-oServerAliveInterval=15", "--ssh-flag=-oConnectTimeout=30"]
QUOTA = "Quota limit 'TPUV6EPreemptiblePerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0"
FRESH = ["create", "describe", "scp", "install", "start", "log", "states"]
EXISTS = refused("create", "ALREADY_EXISTS: Resource 'gpt' already exists")
AGAIN = ["create", "describe", "states", "stop", *FRESH[2:]]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def fake(tmp_path, repository, monkeypatch):
    """The fake, first on PATH; the repository is the current folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tpu_vm_plan, "ROOT", repository)
    monkeypatch.chdir(repository)
    made = FakeGcloud(tmp_path / "fake", monkeypatch)
    yield made
    made.end_training()


@pytest.fixture
def tpu(capsys):
    """Run a command line in this process: exit code, stdout, stderr."""

    def run(command, line=""):
        try:
            code = tpu_vm.main([command, "--poll-seconds", "0.01", *shlex.split(line)])
        except SystemExit as leaving:
            code = leaving.code
        return code, *capsys.readouterr()

    return run


# What is asked for.


def test_create_requests_one_node_then_waits(fake, tpu):
    assert tpu("create", TPU)[0] == 0
    queue = ["gcloud", "compute", "tpus", "queued-resources"]
    assert fake.calls() == [
        [*queue, "create", "gpt", "--node-id=gpt", "--accelerator-type=v6e-16",
         "--runtime-version=v2-alpha-tpuv6e", "--zone=us-east5-b", "--quiet"],
        [*queue, "describe", "gpt", "--format=json", "--zone=us-east5-b", "--quiet"],
    ]  # fmt: skip


def test_create_requests_all_slices_at_once(fake, tpu):
    tpu("create", f"{TPU} --slices 3 --spot --project lab")
    assert fake.calls()[0] == [
        "gcloud", "compute", "tpus", "queued-resources", "create", "gpt", "--node-count=3",
        "--node-prefix=gpt", "--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e",
        "--spot", "--zone=us-east5-b", "--project=lab", "--quiet",
    ]  # fmt: skip


def test_delete_also_deletes_the_nodes(fake, tpu):
    assert tpu("delete", HERE)[0] == 0
    end = ["delete", "gpt", "--force", "--zone=us-east5-b", "--quiet"]
    assert fake.calls() == [["gcloud", "compute", "tpus", "queued-resources", *end]]


def test_setup_and_run_reach_every_worker_of_every_slice(fake, tpu, tmp_path, repository):
    fake.installs()
    assert tpu("setup", f"{HERE} --slices 2")[0] == 0
    says(tpu("run", f"{HERE} --slices 2 {TRAIN}"), "gpt-0-w-0: training started", "gpt-1-w-1")
    bundle = f"{tmp_path}/.cache/gpt3jax/gpt.bundle"
    words = {"scp": [bundle, "{}:gpt3jax.bundle", "--worker=all"]}
    words["ssh"] = ["{}", "--worker=all", *SSH]
    expected = [
        ["gcloud", "compute", "tpus", "tpu-vm", verb, *words[verb], "--zone=us-east5-b", "--quiet"]
        for verb in ("scp", "ssh", "ssh")
    ]
    calls = [
        [word for word in call if "--command" not in word]
        for call in fake.calls() if call[0] == "gcloud"
    ]  # fmt: skip
    for step, template in enumerate(expected):
        both = [[word.format(node) for word in template] for node in ("gpt-0", "gpt-1")]
        assert sorted(calls[2 * step : 2 * step + 2]) == both
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=repository)
    for worker in ("gpt-0-w-0", "gpt-0-w-1", "gpt-1-w-0", "gpt-1-w-1"):
        code = fake.folder / "homes" / worker / "gpt3jax"
        assert subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=code) == commit
        assert fake.starts(worker) == [f"train {TRAIN}"]


@pytest.mark.parametrize("command", [*tpu_vm_plan.SUMMARY, "up --slices 2"])
def test_a_dry_run_only_prints_the_commands_of_a_run(fake, tpu, command):
    command, *slices = command.split(" ", 1)
    before = " ".join([TPU if command in ("create", "up") else HERE, *slices])
    after = TRAIN if command in ("run", "up") else ""
    code, out, err = tpu(command, f"{before} --dry-run {after}")
    assert (code, err, fake.calls()) == (0, "", [])
    planned = [shlex.split(line) for line in out.splitlines()]
    assert tpu(command, f"{before} {after}")[0] == 0
    calls = fake.calls()
    assert sorted(calls) == sorted(planned)
    if not slices:
        assert calls == planned


def gcloud_help(words):
    done = subprocess.run(["gcloud", *words, "--help"], capture_output=True, text=True, timeout=60)
    return words, done.stdout if done.returncode == 0 else ""


def test_gcloud_has_every_flag_that_is_used(tmp_path, monkeypatch):
    if not shutil.which("gcloud"):
        pytest.skip("gcloud is not installed: its flags go unchecked")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.chdir(Path(__file__).parents[2])
    one = tpu_vm_plan.parse(["up", *f"{TPU} --spot --project lab {TRAIN}".split()])
    steps = [*tpu_vm_plan.steps(one), *tpu_vm_plan.steps(replace(one, slices=2))]
    steps += [[tpu_vm_plan.delete_command(one), tpu_vm_plan.describe_command(one, "gpt")]]
    used = {}
    for program, *words in (command for step in steps for command in step):
        if program == "gcloud":
            flags = {word.split("=")[0] for word in words if word.startswith("--")}
            used.setdefault(tuple(words[:4]), set()).update(flags)
    assert len(used) == 6
    with ThreadPoolExecutor(2) as pool:
        for words, text in pool.map(gcloud_help, used):
            if not text:
                pytest.skip(f"this gcloud shows no help of {words}: its flags go unchecked")
            known = set(re.findall(r"--[a-z][a-z-]*", re.sub(r"\x1b\[\S*?m", "", text)))
            assert used[words] <= known, words


# Waiting for the TPU.


def test_each_state_is_printed_once(fake, tpu):
    waiting = queued("WAITING_FOR_RESOURCES")
    fake.answers(waiting, waiting, queued("PROVISIONING"), queued("ACTIVE"))
    code, _, err = tpu("create", TPU)
    said = [line.split(" ", 2)[2] for line in err.splitlines()]
    states = ["requested", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert (code, said) == (0, [f"gpt: {state}" for state in states])
    assert fake.verbs() == ["create", *["describe"] * 4]


@pytest.mark.parametrize(
    ("state", "why"), [("FAILED", "No v6e"), ("SUSPENDED", ""), ("DELETING", "")]
)
def test_a_failed_request_is_an_error(fake, tpu, state, why):
    fake.answers(queued("WAITING_FOR_RESOURCES"), queued(state, why))
    one_error(tpu("create", TPU), 1, f"gpt is {state}: {why}")


@pytest.mark.parametrize(
    "answer",
    [refused("create", f"RESOURCE_EXHAUSTED: {QUOTA} in zone x."), queued("FAILED", QUOTA)],
)
def test_exceeded_quota_is_an_error_with_a_fix_and_not_retried(fake, tpu, answer):
    fake.answers(answer)
    one_error(tpu("up", UP), 1, QUOTA, "Delete queued resources that are SUSPENDED or FAILED")
    assert fake.verbs().count("create") == 1


def test_permanent_errors_are_not_retried(fake, tpu):
    fake.answers(refused("describe", "PERMISSION_DENIED: No. This command is authenticated as x."))
    one_error(tpu("status", HERE), 1, "queued-resources describe gpt: PERMISSION_DENIED: No. Fix")
    assert len(fake.calls()) == 1


def test_transient_errors_are_retried(fake, tpu):
    down = ("describe", 1, "", "ERROR: gcloud crashed (ConnectionError): no route")
    fake.answers(down, down, refused("describe", "Quota exceeded: 'Read requests per minute'"))
    assert tpu("create", TPU)[0] == 0
    assert fake.verbs() == ["create", *["describe"] * 4]


def test_deleting_a_missing_tpu_succeeds(fake, tpu):
    fake.answers(refused("delete", "NOT_FOUND: Resource 'gpt' was not found"))
    says(tpu("delete", HERE), "gpt: already gone")


# Training that goes on, whatever happens.


def test_up_trains_to_the_end(fake, tpu):
    result = tpu("up", UP)
    says(result, "gpt: ACTIVE", "gpt-w-1: training started", "training exited with 0; gpt still")
    assert result[1] == "start 1\n"
    assert fake.verbs() == FRESH


def test_a_preempted_tpu_is_recreated_and_training_resumes(fake, tpu):
    """The queued resource is SUSPENDED, ssh fails: delete, create, and the same command."""
    gone = refused("tail", "This TPU has terminal state PREEMPTED, so it cannot be used anymore")
    fake.answers(gone, queued("ACTIVE"), queued("SUSPENDED"))
    fake.codes("stay 0")
    says(tpu("up", UP), "gpt is SUSPENDED: starting again", "gpt: deleted", "exited with 0")
    assert fake.verbs() == [*FRESH[:5], "log", "describe", "delete", *FRESH]
    assert fake.starts() == [f"train {TRAIN}"] * 2


def test_a_preempted_node_is_detected(fake, tpu):
    node = ("tpu-vm describe", 0, '{"state": "PREEMPTED"}', "")
    fake.answers(refused("tail", "ssh", 255), node)
    fake.codes("stay 0")
    says(tpu("up", UP), "gpt is PREEMPTED: starting again", "gpt: deleted", "exited with 0")
    assert fake.verbs() == [*FRESH[:5], "log", "describe", "describe", "delete", *FRESH]


def test_preemption_during_installation_is_detected(fake, tpu):
    fake.answers(queued("ACTIVE"), refused("bash -ec", "exit status 255"), queued("SUSPENDING"))
    says(tpu("up", UP), "gpt is SUSPENDING: starting again", "exited with 0")
    assert fake.verbs() == [*FRESH[:4], "describe", "delete", *FRESH]


def test_an_unreachable_tpu_is_not_deleted(fake, tpu):
    fake.answers(refused("bash -ec", "[ssh] exited with return code [255].", 255))
    says(tpu("up", UP), "exited with return code [255]: starting again", "exited with 0")
    assert "delete" not in fake.verbs()


def test_a_tpu_with_a_different_number_of_slices_is_not_deleted(fake, tpu):
    absent = [refused(verb, "NOT_FOUND: Resource 'gpt'") for verb in ("tpu-vm ssh", "tpu-vm desc")]
    fake.answers(EXISTS, *absent)
    one_error(tpu("up", UP), 1, "gpt: gpt has no such node. Check --slices")
    assert "delete" not in fake.verbs()


def test_a_lost_connection_neither_loses_nor_repeats_lines(fake, tpu):
    """ssh breaks twice; gcloud itself starts the command over once."""
    broken = ("tail", 255, state("running", "thr"), "ssh: broken pipe")
    fake.answers(
        ("tail", 0, state("running", "one\ntwo\n"), ""), broken, broken,
        ("tail", 0, state("running", "thr") + "\n" + state("running", "three\n"), ""),
        ("tail", 0, state("exit 0", "four\u00e9\n"), ""),
    )  # fmt: skip
    result = tpu("logs", f"{HERE} --follow")
    says(result, "gpt: no connection, trying again")
    assert result[1] == "one\ntwo\nthree\nfour\u00e9\n"
    assert re.findall(r"tail -c \+(\d+)", str(fake.calls())) == ["1", "9", "9", "9", "15"]


def test_following_stops_after_repeated_failures(fake, tpu, monkeypatch):
    monkeypatch.setattr(tpu_vm, "PATIENCE", 3)
    fake.answers(*[refused("tail", "ssh: no route", 255)] * 3)
    one_error(tpu("logs", f"{HERE} --follow"), 1, "no connection", "no route")


@pytest.mark.parametrize("code", [1, 2])
def test_a_failure_of_training_is_final(fake, tpu, code):
    fake.codes(f"{code} 0")
    assert tpu("up", UP)[0] == code
    assert fake.verbs() == FRESH


def test_the_exit_code_of_the_failed_worker_wins(fake, tpu):
    fake.codes("70 70", "-gpt-w-0")
    fake.codes("1 1", "-gpt-w-1")
    assert tpu("up", UP)[0] == 1
    assert len(fake.starts()) == 1


@pytest.mark.parametrize("code", ["70", "143"])
def test_other_exit_codes_resume_on_the_same_tpu(fake, tpu, code):
    fake.codes(f"{code} 0")
    fake.answers(("create", 0, "", ""), EXISTS)
    says(tpu("up", UP), f"training ended with {code}: starting again", "exited with 0")
    assert fake.verbs() == [*FRESH, *AGAIN]


def test_restarts_are_limited(fake, tpu):
    fake.codes("70 70 70 70")
    result = tpu("up", f"{TPU} --max-recreations 2 {TRAIN}")
    one_error(result, 1, "gave up after 2 restarts: training ended with 70")
    assert len(fake.starts()) == 3
    git = [call[3] for call in fake.calls() if call[0] == "git"]
    assert git == ["diff", "bundle"], "what trains is the commit of the beginning"


def test_up_again_attaches_to_training_that_runs(fake, tpu, monkeypatch):
    """A laptop was closed: nothing is installed or started a second time."""
    fake.is_impatient()
    fake.codes("stay")
    assert tpu("setup", HERE)[0] == tpu("run", f"{HERE} {TRAIN}")[0] == 0
    fake.calls()
    fake.answers(EXISTS, ("tail", 0, state("running"), ""), ("tail", 0, state("exit 1"), ""))
    monkeypatch.setattr(tpu_vm, "PATIENCE", 1)
    assert tpu("up", UP)[0] == 1
    assert fake.verbs() == ["create", "describe", "states", "log", "log", "states"]
    assert len(fake.starts()) == 1


# On a worker.


def test_run_is_idempotent_and_resumes_after_stop(fake, tpu):
    fake.is_impatient()
    fake.codes("stay stay")
    fake.installs()
    tpu("setup", HERE)
    says(tpu("run", f"{HERE} {TRAIN}"), "gpt-w-0: training started")
    says(tpu("run", f"{HERE} {TRAIN}"), "gpt-w-0: training runs already", "gpt-w-1")
    assert tpu("status", HERE)[1] == "gpt ACTIVE\ngpt-w-0 running\ngpt-w-1 running\n"
    one_error(tpu("setup", HERE), 1, "training is running")
    assert tpu("stop", HERE)[0] == 0
    assert tpu("status", HERE)[1] == "gpt ACTIVE\ngpt-w-0 exit 143\ngpt-w-1 exit 143\n"
    assert tpu("logs", HERE)[1] == "start 1\nsaved\n"
    says(tpu("run", f"{HERE} {TRAIN}"), "gpt-w-0: training started")
    assert fake.starts() == [f"train {TRAIN}"] * 2


def test_a_shutdown_leaves_143_and_a_power_cut_no_exit_code(fake, tpu):
    fake.is_impatient()
    fake.codes("stay")
    tpu("setup", HERE)
    assert tpu("status", HERE)[1].endswith("gpt-w-1 idle\n")
    one_error(tpu("logs", f"{HERE} --follow"), 1, "training was never started")
    tpu("run", f"{HERE} {TRAIN}")
    for worker, number in (("gpt-w-0", signal.SIGTERM), ("gpt-w-1", signal.SIGKILL)):
        job = fake.folder / "homes" / worker / "gpt3jax-job"
        os.killpg(int((job / "pid").read_text()), number)
        subprocess.run(["flock", job / "lock", "true"], check=True)
    assert tpu("status", HERE)[1] == "gpt ACTIVE\ngpt-w-0 exit 143\ngpt-w-1 vanished\n"
    assert tpu("logs", f"{HERE} --follow")[0] == 143


# Mistakes.


def test_uncommitted_changes_are_rejected(fake, tpu, repository):
    file = repository / "experiments/tiny.py"
    file.write_text("changed")
    try:
        one_error(tpu("up", UP), 2, "uncommitted changes", "Commit or stash them")
    finally:
        file.write_text("")
    assert fake.verbs() == [], "before anything costs"


@pytest.mark.parametrize(
    ("command", "line", "part"),
    [
        ("up", f"{HERE} {TRAIN}", "--accelerator-type"),
        ("create", "--zone z", "--name"),
        ("create", f"{TPU} --slices 0", "--slices"),
        ("create", f"{TPU} --flavour new", "--flavour"),
        ("delete", "--name Gpt --zone z", "--name Gpt: not a resource name"),
        ("run", HERE, "experiment"),
        ("run", f"{HERE} experiments/none.py --run /mnt/shared/x", "experiments/none.py"),
        ("run", f"{HERE} /etc/hostname --run /mnt/shared/x", "/etc/hostname"),
        ("run", f"{HERE} experiments/tiny.py", "Use --run /mnt/shared/runs/NAME"),
        ("run", f"{HERE} experiments/tiny.py --run runs/x", "Use --run /mnt/shared/runs/NAME"),
        ("run", f"{HERE} {TRAIN} --dry-run", "--dry-run: comes after the experiment"),
        ("up", f"{UP} --zone=b", "--zone: comes after the experiment"),
    ],
)
def test_user_errors_are_one_line_before_any_command(fake, tpu, command, line, part):
    result = tpu(command, line)
    one_error(result, 2, part)
    assert (len(result[2].splitlines()), fake.calls()) == (1, [])


def test_a_missing_gcloud_is_reported(fake, tpu, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    one_error(tpu("create", TPU), 2, "gcloud: not found on PATH")


def test_help_shows_examples_that_parse(tpu, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    _, out, _ = tpu("--help")
    script = re.sub(r"\\\n", "", out[out.index("  TPU=") :])
    lines = [line for line in script.splitlines() if "python launch/tpu_vm.py" in line]
    assert len(lines) == 4
    for line in lines:
        tpu_vm_plan.parse(shlex.split(line.replace("$TPU", TPU))[2:])
