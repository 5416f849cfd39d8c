"""The commit that a run records is that of this package, or unknown."""

import subprocess

import pytest

from gpt3jax.train.monitor import event_log


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    done = subprocess.run(
        ["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("place", "tracked", "is_known"),
    [
        ("gpt3jax", True, True),
        ("gpt3jax", False, False),
        (".venv/lib/site-packages/gpt3jax", False, False),
        ("third_party/gpt3jax", True, False),
    ],
)
def test_a_commit_is_recorded_only_of_a_checkout_of_this_package(
    tmp_path, monkeypatch, place, tracked, is_known
):
    package = tmp_path / place
    (package / "train").mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "own.py").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "own.py", *([place] if tracked else []))
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(event_log, "__file__", str(package / "train/monitor/event_log.py"))
    commit = event_log.code_version()["commit"]
    assert commit == (git(tmp_path, "rev-parse", "--short", "HEAD") if is_known else "unknown")
    (package / "__init__.py").write_text("changed")
    assert event_log.code_version()["commit"] == (f"{commit}-dirty" if is_known else "unknown")


def test_without_a_repository_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(event_log, "__file__", str(tmp_path / "gpt3jax/train/monitor/event_log.py"))
    assert event_log.code_version()["commit"] == "unknown"
