"""Profile files of the mock: what they say, and what is wrong with those that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipc.process import FatalError
from model_proc.mock_cost import PROFILES, ItemCost, Profile, StepCost, load_profile

BUILT_IN = ["gpu", "instant", "linear", "seed"]


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_the_built_in_ones_are_the_files_of_the_folder() -> None:
    assert sorted(path.stem for path in PROFILES.iterdir()) == BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_one_is_the_same_by_name_and_by_file(name: str) -> None:
    assert load_profile(name) == load_profile(str(PROFILES / f"{name}.toml"))


def test_the_seed() -> None:
    prefill = ItemCost(random_ms=(10, 30), tokens_per_ms=4, min_ms=10, max_ms=180)
    assert load_profile("seed") == Profile(
        seed=1, silent_prefill=True, prefill=prefill, decode=ItemCost(random_ms=(5, 20))
    )


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    text = "seed = 7\n[step]\nfixed_ms = 2\nper_kv_token_ms = 1e-4\n[decode]\nrandom_ms = [1, 1]\nmax_ms = 3\n"
    expected = Profile(
        seed=7, step=StepCost(fixed_ms=2.0, per_kv_token_ms=1e-4), decode=ItemCost(random_ms=(1, 1), max_ms=3)
    )
    assert load_profile(write(tmp_path, text)) == expected


def test_an_empty_file_costs_nothing(tmp_path: Path) -> None:
    assert load_profile(write(tmp_path, "")) == Profile()


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("speed = 1", "speed", "silent_prefill"),
        ("[step]\nfixed = 1", "step.fixed", "fixed_ms"),
        ("[decode]\nper_token_ms = 1", "decode.per_token_ms", "tokens_per_ms"),
        ("[[prefill]]\nmin_ms = 1", "prefill", "table"),
        ("step = 5", "step", "table"),
        ("seed = -1", "seed", "-1"),
        ("seed = true", "seed", "True"),
        ("seed = 1.5", "seed", "1.5"),
        ("silent_prefill = 1", "silent_prefill", "true or false"),
        ("[step]\nfixed_ms = -0.5", "step.fixed_ms", "-0.5"),
        ("[step]\nfixed_ms = true", "step.fixed_ms", "True"),
        ('[step]\nper_token_ms = "1"', "step.per_token_ms", "'1'"),
        ("[step]\nper_kv_token_ms = nan", "step.per_kv_token_ms", "nan"),
        ("[step]\nfixed_ms = inf", "step.fixed_ms", "inf"),
        ("[prefill]\ntokens_per_ms = 0", "prefill.tokens_per_ms", "at least 1"),
        ("[prefill]\ntokens_per_ms = 0.25", "prefill.tokens_per_ms", "0.25"),
        ("[prefill]\nmin_ms = -1", "prefill.min_ms", "-1"),
        ("[prefill]\nmin_ms = 5\nmax_ms = 4", "prefill.max_ms", "min_ms"),
        ("[decode]\nrandom_ms = 5", "decode.random_ms", "[lowest, highest]"),
        ("[decode]\nrandom_ms = [5]", "decode.random_ms", "[lowest, highest]"),
        ("[decode]\nrandom_ms = [20, 5]", "decode.random_ms", "[lowest, highest]"),
        ("[decode]\nrandom_ms = [-5, 5]", "decode.random_ms", "-5"),
        ("[decode]\nrandom_ms = [0.5, 5]", "decode.random_ms", "0.5"),
        ("seed 1", "", "line 1"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, key: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(FatalError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert message.startswith(f"--mock-profile {path}: {key}")
    assert words in message
    assert "\n" not in message


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FatalError, match=r"mine\.toml"):
        load_profile(str(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=r"none\.toml: No such file"):
        load_profile(str(tmp_path / "none.toml"))


def test_a_name_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(FatalError, match="'fast' is none of gpu, instant, linear, seed"):
        load_profile("fast")
