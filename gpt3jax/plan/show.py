"""What `gpt3jax plan` prints."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from gpt3jax.config import Experiment
from gpt3jax.errors import ConfigError
from gpt3jax.model.param_specs import count_params, flops_per_token
from gpt3jax.plan.budget import PF_DAY, best_by_chinchilla, best_by_paper
from gpt3jax.plan.estimate import Estimate
from gpt3jax.plan.flags import recommended, variable
from gpt3jax.plan.hlo import Compiled
from gpt3jax.plan.planner import Plan, plan
from gpt3jax.plan.scaling_laws import Laws, matrix_parameters
from gpt3jax.plan.slices import Slice, parse
from gpt3jax.runtime.chips import CHIPS, GiB
from gpt3jax.style import pluralize

BEST_FEW, LOSERS = 4, 8
ARTICLE_FLOPS, ARTICLE_PRICE = 28e12, 1.48
"""FLOP/s and dollars per hour of a V100 behind the article's 355 GPU-years and $4.6M: Lambda Labs
2020, "theoretical 28 TFLOPS" and the lowest three-year price; the price is what $4.6M implies."""
YEAR_S = 365.25 * 86400


def record(estimate: Estimate, price: float | None, compiled: Compiled | None) -> dict[str, Any]:
    """A layout and what it takes, for --json."""
    at, size = estimate.layout, count_params(estimate.experiment.model)
    dollars = estimate.chip_hours * (price or estimate.slice.chip.price)
    found = {
        "parameters": size,
        "chips": estimate.slice.name,
        "mesh": {"data": at.data, "fsdp": at.fsdp, "tensor": at.tensor},
        "remat": at.remat,
        "microbatch": at.microbatch,
        "estimated_peak_bytes": round(estimate.peak_bytes),
        "memory_bytes": {name: round(size) for name, size in estimate.memory.items()},
        "flops": estimate.flops,
        "wire_bytes": estimate.wire,
        "hbm_bytes": estimate.hbm_bytes,
        "seconds": estimate.seconds,
        "step_s": estimate.step_s,
        "tokens_per_s": estimate.tokens_per_s,
        "mfu": estimate.mfu,
        "limit": estimate.limit,
        "days": estimate.days,
        "chip_hours": estimate.chip_hours,
        "dollars": dollars,
        "checkpoint_bytes": 12 * size,
        "launch": launch(estimate),
        "flags": [vars(flag) for flag in recommended(estimate.slice, at)],
    }
    if compiled:
        found |= {
            "compiled_peak_bytes": compiled.peak_bytes,
            "compile_s": compiled.seconds,
            "collectives": [vars(each) for each in compiled.collectives],
            "kernels": compiled.kernels,
            "product_flops": compiled.product_flops,
        }
    return found


def launch(estimate: Estimate) -> str:
    """The command that starts it."""
    name = estimate.experiment.name
    train = f"experiments/{name}.py --run /mnt/shared/runs/{name} {estimate.layout.overrides}"
    if not estimate.slice.chip.torus:
        nodes = -(-estimate.slice.chips // estimate.slice.chip.domain)
        gpus = min(estimate.slice.chips, estimate.slice.chip.domain)
        return f"sbatch --nodes {nodes} --gpus-per-node {gpus} launch/slurm.sbatch {train}"
    slices = f" --slices {estimate.slice.slices}" if estimate.slice.slices > 1 else ""
    return (
        f"python launch/tpu_vm.py up --name {name.replace('_', '-')} --zone ZONE "
        f"--accelerator-type {estimate.slice.accelerator_type}{slices} --runtime-version VERSION "
        f"--bucket BUCKET {train}"
    )


Closer = list[tuple[Estimate, Compiled]]
"""Finalists and what the compiler says of them, the best first."""


def show(
    found: Plan, price: float | None, compiled: Closer, laws: Laws | None = None, *, as_json: bool
) -> None:
    """Print the plan, for people or as JSON; with a law of scale, the loss that it expects."""
    if as_json:
        closer = compiled or [(found.best, None)]
        best, *others = [record(estimate, price, said) for estimate, said in closer]
        if laws:
            best["expected_loss"] = expected_loss(found.best.experiment, laws)
        print(json.dumps(best | {"finalists": others}))
        return
    best, console = found.best, wide_console()
    experiment, chip = best.experiment, best.slice.chip
    console.print(
        f"{experiment.name} on {best.slice.name}: {pluralize(best.slice.chips, 'chip')} of "
        f"{chip.peak / 1e12:,.0f} TFLOP/s, {chip.hbm / GiB:.1f} GiB at {chip.hbm_rate / 1e12:.2f} "
        f"TB/s, links of {chip.link / 1e9:.0f} GB/s; "
        f"{count_params(experiment.model):,} parameters, "
        f"batch {experiment.train.batch_tokens:,} tokens"
    )
    console.print(_table(found))
    _print_best(console, best, price)
    if laws:
        said = expected_loss(experiment, laws)
        console.print(
            f"loss    {said['loss']:.3f} nats/token expected (95 % prediction interval "
            f"{said['low']:.3f} to {said['high']:.3f}) at {said['times_compute']:,.2g} times the "
            f"compute of the largest of the {said['runs']} runs that the law was fitted to, on "
            "their data"
        )
    for estimate, said in compiled:
        console.print(f"{estimate.layout.overrides}:")
        _print_compiled(console, estimate, said)
    if chip.name == "v100":
        years, dollars = article(experiment)
        console.print(
            f"As the article counts (6 N FLOPs a token, 28 TFLOP/s, ${ARTICLE_PRICE}/h): "
            f"{years:,.0f} GPU-years, ${dollars / 1e6:.1f}M"
        )
    console.print(f"launch  {launch(best)}")
    _print_flags(console, best)


def _table(found: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = ("data", "fsdp", "tensor", "remat", "microbatch", "GiB", "step s", "MFU", "days", "")
    for name in columns:
        table.add_column(name, justify="left" if name in ("remat", "") else "right", no_wrap=True)
    rows = [(each, "") for each in found.shortlist(BEST_FEW)] + found.losers(LOSERS)
    for each, why in rows:
        at = each.layout
        table.add_row(
            str(at.data), str(at.fsdp), str(at.tensor), at.remat, str(at.microbatch),
            f"{each.peak_bytes / GiB:.1f}", f"{each.step_s:.3g}", f"{each.mfu:.1%}",
            f"{each.days:,.1f}", "best" if each is found.best else why,
        )  # fmt: skip
    return table


def _print_best(console: Console, best: Estimate, price: float | None) -> None:
    chip, seconds = best.slice.chip, best.seconds
    each = price or chip.price
    memory = ", ".join(f"{k} {v / GiB:.2f}" for k, v in best.memory.items() if v > 0.005 * GiB)
    console.print(f"memory  {best.peak_bytes / GiB:.1f} GiB per device: {memory}")
    console.print(
        f"time    {best.step_s:.3g} s a step: products {seconds['compute']:.3g}, elementwise "
        f"{seconds['elementwise']:.3g}; overlapped with them weights {seconds['weights']:.3g}, "
        f"ring {seconds['tokens']:.3g}; after them replicas {seconds['replicas']:.3g}, update "
        f"{seconds['update']:.3g}. Limited by {best.limit}"
    )
    dollars = best.chip_hours * each
    source = "as given" if price else chip.quoted
    console.print(
        f"cost    {best.days:,.1f} days to {best.experiment.train.tokens / 1e9:,.0f}B tokens, "
        f"{best.chip_hours:,.0f} chip-hours, ${dollars:,.0f} at ${each:.2f} ({source}); "
        f"checkpoint {12 * count_params(best.experiment.model) / 1e9:,.1f} GB"
    )


def _print_compiled(console: Console, best: Estimate, compiled: Compiled) -> None:
    difference = best.peak_bytes / compiled.peak_bytes - 1
    sent = sum(each.bytes_sent for each in compiled.collectives)
    traffic = "sends nothing"
    if sent:
        off = sum(best.wire.values()) / sent - 1
        traffic = f"sends {sent:.3g} bytes a step (estimate {off:+.0%})"
    products = compiled.product_flops / (best.flops["model"] - best.flops["attention"])
    console.print(
        f"compiled in {compiled.seconds:.0f} s: peak {compiled.peak_bytes / GiB:.2f} GiB per "
        f"device (estimate {difference:+.0%}); {traffic}; computes {products:.3f} times the "
        "model's products, attention aside; kernels "
        + ", ".join(f"{name} x{times}" for name, times in compiled.kernels.items())
    )
    for each in compiled.collectives[:6]:
        console.print(
            f"        {each.kind} over {each.group}: {each.count:,} times, "
            f"{each.bytes_sent:.3g} bytes"
        )


def _print_flags(console: Console, best: Estimate) -> None:
    flags = recommended(best.slice, best.layout)
    if flags:
        words = " ".join(flag.flag for flag in flags)
        console.print(f"flags   export {variable(best.slice)}='{words}' on every host:")
    for flag in flags:
        console.print(f"        {flag.flag.partition('=')[0]}: {flag.why}")


def expected_loss(experiment: Experiment, laws: Laws) -> dict[str, float]:
    """What a law fitted to smaller runs says of an experiment at its end, nats/token."""
    tokens = float(experiment.train.tokens)
    pf_days = tokens * flops_per_token(experiment.model) / PF_DAY
    law, at = laws.best(), (matrix_parameters(experiment.model), tokens, pf_days)
    low, high = law.interval(*at)
    times = pf_days / law.most_pf_days
    return {"loss": float(law.loss(*at)), "low": low, "high": high, "times_compute": times,
            "runs": law.fitted}  # fmt: skip


def article(experiment: Experiment) -> tuple[float, float]:
    """GPU-years and dollars as the article has them: 6 N FLOPs per token on its V100.

    To three digits, as the FLOPs of Table D.1 of Brown et al. 2020 are, from which it goes out.
    """
    flops = float(f"{6 * count_params(experiment.model) * experiment.train.tokens:.3g}")
    years = flops / ARTICLE_FLOPS / YEAR_S
    return years, years * YEAR_S / 3600 * ARTICLE_PRICE


def budgets(experiment: Experiment, dollars: float) -> list[dict[str, Any]]:
    """What the money trains on each chip, at the rate of the experiment's best layout there."""
    rows = []
    for chip in CHIPS.values():
        try:
            best = plan(experiment, _usual(chip.name)).best
        except ConfigError:
            continue
        flops = dollars / chip.price * 3600 * chip.peak * best.mfu
        for law in (best_by_paper(flops), best_by_chinchilla(flops)):
            rows.append({"chip": chip.name, "mfu": best.mfu, "flops": flops, **vars(law)})
    return rows


