"""Settings and the run folder: the command line is the dataclass, logs survive a kill, resuming is honest."""

import dataclasses
import importlib
import json
import re
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoreason.__main__ import RECIPES as RECIPE_NAMES
from nanoreason.__main__ import SECTIONS
from nanoreason.recipes import star
from nanoreason.run import Run, RunConfig, field_comments, parse_config, pick_device, read_jsonl, replace_text, table

RECIPES = {name: importlib.import_module(f"nanoreason.recipes.{name}") for name in RECIPE_NAMES}


def values_of(kind):
    """A hypothesis strategy for a field's type."""
    words = st.text("abc/_.-", min_size=1).filter(lambda text: text != "--")  # argparse drops it, even behind a "="
    numbers = {int: st.integers(-5, 10**6), float: st.floats(-1e3, 1e3), str: words, bool: st.booleans()}
    if kind in numbers:
        return numbers[kind]  # else a tuple
    return st.lists(numbers[typing.get_args(kind)[0]], min_size=1, max_size=4).map(tuple)


def flags_of(config, names) -> list[str]:
    """The flags that set these fields to the values they have in `config`."""
    flags = []
    for name in names:
        value, flag = getattr(config, name), name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            flags.append(f"--{flag}={text}")
    return flags


# ------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize("recipe", RECIPES)
@given(data=st.data())
def test_flags_set_exactly_the_fields_they_name_and_the_preset_the_rest(recipe, data):
    module = RECIPES[recipe]
    preset = data.draw(st.sampled_from(list(module.PRESETS)))
    start = module.PRESETS[preset]
    types = typing.get_type_hints(type(start))
    names = data.draw(st.lists(st.sampled_from([field.name for field in dataclasses.fields(start)]), unique=True))
    wanted = dataclasses.replace(start, **{name: data.draw(values_of(types[name])) for name in names})
    assert parse_config(module.PRESETS, [f"--preset={preset}", *flags_of(wanted, names)], "x") == wanted
    assert module.PRESETS[preset] is start  # and the preset itself is not touched


@pytest.mark.parametrize("recipe", RECIPES)
def test_without_flags_the_first_preset_is_taken(recipe):
    presets = RECIPES[recipe].PRESETS
    assert parse_config(presets, [], "x") == next(iter(presets.values()))


