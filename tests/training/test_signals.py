"""What a scheduler sends, to the command as it is started by hand: it saves, leaves, and says which signal it was."""

from __future__ import annotations

import multiprocessing
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import at_step

from dualfuse.cli import main as cli
from dualfuse.cli.console import echo
from dualfuse.training import checkpoint, loop
from dualfuse.training.run_log import read_log
from dualfuse.training.signals import LAUNCHER, outlive_terminal, stop_requested

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("number", "code", "workers", "group"),
    [(signal.SIGTERM, 143, 2, True), pytest.param(signal.SIGINT, 130, 0, False, marks=pytest.mark.slow)],
    ids=["SIGTERM to all its processes", "Ctrl-C"],
)
def test_signal_of_a_scheduler_stops_with_its_exit_code(
    tmp_path: Path, number: int, code: int, workers: int, group: bool
) -> None:
    """Slurm, Kubernetes and ``timeout`` expect 128 and the number of the signal."""
    command = [sys.executable, "-m", "dualfuse", "train", "ten-seconds", "--out", str(tmp_path), "--run.steps", "5000"]
    command += ["--run.log-every", "1", "--run.save-every", "5000", "--data.num-workers", str(workers)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stderr is not None
        next(line for line in run.stderr if line.startswith("step 2/"))
        os.killpg(run.pid, number) if group else run.send_signal(number)
        said = run.stderr.read()
    assert run.returncode == code, said
    last = int(read_log(tmp_path)[-1]["step"])
    assert f"interrupted: stopped after step {last}; run the same command to resume" in said
    assert "Traceback" not in said
    assert checkpoint.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / f"step-{last:08d}"


@pytest.mark.slow
def test_closed_terminal_does_not_end_a_run(tmp_path: Path) -> None:
    """As after ssh: SIGHUP to all its processes, and no terminal to write to; SIGTERM stops it as before."""
    command = [sys.executable, "-m", "dualfuse", "train", "ten-seconds", "--out", str(tmp_path), "--run.steps", "5000"]
    command += ["--run.log-every", "1", "--run.save-every", "5000", "--data.num-workers", "1"]
    process, terminal = pty.fork()
    if not process:
        os.chdir(ROOT)
        os.execv(command[0], command)

    def wait_for(steps: int, read: bool) -> int:
        deadline = time.monotonic() + 60
        while (seen := len(read_log(tmp_path))) < steps and time.monotonic() < deadline:
            if read and select.select([terminal], [], [], 0)[0]:
                os.read(terminal, 1 << 16)
            time.sleep(0.02)
        return seen

    try:
        seen = wait_for(2, read=True)
        os.close(terminal)  # the kernel sends SIGHUP to the processes of the terminal
        assert wait_for(seen + 3, read=False) >= seen + 3
    finally:
        os.kill(process, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 143
    assert (tmp_path / "last" / "model.safetensors").is_file()


@pytest.mark.slow  # test_cli.py has a reader of the output that goes away
def test_lost_stderr_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk, or closed from the beginning."""
    command = [sys.executable, "-m", "dualfuse", "train", "ten-seconds", "--out", str(tmp_path), "--run.steps", "1"]
    lost = ["sh", "-c", '"$@" 2>/dev/full >&-', "sh", *command]
    assert subprocess.run(lost, cwd=ROOT, check=False).returncode == 0
    assert read_log(tmp_path)[-1]["step"] == 1
    monkeypatch.setattr(sys, "stderr", None)
    echo("nowhere", to_stderr=True)


def test_hangup_under_torchrun_is_a_request_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It kills its processes half a minute later."""
    monkeypatch.setenv(LAUNCHER, "none")
    with outlive_terminal(), stop_requested() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal_number == signal.SIGHUP
    monkeypatch.delenv(LAUNCHER)
    with outlive_terminal(), stop_requested() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal_number == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_killed_loader_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when memory runs out: the command says so, and what to do."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(loop, "seed_step", at_step(2, lambda: multiprocessing.active_children()[0].kill()))
    assert cli.main(["train", "ten-seconds", "--out", str(tmp_path), "--data.num-workers", "1"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dualfuse train: a data loader process has died") and "memory" in last
    assert "DataLoader worker (pid" in last
