from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch

from dualfuse.config import JSON
from dualfuse.data.loader import Skipped
from dualfuse.errors import DualfuseError
from dualfuse.training.run_log import Log, SkippedLog, read_log


def _log(folder: Path, *, start: int = 0, steps: int = 10, state: JSON = None) -> Log:
    return Log(folder, steps=steps, start=start, state=state)


def _run(folder: Path, steps: range) -> None:
    """Logs every second step; the loss of step n is n, and n samples are counted."""
    with _log(folder, start=steps.start) as log:
        for step in range(steps.start + 1, steps.stop + 1):
            log.add({"loss": torch.tensor(float(step)), "count/samples": step})
            if step % 2 == 0:
                log.write(step, lr=0.5)


def test_means_sums_and_fixed_values(tmp_path: Path) -> None:
    with _log(tmp_path) as log:
        log.add({"loss": torch.tensor(1.0), "norm": 10.0, "count/samples": 8})
        log.add({"loss": torch.tensor([4.0], dtype=torch.bfloat16), "count/samples": torch.tensor(8)})
        log.write(2, lr=1e-4)
        (line,) = read_log(tmp_path)  # before the log is closed: a kill loses nothing that was written
        log.add({"loss": torch.tensor(7.0), "count/samples": 4, "count/skipped": 1})
        log.write(3)
        log.write_metrics(3, {"accuracy": 0.25})
    assert (line["step"], line["loss"], line["norm"], line["lr"], line["count/samples"]) == (2, 2.5, 10, 1e-4, 16)
    _, second, third = read_log(tmp_path)
    assert (second["loss"], second["count/samples"], second["count/skipped"]) == (7, 20, 1)
    assert "norm" not in second and second["samples_per_second"] > 0
    assert third == {"step": 3, "seconds": third["seconds"], "count/samples": 20, "count/skipped": 1, "accuracy": 0.25}
    assert line["seconds"] <= second["seconds"] <= third["seconds"]


def test_checkpoint_between_lines_continues_their_means_and_counts(tmp_path: Path) -> None:
    """Lines at 2 and 4; a checkpoint at 3 holds what step 3 added."""
    _run(tmp_path / "whole", range(4))
    with _log(tmp_path / "killed") as log:
        for step in (1, 2, 3):
            log.add({"loss": torch.tensor(float(step)), "count/samples": step})
            if step == 2:
                log.write(step, lr=0.5)
        state = json.loads(json.dumps(log.state()))
    with _log(tmp_path / "killed", start=3, state=state) as log:
        log.add({"loss": torch.tensor(4.0), "count/samples": 4})
        log.write(4, lr=0.5)
    first, second = (read_log(tmp_path / name) for name in ("whole", "killed"))
    assert [line["loss"] for line in second] == [1.5, 3.5] and second[1]["count/samples"] == 10
    assert [{**line, "seconds": 0, "samples_per_second": 0} for line in first] == [
        {**line, "seconds": 0, "samples_per_second": 0} for line in second
    ]
    assert second[1]["samples_per_second"] <= 7 / state["seconds_since"]


def test_metrics_between_lines_change_no_means(tmp_path: Path) -> None:
    with _log(tmp_path) as log:
        log.add({"loss": 1.0, "count/samples": 8})
        log.write_metrics(1, {"validation/accuracy": 0.5})
        log.add({"loss": 2.0, "count/samples": 8})
        log.write(2)
    first, second = read_log(tmp_path)
    assert first == {"step": 1, "seconds": first["seconds"], "validation/accuracy": 0.5}
    assert (second["loss"], second["count/samples"]) == (1.5, 16)


def _pass_time() -> None:
    end = time.perf_counter() + 0.05
    while time.perf_counter() < end:
        pass


def test_rate_by_the_lines_own_clock(tmp_path: Path) -> None:
    with _log(tmp_path) as log:
        for step in (1, 2):
            _pass_time()
            log.add({"count/samples": 500 * step})
            log.write(step)
    first, second = read_log(tmp_path)
    seconds = second["seconds"] - first["seconds"]
    assert seconds >= 0.049
    assert second["samples_per_second"] == pytest.approx(1000 / seconds, rel=0.05)


def test_many_half_precision_numbers_add_up(tmp_path: Path) -> None:
    with _log(tmp_path) as log:
        for _ in range(300):
            log.add({"loss": torch.ones((), dtype=torch.bfloat16)})
        log.write(1)
    assert read_log(tmp_path)[0]["loss"] == 1


def test_time_continues_after_a_resume(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 4, "seconds": 1000.0}\n{"step": 6, "seconds": 2000.0}\n')
    with _log(tmp_path, start=5) as log:
        log.write(6)
    assert [line["step"] for line in read_log(tmp_path)] == [4, 6]
    assert 1000 <= read_log(tmp_path)[1]["seconds"] < 1100


