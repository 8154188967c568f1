#!/usr/bin/env bash
# Ray prints a dead node's log on the driver's standard output, with log_to_driver=False too.
#
# Packages: ray 2.60.0; a "cluster" of two nodes as processes of this machine, of which one is ended.
# Expected: ray.init(log_to_driver=False, logging_level="ERROR") leaves the standard output of a program to the program.
# Seen: when a raylet ends unexpectedly, its report with the last twenty lines of its log (some 2,000 characters), and one line for each task that it ran, come
#   on stdout, whatever the logging level: they arrive as error messages, for which the setting does not count, and are printed with `is_err: False`.
# Why it matters here: the launcher's standard output is the result of the study, and its terminal shows the study. `launcher=ray` logs the
#   first line instead.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install ray==2.60.0
cat > "$folder/driver.py" <<'PY'
import sys
import time

import ray
from ray.cluster_utils import Cluster

small = {"object_store_memory": 80_000_000, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
node = cluster.add_node(num_cpus=1, **small)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")


@ray.remote(num_cpus=1, max_retries=0)
def work() -> None:
    time.sleep(120)


task = work.remote()
time.sleep(10)
cluster.remove_node(node, allow_graceful=False)
try:
    ray.get(task, timeout=100)
except ray.exceptions.RayError as err:
    print(type(err).__name__, file=sys.stderr)
time.sleep(5)
ray.shutdown()
cluster.shutdown()
PY
"$folder/venv/bin/python" "$folder/driver.py" >"$folder/stdout" 2>"$folder/stderr" || { cat "$folder/stderr"; exit 1; }
lines=$(grep -c . "$folder/stdout" || true)
echo "ray 2.60.0: the driver printed nothing, and its standard output has $lines lines, of them $(grep -c raylet "$folder/stdout" || true) of a raylet"
grep -q "Raylet is terminated" "$folder/stdout" || { echo "changed: a dead node is not reported on stdout"; exit 1; }
echo "as described"
