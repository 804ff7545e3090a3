"""The Slurm script of docs/many-gpus.md, run with substitutes for srun and scontrol."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for number in 0 1; do SLURM_PROCID=$number SLURM_LOCALID=$number SLURM_NTASKS=2 "$@" & pids+=($!); done
trap 'kill -TERM "${pids[@]}"' TERM
status=0
for pid in "${pids[@]}"; do
    while true; do  # a trap ends wait early
        wait $pid; ended=$?
        kill -0 $pid 2> /dev/null || break
    done
    [ $ended = 0 ] || status=$ended
done
exit $status
"""
SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then echo localhost; else echo "$@" >> "$REQUESTS"; fi
"""


def script(shared: Path) -> str:
    """Return the script of docs/many-gpus.md with its placeholders filled in and a recipe of a few seconds."""
    (text,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", (ROOT / "docs/many-gpus.md").read_text(), re.DOTALL)
    filled = {
        "/YOUR/SHARED/FOLDER": str(shared),
        "source /YOUR/VIRTUAL/ENVIRONMENT/bin/activate": f"PATH={Path(sys.executable).parent}:$PATH",
        "vlmo-base-pairs": "ten-seconds",
        "pairs/train-*.tar": "pairs/*-train-*.tar",
        "--data.num-workers 6": "--data.num-workers 1",
    }
    for name, value in filled.items():
        assert text.count(name) == 1, name
        text = text.replace(name, value)
    return text


@pytest.mark.slow
def test_signaled_job_is_requeued_and_resumes(tmp_path: Path) -> None:
    """The signal of Slurm leads to a checkpoint, status 143 and a requeue; the second run finishes."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("train.sbatch", script(tmp_path))):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "pairs").symlink_to(ROOT / "examples/openpics-mini")
    requests, out = tmp_path / "requests", tmp_path / "runs/base"
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "REQUESTS": str(requests),
        "SLURM_JOB_NODELIST": "node[1-1]",
        "SLURM_JOB_ID": str(os.getpid()),
    }
    first = subprocess.Popen(["bash", tmp_path / "train.sbatch"], env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    subprocess.run(["pkill", "-TERM", "-g", str(first.pid), "-f", "srun"], check=True)
    assert first.wait(120) == 143
    assert requests.read_text() == f"requeue {os.getpid()}\n"
    assert list((out / "checkpoints").glob("step-*")) and not (out / "final").exists()
    again = subprocess.run(["bash", tmp_path / "train.sbatch"], env=environment, check=False)
    assert again.returncode == 0 and (out / "final/model.safetensors").exists()
    assert requests.read_text().count("\n") == 1
