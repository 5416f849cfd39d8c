"""The documents' commands and Python are run as printed, in order, on a demo that is trained short.

What cannot be run says why in a comment before its block: `<!-- not run: REASON -->`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pytest
from compiler_flags import FAST

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", *sorted(f"docs/{each.name}" for each in ROOT.glob("docs/*.md")),
             "launch/README.md", "CONTRIBUTING.md"]  # fmt: skip
COMMAND = re.compile(r"(gpt3jax|python|make|pip|sbatch|gcloud|kubectl|[\w]+=\S+)\s")
PYTHON = re.compile(r"(import|from) \w")
MARK = re.compile(r"<!-- not run: \S.* -->")
SHOWN = {
    "README.md": 2, "docs/architecture.md": 1, "docs/data.md": 1, "docs/few_shot.md": 1,
    "docs/xla_cpu.md": 1, "docs/extending.md": 8, "docs/training.md": 1}  # fmt: skip
"""Blocks that are output, samples or tables."""
NOT_RUN = {
    "README.md": 2, "docs/pods.md": 1, "docs/serving.md": 1, "docs/sweeps_and_scaling.md": 3,
    "docs/xla_cpu.md": 1, "launch/README.md": 7, "CONTRIBUTING.md": 1, "docs/training.md": 1,
}  # fmt: skip
"""Blocks that are marked. Before you raise one: can the document show a command that runs?"""
SHRUNK = {
    "tiny": {
        "1_700_000": "440 * 256", "n_layers=4": "n_layers=2", "d_model=128": "d_model=64",
        "n_heads=4": "n_heads=2", "=2048": "=512", "8 * 256": "256", "windows=0": "windows=4",
    },
    "in_context": {
        "6_000_000": "20 * 8 * 192", "48_000": "400", "None, None, 3)": "None, None, 50)",
        "n_layers=5": "n_layers=2",
    },
    "finetune_words": {"40_000": "80"},
    "cooldown": {"666, 831": "333, 440"},
}  # fmt: skip
"""What makes the experiments that are trained take seconds: text of their files, and other text."""
TASK = """
from gpt3jax.evals.task import Example, Task

def task():
    examples = tuple(Example((f"def f{n}()",), (":",)) for n in range(4))
    return Task("colons", examples, "exact match", 2)
"""


@dataclass(frozen=True)
class Block:
    """An indented block of a document."""

    place: str
    """Document and line."""
    text: str
    is_marked: bool

    @property
    def is_python(self) -> bool:
        return bool(PYTHON.match(self.text))

    @property
    def is_run(self) -> bool:
        """Whether it is commands or Python, rather than output, a table or a picture."""
        return self.is_python or any(map(COMMAND.match, self.text.splitlines()))


def blocks(name: str, text: str) -> list[Block]:
    """Every indented block that follows a blank line, or a fenced one."""
    lines, found, marked, k = text.splitlines(), [], False, 0
    while k < len(lines):
        if lines[k].startswith("```"):
            inside = list(takewhile(lambda line: not line.startswith("```"), lines[k + 1 :]))
            size = len(inside) + 2
        elif lines[k].startswith("    ") and k and not lines[k - 1].strip():
            is_inside = lambda line: line.startswith("    ") or not line.strip()  # noqa: E731
            inside = list(takewhile(is_inside, lines[k:]))
            size = len(inside)
        else:
            if lines[k].strip():
                marked = bool(MARK.fullmatch(lines[k]))
            k += 1
            continue
        margin = min(len(line) - len(line.lstrip()) for line in inside if line.strip())
        body = "\n".join(line[margin:] for line in inside).strip("\n")
        found.append(Block(f"{name}:{k + 1}", body, marked))
        marked, k = False, k + size
    return found


BLOCKS = [each for name in DOCUMENTS for each in blocks(name, (ROOT / name).read_text())]
RUN = [each for each in BLOCKS if each.is_run and not each.is_marked]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as a clone is after `make demo`, with a user's own files."""
    place = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "experiments", place / "experiments", ignore=lambda *_: ["__pycache__"])
    for name, replaced in SHRUNK.items():
        file = place / f"experiments/{name}.py"
        text = file.read_text()
        for old, new in replaced.items():
            assert old in text, f"{name}.py has no {old!r} to shrink"
            text = text.replace(old, new)
        file.write_text(text)
    write_own_files(place)
    for name, words in {"gpt3jax": "-m gpt3jax", "python": ""}.items():
        script = place / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        script.chmod(0o755)
    prepare = "gpt3jax data prepare --corpus 'books/a*.txt' --context 256 --vocabulary 512 --out "
    shell(place, f"{prepare}data/python-library\ngpt3jax train experiments/tiny.py --run runs/tiny")
    return place


