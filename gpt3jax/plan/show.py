"""Output of `gpt3jax plan`, as text and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from gpt3jax.config import Experiment
from gpt3jax.errors import ConfigError
from gpt3jax.model.param_specs import count_params, flops_per_token
from gpt3jax.model.trainable import state_bytes
from gpt3jax.plan import planner
from gpt3jax.plan.budget import PF_DAY, best_by_chinchilla, best_by_paper
from gpt3jax.plan.estimate import Estimate
from gpt3jax.plan.flags import recommended, variable
from gpt3jax.plan.hlo import Compiled
from gpt3jax.plan.kernels import Kernel, kernel_table, total_seconds
from gpt3jax.plan.planner import Plan
from gpt3jax.plan.scaling_laws import Laws, matrix_parameters
from gpt3jax.plan.slices import Slice, parse
from gpt3jax.runtime.chips import CHIPS, GiB
from gpt3jax.style import pluralize, wide_console

if TYPE_CHECKING:
    from gpt3jax.plan.profile import Profile

BEST_FEW, ALTERNATIVES = 4, 8
ARTICLE_FLOPS, ARTICLE_PRICE = 28e12, 1.48
"""FLOP/s and dollars per hour of a V100 behind the article's 355 GPU-years and $4.6M: Lambda Labs
2020, "theoretical 28 TFLOPS" and the lowest three-year price; the price is what $4.6M implies."""
YEAR_S = 365.25 * 86400


def record(
    estimate: Estimate, price: float | None, compiled: Compiled | None, with_kernels: bool = False
) -> dict[str, Any]:
    """Returns a layout and its estimate as a JSON object."""
    layout, parameters = estimate.layout, count_params(estimate.experiment.model)
    dollars = estimate.chip_hours * (price or estimate.slice.chip.price)
    result = {
        "parameters": parameters,
        "chips": estimate.slice.name,
        "mesh": {"data": layout.data, "fsdp": layout.fsdp, "tensor": layout.tensor},
        "remat": layout.remat,
        "microbatch": layout.microbatch,
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
        "checkpoint_bytes": state_bytes(estimate.experiment),
        "launch": launch(estimate),
        "flags": [vars(flag) for flag in recommended(estimate.slice, layout)],
    }
    if compiled:
        result |= {
            "compiled_peak_bytes": compiled.peak_bytes,
            "compile_s": compiled.seconds,
            "collectives": [vars(each) for each in compiled.collectives],
            "kernels": compiled.kernels,
            "product_flops": compiled.product_flops,
            "scatters": compiled.scatters,
        }
    if compiled and with_kernels:
        table = kernel_table(compiled.text, estimate.slice.chip, compiled.microbatches)
        result["kernel_table"] = [vars(each) for each in table]
        result["kernel_s"] = total_seconds(table)
    return result


def launch(estimate: Estimate) -> str:
    """The command that starts this run on its slice."""
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


Finalists = list[tuple[Estimate, Compiled]]
"""The compiled layouts, the best first."""


def show(
    plan: Plan,
    price: float | None,
    compiled: Finalists,
    laws: Laws | None = None,
    *,
    as_json: bool,
    with_kernels: bool = False,
) -> None:
    """Prints the plan as text or JSON, with the loss that `laws` predict if given."""
    if as_json:
        finalists = compiled or [(plan.best, None)]
        first, *others = [record(each, price, program, with_kernels) for each, program in finalists]
        if laws:
            first["expected_loss"] = expected_loss(plan.best.experiment, laws)
        print(json.dumps(first | {"finalists": others}))
        return
    best, console = plan.best, wide_console(soft_wrap=True)
    experiment, chip = best.experiment, best.slice.chip
    console.print(
        f"{experiment.name} on {best.slice.name}: {pluralize(best.slice.chips, 'chip')} of "
        f"{chip.peak / 1e12:,.0f} TFLOP/s, {chip.hbm / GiB:.1f} GiB at {chip.hbm_rate / 1e12:.2f} "
        f"TB/s, links of {chip.link / 1e9:.0f} GB/s; "
        f"{count_params(experiment.model):,} parameters, "
        f"batch {experiment.train.batch_tokens:,} tokens"
    )
    console.print(_table(plan))
    _print_best(console, best, price)
    if laws:
        loss = expected_loss(experiment, laws)
        console.print(
            f"loss    {loss['loss']:.3f} nats/token expected (95 % prediction interval "
            f"{loss['low']:.3f} to {loss['high']:.3f}) at {loss['times_compute']:,.2g} times the "
            f"compute of the largest of the {loss['runs']} runs that the law was fitted to, on "
            "their data"
        )
    for estimate, program in compiled:
        console.print(f"{estimate.layout.overrides}:")
        _print_compiled(console, estimate, program)
        if with_kernels:
            chip = estimate.slice.chip
            print_kernels(console, kernel_table(program.text, chip, program.microbatches))
    if chip.name == "v100":
        years, dollars = article(experiment)
        console.print(
            f"By the article's method (6 N FLOPs a token, 28 TFLOP/s, ${ARTICLE_PRICE}/h): "
            f"{years:,.0f} GPU-years, ${dollars / 1e6:.1f}M"
        )
    console.print(f"launch  {launch(best)}")
    _print_flags(console, best)


def _table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = ("data", "fsdp", "tensor", "remat", "microbatch", "GiB", "step s", "MFU", "days", "")
    for name in columns:
        table.add_column(name, justify="left" if name in ("remat", "") else "right", no_wrap=True)
    rows = [(each, "") for each in plan.shortlist(BEST_FEW)] + plan.alternatives(ALTERNATIVES)
    for each, why in rows:
        at = each.layout
        table.add_row(
            str(at.data), str(at.fsdp), str(at.tensor), at.remat, str(at.microbatch),
            f"{each.peak_bytes / GiB:.1f}", f"{each.step_s:.3g}", f"{each.mfu:.1%}",
            f"{each.days:,.1f}", "best" if each is plan.best else why,
        )  # fmt: skip
    return table


def _print_best(console: Console, best: Estimate, price: float | None) -> None:
    chip, seconds = best.slice.chip, best.seconds
    hourly = price or chip.price
    memory = ", ".join(f"{k} {v / GiB:.2f}" for k, v in best.memory.items() if v > 0.005 * GiB)
    console.print(f"memory  {best.peak_bytes / GiB:.1f} GiB per device: {memory}")
    console.print(
        f"time    {best.step_s:.3g} s a step: products {seconds['compute']:.3g}, elementwise "
        f"{seconds['elementwise']:.3g}; overlapped with them weights {seconds['weights']:.3g}, "
        f"ring {seconds['tokens']:.3g}; after them replicas {seconds['replicas']:.3g}, update "
        f"{seconds['update']:.3g}. Limited by {best.limit}"
    )
    dollars = best.chip_hours * hourly
    source = "as given" if price else chip.quoted
    console.print(
        f"cost    {best.days:,.1f} days to {best.experiment.train.tokens / 1e9:,.0f}B tokens, "
        f"{best.chip_hours:,.0f} chip-hours, ${dollars:,.0f} at ${hourly:.2f} ({source}); "
        f"checkpoint {12 * count_params(best.experiment.model) / 1e9:,.1f} GB"
    )
    if advice := float8_advice(best):
        console.print(f"float8  {advice}")


def float8_advice(best: Estimate) -> str:
    """Whether to train in float8, from what was measured on an H200; empty where it says nothing.

    Steps of 1.3B and 2.7B were 1.16 and 1.13 times as fast as in bfloat16, those of 125M 0.93.
    """
    model, parameters = best.experiment.model, count_params(best.experiment.model)
    if best.slice.chip.name not in ("h100", "h200", "b200") or best.layout.tensor > 1:
        return ""
    if parameters > 1.2e9 and model.dtype != "float8":
        return (
            "--model.dtype float8 makes steps of 1.3B and 2.7B 1.16 and 1.13 times as fast (H200)"
        )
    if parameters < 2e8 and model.dtype == "float8":
        return "slower than bfloat16 at this size: 0.93 of its tokens/s at 125M (H200)"
    return ""


def _print_compiled(console: Console, best: Estimate, compiled: Compiled) -> None:
    memory_error = best.peak_bytes / compiled.peak_bytes - 1
    sent = sum(each.bytes_sent for each in compiled.collectives)
    traffic = "sends nothing"
    if sent:
        wire_error = sum(best.wire.values()) / sent - 1
        traffic = f"sends {sent:.3g} bytes a step (estimate {wire_error:+.0%})"
    products = compiled.product_flops / (best.flops["model"] - best.flops["attention"])
    console.print(
        f"compiled in {compiled.seconds:.0f} s: peak {compiled.peak_bytes / GiB:.2f} GiB per "
        f"device (estimate {memory_error:+.0%}); {traffic}; computes {products:.3f} times the "
        "model's matrix products without attention; kernels "
        + ", ".join(f"{name} x{times}" for name, times in compiled.kernels.items())
    )
    if compiled.scatters and not best.slice.chip.torus:
        console.print(
            "bits will differ from run to run: floats are added by atomics in "
            + ", ".join(compiled.scatters)
        )
    for each in compiled.collectives[:6]:
        console.print(
            f"        {each.kind} over {each.group}: {each.count:,} times, "
            f"{each.bytes_sent:.3g} bytes"
        )


def print_kernels(
    console: Console, kernels: list[Kernel], measured: list[tuple[float, float]] | None = None
) -> None:
    """The kernels of a step and their sum.

    `measured` has for each of them the executions and the seconds per step, and in the end all.
    """
    table = Table(box=None)
    for name in ("part", "work"):
        table.add_column(name, no_wrap=True)
    names = ("times", "GFLOP", "GB", "ms", "limit")
    for name in (*names, *(("ran", "measured ms") if measured else ())):
        table.add_column(name, justify="right")
    sums = [sum(column) for column in zip(*map(_figures, kernels), strict=True)]
    for index, each in enumerate((*kernels, None)):
        count, flops, moved, seconds = _figures(each) if each else sums
        names = (each.part, each.work) if each else ("all", "")
        row = [f"{count:,}", _digits(flops / 1e9), _digits(moved / 1e9)]
        row += [_digits(1e3 * seconds) if seconds else "-", each.limit if each else ""]
        if measured:
            row += [_digits(measured[index][0]), _digits(1e3 * measured[index][1])]
        table.add_row(*names, *row)
    console.print(table)


def _figures(kernel: Kernel) -> tuple[int, float, float, float]:
    return kernel.count, kernel.flops, kernel.bytes, kernel.seconds


def _digits(value: float) -> str:
    """A number with three digits, or with all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def print_profile(console: Console, profile: Profile) -> None:
    """The kernels of traced steps, with estimated and measured times."""
    console.print(
        f"{pluralize(profile.steps, 'step')} traced, {_digits(1e3 * profile.step_s)} ms each. "
        f"Kernels of the step ran in {profile.covered:.1%} of this time. For XProf and Perfetto: "
        f"{profile.folder}"
    )
    measured = [(each.count, each.seconds) for each in profile.kernels]
    count, seconds = map(sum, zip(*measured, strict=True))
    print_kernels(console, [each.kernel for each in profile.kernels], [*measured, (count, seconds)])


