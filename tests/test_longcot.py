"""The section on long chains of thought: which arm starts where and gets what, and a tiny run of all of it."""

import json

import pytest

from nanoreason.experiments import longcot as section
from nanoreason.experiments.reproduce import reproduce


@pytest.mark.parametrize("preset", section.PRESETS)
def test_every_arm_starts_from_the_right_policy_and_rewards_what_its_name_says(preset):
    chosen, arms = section.PRESETS[preset], {arm.name: arm for arm in section.arms(preset, 0)}
    largest, L = max(chosen.sizes), chosen.window
    for form, modes in section.FORMS.items():
        for size in chosen.sizes:
            config = arms[f"{form}-{size}"].settings
            assert (config.pool, config.modes, arms[f"{form}-{size}"].base) == (size, modes, "base")
            assert config.steps * config.rows_per_step == chosen.epochs * size * len(config.digits)
            assert config.warmup < config.steps
            samples = arms[f"{form}-{size}-samples"]
            assert samples.settings.steps == 0 and samples.settings.eval_samples and samples.base == f"{form}-{size}"
    starts = {"rl-base": "base", "rl-short": f"short-{largest}"}
    trained = {name: arm.settings for name, arm in arms.items() if arm.recipe == "grpo" and arm.settings.steps}
    for name, config in trained.items():
        assert arms[name].base == starts.get(name, f"long-{largest}")
        assert config.eval_samples and config.max_new_tokens <= chosen.base.context - 16  # room for the prompt
    windows = {name: config.max_new_tokens for name, config in trained.items()}
    assert [windows.pop(f"classic-{L * k}") for k in (1, 2, 4)] == [L, 2 * L, 4 * L]
    assert windows.pop("rl-base") == windows.pop("rl-short") == 4 * L
    assert set(windows.values()) == {2 * L}
    classic = {name for name, config in trained.items() if config.length_reward == "classic"}
    assert classic == {"rl-base", "rl-short", *section.windows(preset)}
    assert all(config.length_reward == "cosine" for name, config in trained.items() if name not in classic)
    repetition = {name for name, config in trained.items() if config.repetition == "dense"}
    assert repetition == {"repetition", "hack-repetition"}
    assert {name for name, config in trained.items() if config.unsolvable == 1} == {"hack", "hack-repetition"}
    assert trained["cosine"].cosine_right == (2.0, 1.0) and trained["cosine"].cosine_wrong == (-10.0, 0.0)
    assert trained["shape-a"].cosine_right == (0.0, 10.0) and trained["shape-a"].cosine_wrong == (0.0, 0.0)


def test_reproduce_runs_every_arm_at_tiny_size_and_leaves_numbers_and_the_figure(tmp_path):
    summary = reproduce("longcot", "tiny", 1, tmp_path / "out", device="cpu", workers=1)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert (tmp_path / "out" / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert {"rl-base", "cosine", "hack-repetition", "long-16-samples"} <= summary["numbers"].keys()
    assert all(line["mean"] is not None or not line["passed"] for line in summary["claims"])