def write_own_files(place: Path) -> None:
    """What a reader is told to have: books/, web/, web.jsonl, mine.jsonl, mine.py."""
    library = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    (place / "books").mkdir()
    (place / "web").mkdir()
    for file in library:
        (place / f"books/{file.stem}.txt").write_text(file.read_text())
    for k, half in enumerate((library[:20:2], library[1:20:2])):
        texts = [json.dumps(dict.fromkeys(("text", "content"), file.read_text())) for file in half]
        (place / f"web/{k}.jsonl").write_text("\n".join(texts))
    shutil.copyfile(place / "web/0.jsonl", place / "web.jsonl")
    asked = [{"context": f"import {name}", "completion": "\n"} for name in ("os", "re", "sys")]
    (place / "mine.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (place / "mine.py").write_text(TASK)


def shell(place: Path, text: str) -> str:
    """What commands print, on one device; they must exit with 0."""
    paths = os.pathsep.join([str(place / "experiments"), str(ROOT)])
    environment = os.environ | {
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": paths,
        "XLA_FLAGS": FAST, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "120",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=place, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"exit code {done.returncode} of\n{text}\n\n{done.stdout}"
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("block", RUN, ids=lambda block: block.place)
def test_it_runs_as_printed(block, place):
    if not block.is_python:
        out = shell(place, block.text)
        if "--replay" in block.text:
            compared = re.search(r"^ok +steps 401 to 440 +(\d+) logged", out, re.MULTILINE)
            assert compared and int(compared[1]) > 0, out
    elif named := re.search(r'name="(\w+)"', block.text):  # An experiment, which is a file.
        (place / f"{named[1]}.py").write_text(block.text + "\n")
    else:
        (place / "block.py").write_text(block.text + "\n")
        shell(place, "python block.py")


@pytest.mark.long
def test_nothing_is_left_that_git_would_see(place):
    """After all blocks, in the folder where they ran."""
    ours = {"experiments", "books", "web", "web.jsonl", "mine.jsonl", "mine.py", "bin", "block.py"}
    ours |= {f"{name}.py" for block in RUN for name in re.findall(r'name="(\w+)"', block.text)}
    ignored = {line.strip("/*") for line in (ROOT / ".gitignore").read_text().split()}
    assert {each.name for each in place.iterdir()} - ours <= ignored
    shipped = {each.name for each in ROOT.glob("experiments/*")} - {"__pycache__"}
    assert {each.name for each in place.glob("experiments/*")} == shipped


def test_few_blocks_are_marked_and_all_that_are_marked_hold_commands():
    marked = [each for each in BLOCKS if each.is_marked]
    assert all(each.is_run for each in marked), marked
    assert Counter(each.place.partition(":")[0] for each in marked) == NOT_RUN
    shown = [each.place.partition(":")[0] for each in BLOCKS if not each.is_run]
    assert Counter(shown) == SHOWN, "commands that are not recognised, or output that is new?"
    in_text = sum((ROOT / name).read_text().count("<!-- not run") for name in DOCUMENTS)
    assert in_text == sum(NOT_RUN.values()), "a mark that is not before a block marks nothing"


def test_blocks_are_told_apart():
    text = (
        "Text\n\n    gpt3jax doctor\n\n    gpt3jax plan x.py\nmore\n    no block\n\n"
        "<!-- not run: a reason -->\n\n    make demo   # all\n\n- a list\n\n      import jax\n\n"
        "So\n\n    read    6,606\n\n```\npython a.py\n```\n<!-- not run: -->\n\n    sbatch x\n"
    )
    found = blocks("A.md", text)
    assert [(each.place, each.is_run, each.is_python, each.is_marked) for each in found] == [
        ("A.md:3", True, False, False), ("A.md:11", True, False, True),
        ("A.md:15", True, True, False), ("A.md:19", False, False, False),
        ("A.md:21", True, False, False), ("A.md:26", True, False, False),
    ]  # fmt: skip
    assert found[0].text == "gpt3jax doctor\n\ngpt3jax plan x.py"


@pytest.mark.long
def test_the_sizes_and_estimates_that_are_quoted_are_right(place):
    """Sizes by the formula of a GPT with biases, tied embeddings and two norms in a layer."""
    text, sizes = (ROOT / "README.md").read_text(), 0
    for line in re.findall(r"^\| `gpt3_\w+\.py` \|(.*)\|$", text, re.MULTILINE):
        layers, width, _, _, _, parameters = [cell.strip() for cell in line.split("|")]
        n, d = int(layers), int(width)
        assert f"{12 * n * d**2 + 13 * n * d + (50257 + 2048 + 2) * d:,}" == parameters
        sizes += 1
    assert sizes == 8
    said = shell(place, "gpt3jax plan experiments/gpt3_175b.py --chips v5p:8x8x16")
    (best,) = [line.split() for line in said.splitlines() if line.rstrip().endswith("best")]
    (quoted,) = re.findall(r"by estimate (\d+) % MFU", text)
    assert abs(float(best[7].rstrip("%")) - float(quoted)) <= 0.5
    said = json.loads(shell(place, "gpt3jax plan experiments/gpt3_1b3.py --chips h100:8 --json"))
    (quoted,) = re.findall(r"GiB of ([\d.]+) estimated", text)
    assert f"{said['estimated_peak_bytes'] / 2**30:.1f}" == quoted
