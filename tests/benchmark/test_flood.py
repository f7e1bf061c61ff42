"""The flood benchmark: every request is answered, and what it reports adds up. Its times are for a quiet machine."""

from __future__ import annotations

from pathlib import Path

from benchmark.flood import SEQS, STEP_MS, TOKENS, arithmetic_s, failures, measure
from benchmark.server import Server


def test_everybody_is_answered(tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text("[step]\nfixed_ms = 1.0\n")
    with Server(
        model="mock", max_num_seqs=SEQS, max_num_queued_reqs=16, mock_profile=str(tmp_path / "profile.toml")
    ) as server:
        found = measure(server, 400)
    for result in found["floods"]:
        assert sum(result["statuses"].values()) == 400
        assert set(result["statuses"]) == {"200", "429"}
        assert result["unanswered"] == 0
    refused = sum(result["statuses"]["429"] for result in found["floods"])
    assert found["refusal_seconds"]["+Inf"] == refused
    assert not [failure for failure in failures(found) if "no answer" in failure or "statuses" in failure]


def test_the_arithmetic_of_the_queue() -> None:
    times = arithmetic_s(SEQS + 1)
    assert times[0] == times[SEQS - 1] == STEP_MS / 1000
    assert times[SEQS] == times[0] + TOKENS * STEP_MS / 1000
