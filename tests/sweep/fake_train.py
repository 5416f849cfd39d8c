"""Stands for `gpt3jax train`: FILE --run RUN --x X [--batches N] [--slow S].

Logs a validation loss of x^2 + 5 / (1 + k) at each of five evaluations k, resumes
from what is logged, and stops at SIGTERM with 143. An x over 5 diverges, x of 4 is
a mistake, and x of 3 fails.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

run, x = Path(sys.argv[3]), float(sys.argv[sys.argv.index("--x") + 1])
slow = float(sys.argv[sys.argv.index("--slow") + 1]) if "--slow" in sys.argv else 0.0
run.mkdir(parents=True, exist_ok=True)
(run / "pid").write_text(str(os.getpid()))
with (run / "starts").open("a") as file:
    file.write("x")
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
if x == 4:
    print("error: --x is 4: it cannot be. Use another")
    sys.exit(2)
metrics = run / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for k in range(done, 5):
    if x == 3 and k == 2:
        print("error: the disk is full. Make room")
        sys.exit(1)
    if x > 5 and k == 3:
        (run / "ledger.jsonl").write_text('{"event": "not finite"}\n{"event": "save"}\n')
        print("error: step 3: loss is nan. training diverged")
        sys.exit(1)
    with metrics.open("a") as file:
        loss = x * x + 5 / (1 + k)
        file.write(json.dumps({"step": k, "tokens": 100 * k, "val_loss": loss}) + "\n")
    deadline = time.monotonic() + 0.02 + slow
    while time.monotonic() < deadline and not stopped:
        time.sleep(0.01)
    if stopped:
        sys.exit(143)