def test_without_counted_samples_the_rate_is_in_steps(tmp_path: Path) -> None:
    with _log(tmp_path) as log:
        log.write(4)
    (line,) = read_log(tmp_path)
    assert line["steps_per_second"] > 0 and "samples_per_second" not in line


def test_logged_tensor_may_change_later(tmp_path: Path) -> None:
    loss = torch.tensor(3.0, requires_grad=True)
    with _log(tmp_path) as log:
        log.add({"loss": loss})
        with torch.no_grad():
            loss.zero_()
        log.write(1)
    assert read_log(tmp_path)[0]["loss"] == 3


def test_values_that_are_not_finite_are_null_in_the_file(tmp_path: Path) -> None:
    with _log(tmp_path) as log:
        log.add({"loss": torch.tensor(math.nan), "norm": math.inf})
        log.write(1)
    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["loss"] is None and line["norm"] is None
    assert math.isnan(read_log(tmp_path)[0]["loss"])


def test_resumed_log_has_no_duplicates(tmp_path: Path) -> None:
    _run(tmp_path / "whole", range(10))
    _run(tmp_path / "killed", range(7))
    with (tmp_path / "killed" / "log.jsonl").open("a") as file:
        file.write('{"step": 8, "los')
    _run(tmp_path / "killed", range(4, 10))
    timeless = [
        [{key: value for key, value in line.items() if "second" not in key} for line in read_log(tmp_path / name)]
        for name in ("whole", "killed")
    ]
    assert timeless[0] == timeless[1]
    assert [line["loss"] for line in timeless[0]] == [1.5, 3.5, 5.5, 7.5, 9.5]
    assert [line["count/samples"] for line in timeless[0]] == [3, 10, 21, 36, 55]


def test_run_from_the_beginning_starts_a_new_log(tmp_path: Path) -> None:
    with _log(tmp_path) as log:
        log.write(0, accuracy=0.1)
    _run(tmp_path, range(2))
    assert [line["step"] for line in read_log(tmp_path)] == [2]
    assert read_log(tmp_path / "nowhere") == []


def test_damaged_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\nhello\n')
    with pytest.raises(ValueError, match=r"log\.jsonl contains a line that is not JSON"):
        _log(tmp_path, start=2)


def test_without_a_terminal_lines_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _run(tmp_path, range(4))
    lines = caplog.messages
    assert len(lines) == 2
    assert lines[0].startswith("step 2/10  loss 1.5  lr 0.5  ")
    assert "samples/second" in lines[0] and lines[0].endswith(" left")


def test_one_changing_line_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    _run(tmp_path, range(4))
    shown = capsys.readouterr().err
    assert "loss 1.5" in shown and "loss 3.5" in shown and " 4/10" in shown
    assert shown.count("\n") == 1


def test_skipped_samples_are_logged(tmp_path: Path) -> None:
    ledger = SkippedLog(tmp_path, 0)
    ledger.append(1, "coco/7", "the image has 0 bytes", "coco/9")
    ledger.append(3, "coco/8", 'it says "no"\n', "coco/1")
    assert ledger.count == 2
    ledger = SkippedLog(tmp_path, 2)
    assert ledger.count == 1
    ledger.append(4, "coco/2", "it is truncated", "coco/3")
    assert ledger.count == 2
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "key": "coco/7", "reason": "the image has 0 bytes", "replacement": "coco/9"},
        {"step": 4, "key": "coco/2", "reason": "it is truncated", "replacement": "coco/3"},
    ]
    assert SkippedLog(tmp_path, 0).count == 0


def _skip(number: int, reason: str) -> Skipped:
    return Skipped(f"a/{number}", reason, "a/0")


def test_skipped_samples_are_shown_with_the_most_frequent_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with _log(tmp_path) as log:
        for step, reasons in enumerate((("no text",), ("no image", "no text"), ()), start=1):
            log.add({"loss": 1.0, "count/samples": 8})
            log.add_skipped([_skip(number, reason) for number, reason in enumerate(reasons)])
            if step > 1:
                log.write(step)
    first, line, quiet, total = caplog.messages
    assert first == "sample a/0 is skipped: no text"
    assert line.endswith("3 of 19 samples skipped and replaced, mostly because: no text")
    assert "skipped" not in quiet
    assert total == f"3 of 27 samples skipped and replaced; {tmp_path / 'skipped.jsonl'} lists them"


@pytest.mark.parametrize(("samples", "skipped", "stops"), [(300, 100, True), (401, 100, False), (1, 99, False)])
def test_a_run_that_skips_too_many_samples_stops(tmp_path: Path, samples: int, skipped: int, stops: bool) -> None:
    with _log(tmp_path) as log:
        log.add({"count/samples": samples})
        log.add_skipped([_skip(number, "no text") for number in range(skipped)])
        log.write(1)
        log.check_skipped(1.0)
        if stops:
            with pytest.raises(DualfuseError, match=r"100 of 400 samples skipped.*run\.max_skipped_share \(0\.2\)"):
                log.check_skipped(0.2)
        else:
            log.check_skipped(0.2)
