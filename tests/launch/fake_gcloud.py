"""A gcloud that is a script, for the tests of launch/tpu_vm.py.

It writes down every command line. It gives the answers that a test lays out for it, and otherwise
those of a TPU that works: two workers per node, each with a home in which `ssh` runs its command.
"""

import json
import os
import re
import shutil
import subprocess
import sys

GCLOUD = r"""
import fcntl, json, os, re, sys

here, words = os.environ["FAKE"], sys.argv[1:]
program = os.path.basename(sys.argv[0])
with open(here + "/lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with open(here + "/calls", "a") as calls:
        print(json.dumps([program, *words]), file=calls)
    answers = json.load(open(here + "/answers"))
    fits = (one for one in answers if program == "gcloud" and re.search(one[0], " ".join(words)))
    if answer := next(fits, None):
        answers.remove(answer)
        json.dump(answers, open(here + "/answers", "w"))
if program == "git":
    os.execv(os.environ["REAL_GIT"], ["git", *words])
if answer:
    _, code, out, err = answer
    sys.stdout.write(out)
    sys.stderr.write(err)
    sys.exit(code)

import shutil, signal, subprocess

def homes(node, workers=(0, 1)):
    for worker in workers:
        os.makedirs(f"{here}/homes/{node}-w-{worker}", exist_ok=True)
        yield f"{here}/homes/{node}-w-{worker}"

def is_free(lock):
    return subprocess.run(["flock", "-n", lock, "true"]).returncode == 0

kind, verb, target = words[2:5]
if verb == "describe":
    print(json.dumps({"state": "READY" if kind == "tpu-vm" else {"state": "ACTIVE"}}))
elif verb == "scp":
    node, name = words[5].split(":")
    for home in homes(node):
        shutil.copy(target, f"{home}/{name}")
elif verb == "ssh":
    script = next(word for word in words if word.startswith("--command="))[10:]
    if "@state" in script and os.path.exists(here + "/patient"):
        script = "flock gpt3jax-job/lock true; " + script
    if "bash -ec" in script and not os.path.exists(here + "/installing"):
        for home in homes(target):
            os.makedirs(home + "/gpt3jax/.venv/bin", exist_ok=True)
            shutil.copy(here + "/training", home + "/gpt3jax/.venv/bin/gpt3jax")
        sys.exit()
    running = []
    for home in homes(target, (0, 1) if "--worker=all" in words else (0,)):
        script_here = f"hostname() {{ echo {os.path.basename(home)}; }}; cd; {script}"
        env = {**os.environ, "HOME": home, "PATH": f"{here}/worker:{os.environ['REAL_PATH']}"}
        running.append(subprocess.Popen(["bash", "-c", script_here], env=env))
    code = max([one.wait() for one in running])
    for home in homes(target) if "setsid" in script else ():
        subprocess.run(["timeout", "9", "bash", "-c", "until [ -s gpt3jax-job/log ]; do :; done"],
                       cwd=home)
    sys.exit(code)
elif verb == "delete":
    for home in os.listdir(here + "/homes"):
        job = f"{here}/homes/{home}/gpt3jax-job"
        if os.path.exists(job + "/pid") and not is_free(job + "/lock"):
            os.killpg(int(open(job + "/pid").read()), signal.SIGKILL)
    shutil.rmtree(here + "/homes")
    os.mkdir(here + "/homes")
"""

PYTHON3 = """#!/bin/bash
case "$*" in *" venv "*) mkdir -p .venv/bin; cp "$FAKE/training" .venv/bin/gpt3jax;; esac
"""

TRAINING = """#!/bin/bash
trap 'echo saved; exit 143' TERM
starts="$FAKE/starts-$(basename "$HOME")"
echo "$*" >>"$starts"
start=$(wc -l <"$starts")
codes=($(cat "$FAKE/codes-$(basename "$HOME")" 2>/dev/null || cat "$FAKE/codes"))
code=${codes[start - 1]:-0}
echo "start $start"
while [ "$code" = stay ] && [ $SECONDS -lt 60 ]; do sleep 0.02; done
exit "$code"
"""


class FakeGcloud:
    """What the fake will answer, and what it was asked."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        script = f"#!{sys.executable} -IS\n{GCLOUD}"
        programs = {"bin/gcloud": script, "bin/git": script, "worker/python3": PYTHON3}
        for name, text in {**programs, "training": TRAINING, "homes/.keep": ""}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        (folder / "homes/.keep").unlink()
        monkeypatch.setenv("FAKE", str(folder))
        monkeypatch.setenv("REAL_GIT", shutil.which("git"))
        monkeypatch.setenv("REAL_PATH", os.environ["PATH"])
        monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
        self.answers()
        self.codes("0")
        (folder / "patient").touch()

    def answers(self, *answers):
        """Lay out (pattern, exit code, stdout, stderr), each for one command that fits it."""
        (self.folder / "answers").write_text(json.dumps(answers))

    def codes(self, codes, host=""):
        """Lay out the exit codes of training, one for each start; `stay` trains until stopped."""
        (self.folder / f"codes{host}").write_text(codes)

    def installs(self):
        """Run installations, which otherwise are taken as done."""
        (self.folder / "installing").touch()

    def is_impatient(self):
        """Answer about training while it goes on; otherwise only when it has ended."""
        (self.folder / "patient").unlink()

    def calls(self):
        """The command lines of gcloud and git so far, and forget them."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def verbs(self):
        """The calls of gcloud in short, `ssh` by what it does."""
        marks = {"bash -ec": "install", "setsid": "start", "tail": "log", "pkill": "stop"}
        return [
            next((verb for mark, verb in marks.items() if mark in " ".join(words)), "states")
            if words[4] == "ssh" else words[4]
            for words in self.calls() if words[0] == "gcloud"
        ]  # fmt: skip

    def starts(self, worker="gpt-w-0"):
        """The arguments of training, one line for each start on a worker."""
        file = self.folder / f"starts-{worker}"
        return file.read_text().splitlines() if file.exists() else []

    def end_training(self):
        """Leave no process behind."""
        if any((self.folder / "homes").iterdir()):
            subprocess.run([self.folder / "bin/gcloud", *"xxx", "delete", "x"], check=True)


def queued(state, message=""):
    """The answer of `queued-resources describe`."""
    data = {"failedData": {"error": {"code": 8, "message": message}}} if message else {}
    return ("queued-resources describe", 0, json.dumps({"state": {"state": state, **data}}), "")


def refused(pattern, message, code=1):
    """The answer of a gcloud that fails."""
    return (pattern, code, "", f"ERROR: (gcloud.compute.tpus.x) {message}\nmore: text\n")


def state(what, log=""):
    """What worker 0 prints about training, and its log."""
    return f"@state gpt-w-0 {what}\n{log}"


def one_error(result, code, *parts):
    """One `error:` line, last on stderr, that says these things."""
    assert result[0] == code
    lines = result[2].splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    for part in parts:
        assert part in lines[-1]


def says(result, *parts):
    """Success, and these things on stderr in this order."""
    assert result[0] == 0, result[2]
    assert re.search(".*".join(map(re.escape, parts)), result[2], re.DOTALL), result[2]


def make_repository(root):
    """A repository with an experiment, all of it committed."""
    for name in ("experiments/tiny.py", "requirements/tpu.txt"):
        (root / name).parent.mkdir()
        (root / name).touch()
    (root / ".gitignore").write_text(".venv*/\n")
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    return root
