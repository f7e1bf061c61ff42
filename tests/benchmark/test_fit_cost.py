"""Fitting a cost profile to a step log: known coefficients come back, outliers or not, and the profile can be used."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.fit_cost import Fit, FitError, fit, main, non_negative_least_squares, read_steps
from model_proc.mock_cost import load_profile

FIXED, PER_TOKEN, PER_KV_TOKEN = 12.0, 0.5, 0.002


def log(
    path: Path,
    steps: int = 400,
    noise: float = 0.0,
    outliers: int = 0,
    coefficients: Any = (FIXED, PER_TOKEN, PER_KV_TOKEN),
) -> Path:
    """A step log of decodes with a prefill now and then, that takes what the coefficients say.

    Each step was launched while the one before it ran, as with a server that plans ahead.
    """
    rng = random.Random(4)
    fixed, per_token, per_kv_token = coefficients
    lines, now = [], 1_000_000_000
    for step in range(steps):
        decodes, prefill_tokens = rng.randrange(1, 30), rng.choice([0, 0, 0, rng.randrange(1, 500)])
        kv_tokens = decodes * rng.randrange(20, 400) + prefill_tokens
        ms = fixed + per_token * (decodes + prefill_tokens) + per_kv_token * kv_tokens
        ms *= 1 + rng.uniform(-noise, noise)
        ms *= 40 if step < outliers else 1
        started, now = now - 3_000_000 * (step > 0), now + round(ms * 1e6)
        lines.append(
            json.dumps(
                {
                    "step": step, "planned_ns": started - 1, "started_ns": started, "finished_ns": now,
                    "decodes": decodes, "prefills": int(prefill_tokens > 0), "prefill_tokens": prefill_tokens,
                    "kv_tokens": kv_tokens, "waiting": 0, "running": decodes,
                }
            )
        )  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return path


def coefficients(found: Fit) -> list[float]:
    return [found.fixed_ms, found.per_token_ms, found.per_kv_token_ms]


class TestReading:
    def test_a_step_begins_when_it_is_launched_or_when_the_one_before_it_ends(self, tmp_path: Path) -> None:
        rows = [(100, 140), (120, 150), (400, 420), (410, 425)] * 5
        lines = [
            json.dumps({"started_ns": (s + k // 4 * 1000) * 10**6, "finished_ns": (f + k // 4 * 1000) * 10**6,
                        "decodes": k, "prefill_tokens": 5, "kv_tokens": 7 + k})
            for k, (s, f) in enumerate(rows)
        ]  # fmt: skip
        path = tmp_path / "steps.jsonl"
        path.write_text("\n".join(lines))
        steps = read_steps(path)
        assert steps.durations_ms.tolist() == [40, 10, 20, 5] * 5
        assert steps.shapes[3].tolist() == [1, 8, 10]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "0 steps"),
            ("nonsense", "line 1"),
            ('{"started_ns": 1}', "line 1"),
            ("[1, 2]", "line 1"),
            ('{"started_ns":1,"finished_ns":2,"decodes":null,"prefill_tokens":0,"kv_tokens":1}', "line 1"),
            ('{"started_ns":1,"finished_ns":2,"decodes":0,"prefill_tokens":0,"kv_tokens":0}', "line 1"),
            ('{"started_ns":1,"finished_ns":1,"decodes":1,"prefill_tokens":0,"kv_tokens":1}\n' * 40, "0 steps"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, tmp_path: Path, text: str, words: str) -> None:
        path = tmp_path / "steps.jsonl"
        path.write_text(text)
        with pytest.raises(FitError) as caught:
            read_steps(path)
        assert str(caught.value).startswith(f"{path}")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_no_file_and_no_text(self, tmp_path: Path) -> None:
        with pytest.raises(FitError, match="No such file"):
            read_steps(tmp_path / "none.jsonl")
        (tmp_path / "bytes").write_bytes(b"\xff\xfe")
        with pytest.raises(FitError, match="not text"):
            read_steps(tmp_path / "bytes")


class TestFitting:
    def test_exact_steps_give_the_exact_coefficients(self, tmp_path: Path) -> None:
        found = fit(read_steps(log(tmp_path / "steps.jsonl")))
        assert coefficients(found) == pytest.approx([FIXED, PER_TOKEN, PER_KV_TOKEN], rel=1e-3)
        assert found.num_steps == 400
        assert found.median_relative_error < 1e-6
        assert found.r2 == pytest.approx(1.0)
        assert found.total_ratio == pytest.approx(1.0)

    def test_the_first_steps_may_be_far_off(self, tmp_path: Path) -> None:
        found = fit(read_steps(log(tmp_path / "steps.jsonl", noise=0.1, outliers=20)))
        assert coefficients(found) == pytest.approx([FIXED, PER_TOKEN, PER_KV_TOKEN], rel=0.1)
        assert 0.03 < found.median_relative_error < 0.07  # half of the noise
        assert found.total_ratio < 0.5  # the outliers are measured time as well

    def test_noise_does_not_shift_the_whole(self, tmp_path: Path) -> None:
        found = fit(read_steps(log(tmp_path / "steps.jsonl", noise=0.3)))
        assert found.total_ratio == pytest.approx(1.0, abs=0.03)

    def test_a_cost_that_is_not_there_is_zero_and_never_below(self, tmp_path: Path) -> None:
        found = fit(read_steps(log(tmp_path / "steps.jsonl", noise=0.2, coefficients=(12.0, 0.5, 0.0))))
        assert found.per_kv_token_ms >= 0
        assert coefficients(found)[:2] == pytest.approx([12.0, 0.5], rel=0.1)

    def test_non_negative_least_squares_where_the_plain_solution_is_negative(self) -> None:
        columns = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
        falling = np.array([3.0, 2.0, 1.0])  # plainly: 4 - x
        assert non_negative_least_squares(columns, falling, np.ones(3)).tolist() == pytest.approx([2.0, 0.0])
        assert non_negative_least_squares(columns, -falling, np.ones(3)).tolist() == [0.0, 0.0]
        weights = np.array([1.0, 0.0, 1.0])
        assert non_negative_least_squares(columns, falling + 9, weights).tolist() == pytest.approx([11.0, 0.0])

    def test_no_step_of_a_neighbourhood_is_better(self) -> None:
        rng = np.random.default_rng(1)
        for _ in range(50):
            columns, values = rng.normal(size=(12, 3)), rng.normal(size=12)
            weights = rng.uniform(0.1, 2.0, size=12)
            best = non_negative_least_squares(columns, values, weights)
            slope = columns.T @ (weights**2 * (columns @ best - values))
            # What a minimum under x >= 0 must fulfil (Karush, Kuhn and Tucker).
            assert (best >= 0).all()
            assert slope[best > 0] == pytest.approx(0, abs=1e-9)
            assert (slope[best == 0] >= -1e-9).all()


class TestCommand:
    def run(self, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["fit_cost", *map(str, arguments)])
        return main()

    def test_the_profile_that_it_writes_can_be_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        toml = tmp_path / "mine.toml"
        assert self.run(monkeypatch, log(tmp_path / "steps.jsonl"), "--toml", toml) == 0
        out = capsys.readouterr().out
        assert "400 steps: 12 ms + 0.5 ms a token + 0.002 ms a token of context" in out
        assert "R2 1.000" in out
        step = load_profile(str(toml)).step
        assert (step.fixed_ms, step.per_token_ms, step.per_kv_token_ms) == (FIXED, PER_TOKEN, PER_KV_TOKEN)

    def test_tiny_coefficients_are_written_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        toml = tmp_path / "mine.toml"
        path = log(tmp_path / "steps.jsonl", coefficients=(0.5, 0.0, 3e-5))
        assert self.run(monkeypatch, path, "--toml", toml) == 0
        assert load_profile(str(toml)).step.per_kv_token_ms == pytest.approx(3e-5, rel=0.05)

    def test_what_goes_wrong_is_one_line_and_exit_code_2(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(monkeypatch, tmp_path / "none.jsonl") == 2
        assert "none.jsonl: No such file" in capsys.readouterr().err
        path = log(tmp_path / "steps.jsonl")
        assert self.run(monkeypatch, path, "--toml", tmp_path / "no" / "folder.toml") == 2
        assert "folder.toml: No such file" in capsys.readouterr().err
