"""Numbers that go wrong: kept out of the state, told, and found again; spikes and rewinds."""

import json
import math
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import changed, randomised

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.commands.train import train_and_report
from gpt3jax.commands.verify import verify
from gpt3jax.config import Mesh
from gpt3jax.data import loader
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Changes, Run
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train import loss, step
from gpt3jax.train.loop import NotFiniteError
from gpt3jax.train.monitor import event_log, nonfinite
from gpt3jax.train.monitor.loss_spikes import FEWEST, LASTING, Divergence, Spikes
from gpt3jax.train.train import train

pytestmark = pytest.mark.usefixtures("one_device")


def poison(monkeypatch, experiment, sequences, factor=jnp.nan):
    """Make the loss of these windows what no loss should be, wherever they are read."""
    order = loader.windows(experiment.data, experiment.seed, experiment.model.context)
    bad = np.stack([order[sequence] for sequence in sequences])

    def poisoned(params, windows_BT1, *rest, **named):
        is_bad = (windows_BT1[:, None] == bad[None]).all(axis=-1).any()
        good, aux = loss.window_loss(params, windows_BT1, *rest, **named)
        return jnp.where(is_bad, factor, 1.0) * good, aux

    for module in (step, nonfinite):
        monkeypatch.setattr(module, "window_loss", poisoned)


def events(path, kind):
    return [event for event in event_log.read(Run(path).ledger_file) if event["event"] == kind]


@pytest.mark.parametrize("factor", [jnp.nan, pytest.param(jnp.inf, marks=pytest.mark.long), 3e38])
@pytest.mark.in_ci("nan")
def test_a_step_that_is_not_finite_leaves_the_state_as_it_was(
    short, tmp_path, monkeypatch, capsys, factor
):
    """3e38: the loss overflows in its gradient only, or with it; either is caught."""
    every = changed(short, train={"save_every": 1})
    poison(monkeypatch, short, [37], factor)  # Of the fifth batch, 32 to 39.
    train(every, tmp_path)
    states = {event["step"]: event["state"] for event in events(tmp_path, "save")}
    leaves = [Checkpointer(tmp_path / "checkpoints").manifest(step).leaves for step in (4, 5, 6)]
    assert leaves[0] == leaves[1] != leaves[2] and len(set(states.values())) == len(states)
    (event,) = events(tmp_path, "not finite")
    assert event["step"] == 5 and event["windows"] == [32, 40]
    assert Run(tmp_path).metrics()[-1]["step"] == 8
    assert "its update was left out" in capsys.readouterr().out


def test_the_page_tells_what_was_read_and_how_to_do_it_again(short, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, short, [37])
    train(short, tmp_path)
    folder = tmp_path / "incidents" / "5"
    record = json.loads((folder / "incident.json").read_text())
    assert record["step"] == 5 and record["sequences"] == [32, 40]
    assert record["first_bad"].startswith("logits and loss")
    page = (folder / "index.html").read_text()
    order = loader.windows(short.data, short.seed, 48)
    place = order.locate(37)
    assert f"window 37: words, epoch {place.epoch}, record {place.window}" in page
    assert page.count("<details>") == 8 and " the " in page
    assert f"gpt3jax verify {tmp_path} --replay 4:5" in page
    capsys.readouterr()
    assert verify(tmp_path, "4:5") == 1
    told = capsys.readouterr().out
    assert "not finite. First: logits and loss (microbatch 1 of 1)" in told
    assert verify(tmp_path, "5:8") == 0, "the other steps come out as they were logged"
    monkeypatch.undo()
    assert verify(tmp_path, "4:5") == 1
    again = re.search(r"BAD  step 5 +loss was None, is \d\.\d", capsys.readouterr().out)
    assert again, "a fault that does not come again"


def test_what_is_not_finite_for_ever_stops_the_run_with_a_finite_checkpoint(
    short, tmp_path, monkeypatch
):
    poison(monkeypatch, short, range(24, 64))
    with pytest.raises(NotFiniteError, match="3 steps in a row"):
        train(short, tmp_path)
    checkpoints = Checkpointer(tmp_path / "checkpoints")
    assert checkpoints.steps()[-1] >= 6
    last = checkpoints.manifest(checkpoints.steps()[-1])
    assert last.leaves == checkpoints.manifest(4).leaves, "as after step 3, the last good one"
    assert len(list((tmp_path / "incidents").iterdir())) == 1, "the first of them is kept"


def test_the_first_bad_tensor_is_found(model):
    def find(change, windows=None):
        params = randomised(model)
        change(params["layers"])
        mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
        with jax.set_mesh(mesh):
            given = np.arange(2 * 49).reshape(1, 2, 49) % 300 if windows is None else windows
            return nonfinite.first_bad(params, jnp.array(given, jnp.int32), 1, model)

    def put(name, layer, value):
        def change(layers):
            kernel = layers[name]["kernel"]
            layers[name]["kernel"] = kernel.at[(layer,) + (0,) * (kernel.ndim - 1)].set(value)

        return change

    assert find(put("up", 2, jnp.nan)) == "parameter layers/up/kernel, layer 2 (microbatch 1 of 1)"
    overflown = find(lambda layers: layers["down"].update(kernel=layers["down"]["kernel"]
                                                          .at[1].set(3e38)))  # fmt: skip
    assert overflown.startswith("residual stream after layer 1")
    assert find(lambda _: None).startswith("none any more")


