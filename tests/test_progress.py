"""The live display: on a real pseudo-terminal, redirected, and with a clock that the test sets."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

from fedsim.results.progress import Pace, Progress, clock_text

SHOW, HIDE = "\x1b[?25h", "\x1b[?25l"  # the cursor


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def row(number: int, accuracy: float | None = None, loss: float | None = None, failed: int = 0) -> dict[str, object]:
    return {"round": number, "cohort_size": 10, "num_failed": failed, "accuracy": accuracy, "loss": loss}


def terminal(width: int = 120) -> Console:
    return Console(file=StringIO(), force_terminal=True, width=width, color_system=None)


def written(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def shown(progress: Progress, width: int = 120) -> str:
    """The two live lines as they would be drawn now."""
    console = terminal(width)
    console.print(progress._render())
    return written(console)


def test_the_lines_name_round_clients_accuracy_speed_and_time_left() -> None:
    clock = Clock()
    with Progress(total_rounds=10, console=terminal(), quiet=True, clock=clock) as progress:
        assert "round 1/10" in shown(progress) and "time left not known yet" in shown(progress)
        for number, accuracy in enumerate((0.2, 0.7, 0.65), start=1):
            clock.now += 2
            progress.round(row(number, accuracy, failed=number % 2))
        progress.cohort(4, 10)
        text = shown(progress)
    assert "round 4/10" in text and "clients 4/10" in text
    assert "accuracy 65.0% (best 70.0% in round 2)" in text
    assert "4.75 client-rounds/s" in text  # rounds 2 and 3: 10 + 9 clients in 4 seconds
    assert "0:06 elapsed, about 0:14 left" in text


def test_without_accuracy_the_loss_is_shown_and_lower_is_better() -> None:
    with Progress(total_rounds=3, console=terminal(), quiet=True, clock=Clock()) as progress:
        progress.round(row(1, None, 0.5))
        progress.round(row(2, float("nan"), 0.75))
        assert "loss 0.75 (best 0.5 in round 1)" in shown(progress)
        progress.round(row(3))
        assert "loss 0.75 (best 0.5 in round 1)" in shown(progress)


def test_the_lines_fit_a_narrow_terminal() -> None:
    with Progress(total_rounds=1000, console=terminal(40), quiet=True, clock=Clock()) as progress:
        progress.round(row(999, 0.123))
        lines = shown(progress, width=40).splitlines()
    assert len(lines) == 2 and all(len(line) <= 40 for line in lines)


def test_time_left_counts_evaluations_at_the_pace_that_they_come() -> None:
    clock = Clock()
    progress = Progress(total_rounds=100, console=terminal(), quiet=True, clock=clock)
    for number in range(1, 41):  # one second a round, and nine more in each tenth, which is evaluated
        clock.now += 10 if number % 10 == 0 else 1
        progress.round(row(number, 0.5 if number % 10 == 0 else None))
    assert progress.seconds_left() == pytest.approx(6 * (9 * 1 + 10))


def test_time_left_runs_down_within_a_round_and_no_further_than_that_round() -> None:
    clock = Clock()
    progress = Progress(total_rounds=3, console=terminal(), quiet=True, clock=clock)
    clock.now += 4
    progress.round(row(1))
    clock.now += 3
    assert progress.seconds_left() == pytest.approx(5)
    clock.now += 100
    assert progress.seconds_left() == pytest.approx(4)


def test_the_first_round_counts_only_until_there_is_another() -> None:
    pace = Pace()
    pace.add(60.0, 10, True)
    assert pace.seconds_per_round() == 60
    pace.add(2.0, 10, True)
    assert pace.seconds_per_round() == 2 and pace.clients_per_second() == 5


def test_a_resumed_run_goes_on_counting() -> None:
    with Progress(total_rounds=50, done_rounds=20, console=terminal(), quiet=True, clock=Clock()) as progress:
        assert "round 21/50" in shown(progress)


def test_off_a_terminal_only_messages_are_printed() -> None:
    console = Console(file=StringIO(), width=30)
    with Progress(total_rounds=2, console=console) as progress:
        progress.cohort(1, 2)
        progress.round(row(1, 0.5))
        progress.message("a [bold]message[/bold] that is longer than the console is wide")
    assert written(console) == "a [bold]message[/bold] that is longer than the console is wide\n"


def test_quiet_draws_nothing_on_a_terminal() -> None:
    console = terminal()
    with Progress(total_rounds=2, console=console, quiet=True) as progress:
        progress.round(row(1, 0.5))
    assert written(console) == ""


def test_the_terminal_is_restored_when_a_run_raises() -> None:
    console = terminal()
    with pytest.raises(RuntimeError, match="boom"), Progress(total_rounds=2, console=console):
        assert HIDE in written(console) and SHOW not in written(console)
        raise RuntimeError("boom")
    assert written(console).rindex(SHOW) > written(console).rindex(HIDE)


def test_log_handlers_are_given_their_stream_back(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    before = sys.stderr
    logging.getLogger().addHandler(handler)
    try:
        with Progress(total_rounds=2, console=terminal()):
            assert handler.stream is not before
        assert handler.stream is before and sys.stderr is before
    finally:
        logging.getLogger().removeHandler(handler)


SCRIPT = """
import logging, sys, time
from fedsim.results.progress import Progress
logging.basicConfig(stream=sys.stderr, format="%(message)s")
with Progress(total_rounds=2) as progress:
    print("result on stdout")
    logging.warning("a log line")
    progress.message("a message")
    progress.round({"round": 1, "cohort_size": 3, "num_failed": 0, "accuracy": 0.625, "loss": 1.0})
    time.sleep(0.3)
"""


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
def test_bars_go_to_stderr_and_prints_stay_in_a_redirected_stdout() -> None:
    import pty

    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=writer, env=environment)
    os.close(writer)
    drawn = b""
    try:
        while chunk := os.read(reader, 65536):
            drawn += chunk
    except OSError:  # Linux says so at the end of a pseudo-terminal
        pass
    finally:
        os.close(reader)
    text = drawn.decode()
    assert done.returncode == 0 and done.stdout == b"result on stdout\n"
    assert "round 2/2" in text and "accuracy 62.5%" in text and "a message" in text and "a log line" in text
    assert text.rindex(SHOW) > text.rindex(HIDE)


def test_forced_colours_do_not_make_a_log_file_a_terminal() -> None:
    environment = {**os.environ, "FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, env=environment, check=True)
    assert done.stderr.decode().splitlines() == ["a log line", "a message"]


def test_clock_text() -> None:
    assert [clock_text(s) for s in (0, 65, 3725)] == ["0:00", "1:05", "1:02:05"]


def test_closed_streams_are_no_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    with Progress(2) as progress:
        progress.round({"round": 1, "accuracy": 0.5, "loss": 1.0})
