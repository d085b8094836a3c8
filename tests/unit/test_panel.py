"""The demo's live view: never in the way, whatever the trainer has said so far."""

import io
import json

import pytest
from rich.console import Console

from pipeline.demo.panel import Display, View, last_version, line

STATUS = {
    "phase": "training",
    "rows_trained": 123_456,
    "rows_per_second": 8_765.4,
    "lag": 321,
    "waiting": 654,
    "label_delay_ms": 3.2 * 3_600_000,
    "metrics": {"live/auc": 0.7123, "live/auc_recent": 0.71, "frozen/auc": 0.6123, "drift/psi_max": 1.5},
    "alarms": 7,
    "dead_letters": 42,
    "snapshot": {"sequence": 11},
    "hold": None,
}
SHOWN = ("123,456", "8,765", "321", "654", "3.2 h", "0.7123", "0.6123", "7", "42", "11", "22 Jul 2013")


def screen(tmp_path, status, *, terminal):
    (tmp_path / "status.json").write_text(status)
    (tmp_path / "job.log").write_text(
        "registered version 3 of flights: 1 rows\nregistered version 4 of flights: 2 rows\n"
    )
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, height=40, color_system=None)
    view = View("127.0.0.1:9092", "apache-kafka 4.1.1", produced=5, total=10, time_ms=1_374_500_000_000)
    with Display(view, tmp_path, tmp_path / "job.log", console) as display:
        display.show(now=True)
        display.show()  # not due: adds nothing
    return console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_all_that_the_trainer_says_is_shown(tmp_path, terminal):
    shown = screen(tmp_path, json.dumps(STATUS), terminal=terminal)
    for text in (*SHOWN, "4"):
        assert text in shown
    assert ("╭" in shown) == terminal


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("status", ["", "{}", '{"metrics": null, "snapshot": null}'])
def test_what_is_not_known_yet_is_a_dash(tmp_path, status, terminal):
    assert "–" in screen(tmp_path, status, terminal=terminal)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_hold_is_shown_with_its_reason(tmp_path, terminal):
    held = STATUS | {"hold": "too much bad input"}
    assert "too much bad input" in screen(tmp_path, json.dumps(held), terminal=terminal)


def test_without_a_terminal_each_view_is_one_line(tmp_path):
    assert screen(tmp_path, json.dumps(STATUS), terminal=False).count("\n") == 1


def test_a_producer_that_waits_says_so():
    assert "producer waits" in line(View("b", "k", producer_waits=True), 1.0)


def test_no_log_means_no_version_yet(tmp_path):
    assert last_version(tmp_path / "job.log") is None
