"""A cost profile for `--model mock`, fitted to what the steps of a real model took.

    python launch.py --model smollm2-135m --step-log steps.jsonl         and then some work for it
    python -m benchmark.fit_cost steps.jsonl [--toml my_model.toml]
    python launch.py --model mock --mock-profile my_model.toml

The model is `fixed + per_token * tokens + per_kv_token * kv_tokens`, with no coefficient below zero. What is made small
is the relative error: steps range from one decode to a prefill of thousands of tokens, and an absolute error would
be about the longest few alone, while a server spends its life in the short ones.

Steps of one lane are worked on one behind the other, so a step's time runs from its start, or from the end of the step
before it if that is later, to its own end. The log of a mock with several lanes does not tell what its steps took.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KEYS = ("started_ns", "finished_ns", "decodes", "prefill_tokens", "kv_tokens")
MIN_STEPS = 10
ITERATIONS = 50
# Residuals beyond 1.345 standard deviations count less, the more the further (Huber); it keeps 95 % of the precision
# that plain least squares has on errors without outliers.
HUBER = 1.345
MAD_TO_DEVIATION = 1.4826  # of a normal distribution: its standard deviation over its median absolute deviation
LEAST_BOUND = 1e-6  # relative; where most steps fit exactly, there is no deviation to go by

Array = NDArray[np.float64]


class FitError(ValueError):
    """A step log that cannot be read or fitted; the text says why and what to do."""


@dataclass(frozen=True)
class Steps:
    """The steps of a log that took any time, N of them."""

    shapes: Array  # [N, 3]: 1, tokens, kv_tokens
    durations_ms: Array  # [N]


@dataclass(frozen=True)
class Fit:
    """The coefficients, and how well they describe the steps that they were made from."""

    fixed_ms: float
    per_token_ms: float
    per_kv_token_ms: float
    num_steps: int
    median_relative_error: float
    r2: float  # share of the variance of the durations that the model explains
    total_ratio: float  # all predicted time over all measured time

    def toml(self, source: str) -> str:
        """A profile for `--mock-profile`; `source` is what its first line says that it was fitted to."""
        return (
            f"# Fitted to {source}: {self.num_steps} steps,\n"
            f"# median relative error {self.median_relative_error:.1%}, R2 {self.r2:.3f}.\n"
            "# What else could stand here is explained in model_proc/profiles/seed.toml.\n\n"
            "[step]\n"
            f"fixed_ms = {_decimal(self.fixed_ms)}\n"
            f"per_token_ms = {_decimal(self.per_token_ms)}\n"
            f"per_kv_token_ms = {_decimal(self.per_kv_token_ms)}\n"
        )


def read_steps(path: Path) -> Steps:
    """The steps of a log of `--step-log`. Raises FitError that names the line at fault."""
    rows: list[tuple[int, ...]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FitError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FitError(f"{path}: not text; it must be what --step-log has written") from None
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_row(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise FitError(f"{path}, line {number}: not a step of --step-log: {error!r}") from None
    table = np.array(rows, dtype=np.int64).reshape(-1, len(KEYS))
    started, finished, decodes, prefill_tokens, kv_tokens = table.T
    tokens = decodes + prefill_tokens
    before = np.concatenate([started[:1], finished[:-1]])
    durations = (finished - np.maximum(started, before)) / 1e6
    shapes = np.stack([np.ones(len(table)), tokens, kv_tokens], axis=1)
    took_time = durations > 0
    if took_time.sum() < MIN_STEPS:
        found = f"{took_time.sum()} steps that took any time"
        raise FitError(f"{path}: {found}; {MIN_STEPS} are the least to fit to: give the server more work")
    return Steps(shapes[took_time], durations[took_time])


def fit(steps: Steps) -> Fit:
    """The non-negative coefficients of least relative error, outliers aside.

    Iteratively reweighted least squares (Holland and Welsch, "Robust regression using iteratively reweighted
    least-squares", 1977): an error counts in relation to what is predicted, and by Huber's weights.
    """
    measured = steps.durations_ms
    coefficients = non_negative_least_squares(steps.shapes, measured, 1 / measured)
    for _ in range(ITERATIONS):
        predicted = _predict(steps, coefficients)
        errors = np.abs(measured / predicted - 1)
        bound = max(HUBER * MAD_TO_DEVIATION * float(np.median(errors)), LEAST_BOUND)
        weights = np.sqrt(bound / np.maximum(errors, bound)) / predicted
        previous = coefficients
        coefficients = non_negative_least_squares(steps.shapes, measured, weights)
        if np.allclose(coefficients, previous, rtol=1e-9, atol=0):
            break
    predicted = _predict(steps, coefficients)
    variance = float(np.sum((measured - measured.mean()) ** 2))
    fixed, per_token, per_kv_token = coefficients.tolist()
    return Fit(
        fixed_ms=fixed,
        per_token_ms=per_token,
        per_kv_token_ms=per_kv_token,
        num_steps=len(measured),
        median_relative_error=float(np.median(np.abs(predicted / measured - 1))),
        r2=1 - float(np.sum((measured - predicted) ** 2)) / variance if variance else 1.0,
        total_ratio=float(predicted.sum() / measured.sum()),
    )


def non_negative_least_squares(columns: Array, values: Array, weights: Array) -> Array:
    """The x >= 0 that makes the sum of (weights * (columns @ x - values))**2 smallest; columns [N, K], x [K].

    On the columns where the answer is not zero it is the ordinary least-squares solution of those columns. They are
    few here, so every set of them is tried.
    """
    scaled = columns * weights[:, None]
    target = values * weights
    best, least = np.zeros(columns.shape[1]), float(target @ target)
    for size in range(1, columns.shape[1] + 1):
        for chosen in combinations(range(columns.shape[1]), size):
            part = np.linalg.lstsq(scaled[:, chosen], target)[0]
            error = float(np.sum((scaled[:, chosen] @ part - target) ** 2))
            if error < least and (part >= 0).all():
                best, least = np.zeros(columns.shape[1]), error
                best[list(chosen)] = part
    return best


def _row(entry: dict[str, int]) -> tuple[int, ...]:
    row = tuple(int(entry[key]) for key in KEYS)
    if entry["decodes"] + entry["prefill_tokens"] < 1 or entry["kv_tokens"] < 1:
        raise ValueError("it computes nothing")
    return row


def _predict(steps: Steps, coefficients: Array) -> Array:
    return steps.shapes @ coefficients


def _decimal(number: float) -> str:
    """A number of milliseconds with four digits that count, as TOML writes it; a picosecond is nothing."""
    return repr(float(f"{number:.4g}")) if number >= 1e-9 else "0.0"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmark.fit_cost", description="Fit a profile of --model mock to the step log of a real model."
    )
    parser.add_argument("step_log", type=Path, help="what a server with --step-log FILE has written")
    parser.add_argument("--toml", type=Path, help="write a profile for --mock-profile to this file")
    args = parser.parse_args()
    try:
        result = fit(read_steps(args.step_log))
    except FitError as error:
        print(f"fit_cost: {error}", file=sys.stderr)
        return 2
    print(
        f"{result.num_steps} steps: {result.fixed_ms:.4g} ms + {result.per_token_ms:.4g} ms a token"
        f" + {result.per_kv_token_ms:.4g} ms a token of context\n"
        f"median relative error {result.median_relative_error:.1%}, R2 {result.r2:.3f},"
        f" predicted time over measured time {result.total_ratio:.3f}"
    )
    if args.toml:
        try:
            args.toml.write_text(result.toml(args.step_log.name), encoding="utf-8")
        except OSError as error:
            print(f"fit_cost: --toml {args.toml}: {error.strerror}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
