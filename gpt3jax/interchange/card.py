"""The model card of an export."""

from __future__ import annotations

import json
from typing import Any

from gpt3jax.checkpoint.manifest import CheckpointManifest
from gpt3jax.interchange.certificate import Certificate
from gpt3jax.run_dir import Run
from gpt3jax.style import pluralize
from gpt3jax.train.monitor.display import held_out_losses
from gpt3jax.train.monitor.event_log import read

HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- gpt3jax
---
"""


def card(run: Run, manifest: CheckpointManifest, certificate: Certificate) -> str:
    """The text of README.md."""
    experiment = run.experiment()
    model = experiment.model
    data = run.identity()["data"]
    kind = "dense" if certificate.family == "gpt2" else f"dense and banded ({model.band}) layers"
    facts = {
        "Parameters": f"{certificate.parameters:,}",
        "Shape": f"{pluralize(model.n_layers, 'layer')}, {model.d_model} wide, "
        f"{pluralize(model.n_heads, 'head')} of {model.d_head}, context {model.context}, "
        f"vocabulary {model.vocabulary:,}; {kind}",
        "Trained on": f"{manifest.sequences * model.context:,} tokens in "
        f"{pluralize(manifest.step, 'step')}",
        "Data": "; ".join(map(_source, data["sources"])) or _origin(run),
        "Tokenizer": f"`{data['tokenizer']}`",
        **_measured(run, manifest.step),
        "State": f"`{manifest.state}` of run `{experiment.name}`, identity `{manifest.identity}`",
        "Code": ", ".join(f"{name} {version}" for name, version in sorted(manifest.code.items())),
        "Weights": certificate.dtype,
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return (
        f"{HEAD}\n# {experiment.name}\n\nA GPT-3 architecture (Brown et al. 2020) trained with "
        f"gpt3jax, as transformers' `{certificate.family}`.\n\n| | |\n|---|---|\n{rows}\n\n"
        f"{certificate.line}\n\n"
        "## To be completed before publication\n\nLicence: not stated; the licence of the data may "
        "apply. Intended use, limitations and risks: not stated; the model can repeat its training "
        "data, of which this card lists only the above.\n"
    )


def _source(source: dict[str, Any]) -> str:
    """A data source with its name, share and content hash."""
    share = f"{source['weight']:.3g}" if isinstance(source.get("weight"), int | float) else "?"
    name = json.dumps(source["name"])[1:-1].replace("|", " ").replace("`", "'")
    return f"`{name}` (share {share}, content `{source['manifest']}`)"


def _origin(run: Run) -> str:
    imported = next((e for e in read(run.ledger_file) if e["event"] == "import"), {})
    return f"not known: imported from a `{imported.get('family', 'foreign')}` folder"


def _measured(run: Run, step: int) -> dict[str, str]:
    """The last losses logged at or before a step."""
    records = [record for record in run.metrics() if record["step"] <= step]
    rows = {}
    if losses := [r for r in records if r.get("loss") is not None]:
        rows["Training loss"] = f"{losses[-1]['loss']:.4f} nats/token at step {losses[-1]['step']}"
    if held_out := [r for r in records if r.get("val_loss") is not None]:
        last = held_out[-1]
        rows["Held-out loss"] = "; ".join(held_out_losses(last)) + f" at step {last['step']}"
    return rows
