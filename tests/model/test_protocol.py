"""The whole model check. `python -m tests.model.protocol -v` tells the story of each broken rule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.model import checker, protocol


@pytest.mark.parametrize("scope", protocol.SCOPES)
def test_no_state_breaks_a_promise(scope: str) -> None:
    result = protocol.check(protocol.SCOPES[scope])
    assert result.violation is None, protocol.story(result)


@pytest.mark.parametrize("rule", protocol.RULES)
def test_each_rule_is_missed_when_it_is_broken(rule: str) -> None:
    scope, _ = protocol.RULES[rule]
    assert protocol.check(protocol.SCOPES[scope], rule).violation is not None


def test_the_command_fails_if_a_promise_is_broken_or_a_rule_is_not_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = protocol.SCOPES["late versions"]
    bad = replace(good, without=frozenset({"blobs_first"}))
    monkeypatch.setattr(protocol, "SCOPES", {"good": good, "bad": bad})
    monkeypatch.setattr(protocol, "RULES", {"reconcile": ("good", ""), "manifest_fsync": ("good", "")})
    assert protocol.main(["-o", "json"]) == 4
    found = json.loads(capsys.readouterr().out)
    assert (found["violations"], found["caught"], found["of"]) == (1, 1, 2)
    assert found["mutations"]["no_reconcile"]["caught"]
    assert not found["mutations"]["no_manifest_fsync"]["caught"]


def test_the_search_is_whole_and_finds_the_shortest_trace() -> None:
    def steps(state: int) -> Iterator[tuple[str, int]]:
        yield from [("double", 2 * state), ("add", state + 1)] if state < 8 else []

    def faults(state: int) -> Iterator[tuple[str, int]]:
        yield "reset", 1

    def fine(_: int) -> None:
        return None

    result = checker.search(1, steps, faults, fine, fine)
    assert (result.states, result.violation) == (11, None)  # 1 to 8, then 10, 12 and 14
    ten = checker.search(1, steps, faults, lambda state: "ten" if state == 10 else None, fine)
    assert ten.trace == ("double", "double", "add", "double")
    final = checker.search(1, steps, faults, fine, lambda state: "large" if state > 8 else None)
    assert (final.violation, final.trace[-1]) == ("large", "double")