def _print_flags(console: Console, best: Estimate) -> None:
    flags = recommended(best.slice, best.layout)
    if flags:
        words = " ".join(flag.flag for flag in flags)
        console.print(f"flags   export {variable(best.slice)}='{words}' on every host:")
    for flag in flags:
        console.print(f"        {flag.flag.partition('=')[0]}: {flag.why}")


def expected_loss(experiment: Experiment, laws: Laws) -> dict[str, float]:
    """Final loss of an experiment in nats/token, predicted by a law fitted to smaller runs."""
    tokens = float(experiment.train.tokens)
    pf_days = tokens * flops_per_token(experiment.model) / PF_DAY
    law, at = laws.best(), (matrix_parameters(experiment.model), tokens, pf_days)
    low, high = law.interval(*at)
    return {
        "loss": float(law.loss(*at)),
        "low": low,
        "high": high,
        "times_compute": pf_days / law.most_pf_days,
        "runs": law.fitted,
    }


def article(experiment: Experiment) -> tuple[float, float]:
    """GPU-years and dollars by the article's method: 6 N FLOPs per token on its V100.

    The FLOPs are rounded to three digits, as in Table D.1 of Brown et al. 2020, which it uses.
    """
    flops = float(f"{6 * count_params(experiment.model) * experiment.train.tokens:.3g}")
    years = flops / ARTICLE_FLOPS / YEAR_S
    return years, years * YEAR_S / 3600 * ARTICLE_PRICE


def budgets(experiment: Experiment, dollars: float) -> list[dict[str, Any]]:
    """The best model for a budget on each chip, at the MFU of the experiment's best layout."""
    rows = []
    for chip in CHIPS.values():
        try:
            best = planner.plan(experiment, _typical_slice(chip.name)).best
        except ConfigError:
            continue
        flops = dollars / chip.price * 3600 * chip.peak * best.mfu
        for law in (best_by_paper(flops), best_by_chinchilla(flops)):
            rows.append({"chip": chip.name, "mfu": best.mfu, "flops": flops, **vars(law)})
    return rows


def _typical_slice(kind: str) -> Slice:
    """A slice of 64 chips."""
    shape = {3: "4x4x4", 2: "8x8", 0: "64"}[CHIPS[kind].torus]
    return parse(f"{kind}:{shape}")


def show_budget(experiment: Experiment, dollars: float, *, as_json: bool) -> None:
    """Prints the best models for a budget, as text or JSON."""
    if as_json:
        print(json.dumps(budgets(experiment, dollars)))
        return
    console, table = wide_console(soft_wrap=True), Table(box=None, pad_edge=False)
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
