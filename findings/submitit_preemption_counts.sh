#!/usr/bin/env bash
# submitit counts the preemption of a short job as a time-out, and gives the job up after the fourth.
#
# Packages: submitit 1.5.4; no Slurm is needed, since its local executor runs the same signal handler.
# Expected: a job that is preempted is put into the queue again, however often; `max_num_timeout` (3) counts "after timeout" only. A job of
#   ten minutes that is preempted a few seconds after each start has used a hundredth of its time, so it goes on.
# Seen: the handler calls a job timed out from min(80 % of its limit, its limit minus ten minutes) on. With a limit of ten minutes or less that is
#   zero, so every preemption counts; the fourth ends the job with "timed-out too many times". With a longer limit the last 20 % count.
# Why it matters here: short jobs are what one submits to a queue that preempts. `launcher=slurm` sets max_num_timeout out of reach.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install submitit==1.5.4
cat > "$folder/preempt.py" <<'PY'
import importlib.metadata
import os
import signal
import sys
import time
from pathlib import Path

import submitit


class Work:
    def __init__(self, starts: str):
        self.starts = starts

    def __call__(self) -> str:
        with open(self.starts, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(20)
        return "done"

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        return submitit.helpers.DelayedSubmission(Work(self.starts))


def pids() -> list[int]:
    return [int(line) for line in starts.read_text().split()] if starts.exists() else []


folder = Path(sys.argv[1])
starts = folder / "starts"
executor = submitit.LocalExecutor(folder / "jobs")
executor.update_parameters(timeout_min=10)
job, preemptions = executor.submit(Work(str(starts))), 0
began = time.monotonic()
while preemptions < 4:  # each as soon as the job runs (again)
    while len(pids()) <= preemptions:
        assert time.monotonic() - began < 300
        time.sleep(0.1)
    time.sleep(0.5)
    preemptions += 1
    os.kill(pids()[-1], signal.SIGUSR2)
error = job.exception()
print(f"submitit {importlib.metadata.version('submitit')}: {preemptions} preemptions in {time.monotonic() - began:.0f} s of a job of 600 s")
assert error is not None and "timed-out too many times" in str(error), "changed: a preempted job goes on"
assert len(pids()) == 4, "changed: another number of starts"
PY
"$folder/venv/bin/python" "$folder/preempt.py" "$folder"
echo "as described"