def _usual(kind: str) -> Slice:
    """Sixty-four chips."""
    shape = {3: "4x4x4", 2: "8x8", 0: "64"}[CHIPS[kind].torus]
    return parse(f"{kind}:{shape}")


def show_budget(experiment: Experiment, dollars: float, *, as_json: bool) -> None:
    """Print what the money buys, for people or as JSON."""
    if as_json:
        print(json.dumps(budgets(experiment, dollars)))
        return
    console, table = wide_console(), Table(box=None, pad_edge=False)
    for name in ("chip", "$/h", "MFU", "FLOPs", "law", "parameters", "tokens", "loss"):
        table.add_column(name, justify="left" if name in ("chip", "law") else "right")
    for row in budgets(experiment, dollars):
        table.add_row(
            row["chip"], f"{CHIPS[row['chip']].price:.2f}", f"{row['mfu']:.0%}",
            f"{row['flops']:.2g}", row["law"], f"{row['parameters'] / 1e9:.2f}B",
            f"{row['tokens'] / 1e9:,.1f}B", f"{row['loss']:.2f}",
        )  # fmt: skip
    console.print(
        f"${dollars:,.0f} at on-demand prices, at the rate of {experiment.name} on 64 chips "
        f"({flops_per_token(experiment.model):.3g} FLOPs a token)"
    )
    console.print(table)
    console.print("Losses are nats/token on each law's own corpus; compare within a law.")


def wide_console() -> Console:
    """Tables whole where nobody looks at the width (pipes, files)."""
    look = {"highlight": False, "markup": False, "soft_wrap": True}
    console = Console(**look)
    return console if console.is_terminal else Console(width=140, **look)