def test_spikes_are_losses_far_above_the_recent_ones():
    draw = np.random.default_rng(0)
    spikes = Spikes()
    for value in 3 - np.arange(200) / 200 + 0.05 * draw.standard_normal(200):
        assert spikes.see(value) is None, "a loss that falls, with noise, is no spike"
    for value in 2 + 0.05 * draw.standard_normal(200):
        assert spikes.see(value) is None, "noise is no spike"
    found = spikes.see(5.0)
    assert found["mean"] == pytest.approx(2, abs=0.1)
    assert spikes.see(5.1) is not None, "a spike does not become usual"
    assert Spikes().see(1e9) is None, f"not before {FEWEST} steps"


def test_a_spike_is_told_and_recorded(short, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gpt3jax.train.monitor.loss_spikes.FEWEST", 3)
    poison(monkeypatch, short, [37], factor=100.0)
    train(short, tmp_path)
    (event,) = events(tmp_path, "spike")
    assert event["step"] == 5 and event["windows"] == [32, 40]
    assert event["loss"] > event["mean"] + 6 * event["deviation"]
    assert "is a spike" in capsys.readouterr().out


def test_divergence_is_a_loss_that_stays_worse_than_guessing():
    limit = math.log(300) + 1
    watch = Divergence(300)
    assert not any(map(watch.see, [5.5, *[limit - 0.01] * 50, *[9e9] * (LASTING - 1), 2.0]))
    assert watch.limit == limit
    assert [watch.see(776.0) for _ in range(20)] == [at == LASTING - 1 for at in range(20)]
    on_other_text = Divergence(300)
    assert not any(map(on_other_text.see, [12.0, *[12.5] * 50])), "as bad as the first step"
    resumed = Divergence(300, [{"step": 1, "loss": 5.9}])
    assert any(map(resumed.see, [776.0] * LASTING))


def test_divergence_is_said_when_it_happens_and_at_the_end(short, tmp_path, capsys):
    wild = changed(
        short, schedule={"peak_learning_rate": 5.0, "warmup_tokens": 0}, train={"steps": 40},
    )  # fmt: skip
    assert train_and_report(wild, tmp_path, 0.0, Changes(), time.time()) == 0
    (event,) = events(tmp_path, "diverged")
    printed = capsys.readouterr().out
    assert f"step {event['step']}: loss" in printed and "training has diverged" in printed
    before, after = (r["val_loss"] for r in Run(tmp_path).metrics() if "val_loss" in r)
    assert after > before
    assert f"the model got worse: the validation loss was {before:.3f} nats/token" in printed
    assert "finished: 40 steps" not in printed
    train_and_report(wild, tmp_path, 0.0, Changes(), time.time())
    assert "finished: 40 steps. To train further, raise --train.steps\n" in capsys.readouterr().out


def test_a_rewind_passes_over_batches_and_is_one_recorded_command(short, tmp_path, capsys):
    train(short, tmp_path)
    back = Changes(rewind_to=4, skip=3)
    outcome = train(short, tmp_path, changes=back)
    assert outcome.steps_taken == 4 and outcome.position.step == 8
    assert Run(tmp_path).skips()[0].windows == 24
    (event,) = events(tmp_path, "rewind")
    assert (event["step"], event["batches"], event["was_at"]) == (4, 3, 8)
    assert (tmp_path / "checkpoints" / "6.rewound").exists()
    logged = {record["step"]: record for record in Run(tmp_path).metrics()}
    assert logged[8]["sequences"] == 64, "what is passed over does not count as read"
    # Steps 5 to 8 have read what would have been steps 8 to 11.
    longer = changed(short, train={"steps": 11})
    assert verify(tmp_path, "4:8") == 0
    train(longer, tmp_path / "other")
    again = train(short, tmp_path, changes=back)
    assert again.steps_taken == 0, "a relaunch with the same words goes on"
    assert len(events(tmp_path, "rewind")) == 1
    more = train(short, tmp_path, changes=Changes(rewind_to=4, skip=5))
    assert more.steps_taken == 4 and [s.windows for s in Run(tmp_path).skips()] == [40]


def test_the_batches_that_are_passed_over_are_not_read(short, tmp_path, monkeypatch):
    """The windows of the skip are poison; the run that passes over them never meets it."""
    train(changed(short, train={"steps": 4}), tmp_path)
    poison(monkeypatch, short, range(32, 48))
    train(short, tmp_path, changes=Changes(rewind_to=4, skip=2))
    assert not events(tmp_path, "not finite")
    with pytest.raises(NotFiniteError):
        train(changed(short, train={"steps": 12, "batch_tokens": 4 * 48}), tmp_path / "meets")


def test_a_rewind_that_makes_no_sense_is_refused(short, tmp_path):
    with pytest.raises(ConfigError, match="is not a run"):
        train(short, tmp_path / "new", changes=Changes(rewind_to=2))
    train(changed(short, train={"steps": 4}), tmp_path)
    with pytest.raises(ConfigError, match=r"no checkpoint 3 to rewind to.* has \[2, 4\]"):
        train(short, tmp_path, changes=Changes(rewind_to=3))
    with pytest.raises(ConfigError, match="--skip is -1"):
        train(short, tmp_path, changes=Changes(rewind_to=2, skip=-1))
    with pytest.raises(ConfigError, match="--skip goes with --rewind-to"):
        train(short, tmp_path, changes=Changes(skip=5))
    assert not Run(tmp_path).skips()