@pytest.mark.parametrize(
    "flags",
    [["--stepz", "3"], ["--round", "3"], ["--digits", "1,x"], ["--seed", "one"], ["--preset", "huge"], ["stray"],
     ["--rationalize=yes"], ["--rounds"]],
    ids=" ".join,
)  # fmt: skip
def test_an_unknown_or_abbreviated_flag_or_a_value_of_the_wrong_kind_is_an_error(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_config(star.PRESETS, flags, "x")
    assert stopped.value.code == 2
    assert flags[0].split("=")[0].lstrip("-") in capsys.readouterr().err


def help_of(module, capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse_config(module.PRESETS, ["--help"], "train.py x")
    assert stopped.value.code == 0
    return re.sub(r"\s+", " ", capsys.readouterr().out)


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_shows_every_field_with_its_comment_and_its_defaults(recipe, capsys):
    presets = RECIPES[recipe].PRESETS
    template = next(iter(presets.values()))
    text, comments = help_of(RECIPES[recipe], capsys), field_comments(type(template))
    for field in dataclasses.fields(template):
        assert f"--{field.name.replace('_', '-')}" in text
        comment = comments.get(field.name, "")
        assert len(comment) > 5, f"{field.name} has no comment"
        values = {name: repr(getattr(preset, field.name)) for name, preset in presets.items()}
        shown = [f"{name}: {value}" for name, value in values.items()]  # where presets differ, all are shown
        default = ", ".join(shown) if len(set(values.values())) > 1 else next(iter(values.values()))
        # argparse breaks lines at hyphens too
        assert f"{comment} (default: {default})".replace(" ", "") in text.replace(" ", "")


def test_a_comment_is_that_of_the_field_in_the_most_derived_class():
    assert "samples" in field_comments(star.StarConfig)["out"]
    assert field_comments(star.StarConfig)["seed"] == field_comments(RunConfig)["seed"] != ""


@pytest.mark.parametrize("recipe", RECIPES)
def test_settings_are_flat_and_their_defaults_are_json(recipe):
    for preset in RECIPES[recipe].PRESETS.values():
        for field in dataclasses.fields(preset):
            value = getattr(preset, field.name)
            assert isinstance(value, (int, float, str, bool, tuple)), field.name
            json.dumps(value)


def test_every_recipe_and_section_has_the_presets_that_the_command_line_promises():
    sections = [importlib.import_module(f"nanoreason.experiments.{name}") for name in SECTIONS]
    for module in [*RECIPES.values(), *sections]:
        assert {"tiny", "cpu", "gpu"} <= module.PRESETS.keys(), module.__name__


# ------------------------------------------------------------------------------------------------- the run folder


@dataclass
class Settings(RunConfig):
    """A run that does nothing."""

    rate: float = 0.5  # a number
    sizes: tuple[int, ...] = (1, 2)  # a tuple


def test_the_folder_and_its_config_exist_before_the_first_step(tmp_path):
    Run(Settings(out=str(tmp_path / "a" / "b"), seed=7))
    stored = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert (stored["seed"], stored["rate"], stored["sizes"], stored["recipe"]) == (7, 0.5, [1, 2], "Settings")


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    config = Settings(out=str(tmp_path / "a"))
    Run(config).log(1, loss=2.0)
    with pytest.raises(FileExistsError, match="already holds a run: add --resume"):
        Run(config)
    assert read_jsonl(tmp_path / "a" / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize(
    ("change", "named"), [({"seed": 8}, "seed=0, not 8"), ({"rate": 0.25}, "rate"), ({"sizes": (1, 3)}, "sizes")]
)
def test_resuming_with_changed_settings_is_refused_by_the_name_of_the_setting(tmp_path, change, named):
    config = Settings(out=str(tmp_path / "a"))
    Run(config).log(0)
    before = (tmp_path / "a" / "config.json").read_text()
    with pytest.raises(ValueError, match=f"cannot resume .*{named}"):
        Run(dataclasses.replace(config, resume=True, **change))
    assert (tmp_path / "a" / "config.json").read_text() == before


def test_resuming_as_another_recipe_is_refused(tmp_path):
    Run(Settings(out=str(tmp_path / "a"))).log(0)
    with pytest.raises(ValueError, match="cannot resume"):
        Run(RunConfig(out=str(tmp_path / "a"), resume=True))


def test_resuming_with_the_same_settings_elsewhere_is_fine(tmp_path):
    config = Settings(out=str(tmp_path / "a"))
    Run(config).log(0)
    (tmp_path / "a").rename(tmp_path / "b")
    Run(dataclasses.replace(config, out=str(tmp_path / "b"), resume=True, threads=2, device="cpu"))


def test_every_line_is_on_disk_when_it_was_logged(tmp_path):
    run = Run(Settings(out=str(tmp_path)))
    for step in range(3):
        run.log(step, loss=step / 2)
        run.sample(step, text="ä\n")
        assert read_jsonl(tmp_path / "metrics.jsonl")[-1] == {"step": step, "loss": step / 2}
        assert read_jsonl(tmp_path / "samples.jsonl")[-1] == {"step": step, "text": "ä\n"}


@given(steps=st.lists(st.integers(0, 9), max_size=12), last=st.integers(-1, 10))
def test_rewinding_drops_exactly_the_lines_of_later_steps(tmp_path_factory, steps, last):
    folder = tmp_path_factory.mktemp("run")
    run = Run(Settings(out=str(folder)))
    for k, step in enumerate(steps):
        run.log(step, k=k)
        run.sample(step, k=k)
    run.close()
    run.rewind(last)
    expected = [{"step": step, "k": k} for k, step in enumerate(steps) if step <= last]
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert not steps or read_jsonl(folder / name) == expected
    run.log(last + 1, k=-1)  # and the run goes on behind them
    assert read_jsonl(folder / "metrics.jsonl") == [*expected, {"step": last + 1, "k": -1}]


@given(st.integers(1, 40))
def test_a_last_line_that_a_kill_cut_in_half_is_left_out_and_cleared_by_a_rewind(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("run")
    run = Run(Settings(out=str(folder)))
    run.log(0, loss=1.0)
    run.log(1, loss=2.0, name="ä" * 9)
    run.close()
    path = folder / "metrics.jsonl"
    raw = path.read_bytes()
    path.write_bytes(raw[: -min(cut, len(raw) - len('{"step": 0, "loss": 1.0}\n'))])
    assert read_jsonl(path) == [{"step": 0, "loss": 1.0}]
    run.rewind(5)
    run.log(2)
    assert read_jsonl(path) == [{"step": 0, "loss": 1.0}, {"step": 2}]


def test_a_replaced_file_is_old_or_new_but_never_half(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    replace_text(path, "old")
    monkeypatch.setattr(Path, "write_text", lambda self, text, **_: self.write_bytes(b"ne") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replace_text(path, "new")
    assert path.read_text() == "old"


def test_a_device_that_is_not_there_is_an_error_that_names_those_that_are():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="'quantum' is not available here: use one of .*cpu"):
        pick_device("quantum")


@given(st.lists(st.lists(st.text("ab", max_size=6), min_size=3, max_size=3), min_size=1, max_size=5))
def test_a_table_has_aligned_columns(rows):
    lines = table(["one", "2", ""], rows).split("\n")
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 1 + len(rows)
