"""Settings and the run folder: the command line is the dataclass, logs survive a kill, resuming is honest."""

import dataclasses
import importlib
import io
import json
import math
import re
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nanoreason import run as settings_code
from nanoreason.__main__ import RECIPES as RECIPE_NAMES
from nanoreason.__main__ import SECTIONS
from nanoreason.learn import ALGORITHMS, Algorithm
from nanoreason.recipes import grpo, sft, star
from nanoreason.rewards import REWARDS, Accuracy, Cosine, Format
from nanoreason.run import (
    FREE,
    Progress,
    Range,
    Run,
    RunConfig,
    Schedule,
    bare,
    check,
    check_warmup,
    field_comments,
    flatten,
    from_flat,
    hints_of,
    parse_config,
    parts_of,
    pick_device,
    read_jsonl,
    replace_text,
    say,
    shown,
    speaking_as,
    spec_of,
    table,
    tables,
    task_flags,
)
from nanoreason.search import STRATEGIES
from nanoreason.tasks import TASKS, Addition, ThinkingAddition
from nanoreason.tasks.attempts import Mixture
from nanoreason.tasks.wrappers import WRAPPERS, AskedLength, Parallel, Templated

RECIPES = {name: importlib.import_module(f"nanoreason.recipes.{name}") for name in RECIPE_NAMES}
WORDS = st.text("abc/_.-", min_size=1).filter(lambda text: text != "--")  # argparse drops it, even behind a "="


def range_of(kind) -> Range | None:
    """The range that a number's type declares."""
    return next((arg for arg in getattr(kind, "__metadata__", ()) if isinstance(arg, Range)), None)


@st.composite
def schedules(draw):
    steps = sorted(draw(st.sets(st.integers(1, 500), max_size=3)))
    return Schedule(draw(st.integers(1, 999)), tuple((step, draw(st.integers(1, 999))) for step in steps))


def values_of(kind):
    """A hypothesis strategy for all that a field's type allows."""
    plain, range_ = bare(kind), range_of(kind) or Range()
    low, high = max(-1e9, range_.low), min(1e9, range_.high)
    if typing.get_origin(plain) is tuple:
        items = typing.get_args(plain)
        size = dict(max_size=4) if Ellipsis in items else dict(min_size=len(items), max_size=len(items))
        return st.lists(values_of(items[0]), **size).map(tuple)
    if typing.get_origin(plain) is typing.Literal:
        return st.sampled_from(typing.get_args(plain))
    if plain is int:
        return st.integers(math.ceil(low), math.floor(high))
    if plain is float:
        return st.floats(low, high, exclude_min=range_.low_open)
    return {bool: st.booleans(), str: WORDS, Schedule: schedules()}[plain]


def flag_of(name: str, value) -> str:
    """The flag that sets this field to this value."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag}={shown(value)}"


def settings_of(config) -> dict[str, tuple]:
    """{flag: (kind, value)} of all fields that hold no object, those inside objects too."""
    known, hints = tables(config), hints_of(type(config))
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in known:
            found[field.name] = (hints[field.name], value)
        else:
            for flag, (owner, part) in parts_of(field.name, value, known[field.name]).items():
                found[flag] = (hints_of(type(owner))[part], getattr(owner, part))
    return found


def parsed(recipe: str, *flags: str):
    return parse_config(RECIPES[recipe].PRESETS, list(flags), "x")


def refused(recipe: str, *flags: str) -> str:
    """What is said about flags that are refused: always one line."""
    with pytest.raises(ValueError) as error:
        parsed(recipe, *flags)
    assert str(error.value) and "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------- command line


def is_refused(config, names: list[str]) -> bool:
    """A warm-up that was asked for and is longer than the run."""
    try:
        if "warmup" in names:
            check_warmup(config)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("recipe", RECIPES)
@given(data=st.data())
def test_flags_set_exactly_the_fields_they_name_and_the_preset_the_rest(recipe, data):
    module = RECIPES[recipe]
    preset = data.draw(st.sampled_from(list(module.PRESETS)))
    start = module.PRESETS[preset]
    kinds = {name: kind for name, (kind, _) in settings_of(start).items() if "." not in name}
    names = data.draw(st.lists(st.sampled_from(list(kinds)), unique=True))
    wanted = replace(start, **{name: data.draw(values_of(kinds[name])) for name in names})
    assume(not is_refused(wanted, names))
    flags = [flag_of(name, getattr(wanted, name)) for name in names]
    assert parse_config(module.PRESETS, [f"--preset={preset}", *flags], "x") == wanted
    assert module.PRESETS[preset] is start  # and the preset itself is not touched


@pytest.mark.parametrize("recipe", RECIPES)
def test_without_flags_the_first_preset_is_taken(recipe):
    presets = RECIPES[recipe].PRESETS
    assert parse_config(presets, [], "x") == next(iter(presets.values()))


@pytest.mark.parametrize(
    "flags",
    [["--stepz", "3"], ["--round", "3"], ["--task.digits", "1,x"], ["--seed", "one"], ["--preset", "huge"], ["stray"],
     ["--rationalize=yes"], ["--rounds"], ["--task.template", "r1"], ["--late-from", "1e3"]],
    ids=" ".join,
)  # fmt: skip
def test_an_unknown_or_abbreviated_flag_or_a_value_of_the_wrong_kind_is_an_error(flags):
    assert flags[0].split("=")[0].lstrip("-") in refused("star", *flags)


def test_dashes_and_underscores_are_the_same():
    assert parsed("star", "--late_from", "3").late_from == parsed("star", "--late-from", "3").late_from == 3
    a, b = (parsed("grpo", f"--{name}.digits", "2") for name in ("eval-task", "eval_task"))
    assert a.eval_task.digits == b.eval_task.digits == (2,)


# --------------------------------------------------------------------------------------------------------- ranges

# Numbers that may be anything finite, or whose bounds depend on each other and are checked where they are used.
UNBOUNDED = {"seed", "algorithm.entropy_coef", "targets", "tokens", "right", "wrong", "exceed", "penalty"}


def everything_of(recipe: str) -> list:
    """Configs of a recipe that together hold each of its objects: every task, wrapper, reward and algorithm."""
    config = next(iter(RECIPES[recipe].PRESETS.values()))
    specs = {
        "task": [name if name not in WRAPPERS else f"attempts,{name}" for name in TASKS],
        "rewards": [",".join(REWARDS)],
        "algorithm": list(ALGORITHMS),
    }
    flags = [[f"--{name}={spec}"] for name in tables(config) if name in specs for spec in specs[name]]
    return [(some, parsed(recipe, *some)) for some in [[], *flags]]


def outside(range_: Range, whole: bool) -> list[float]:
    """Numbers next to the range on each side, and what is no number."""
    step = 1 if whole else 1e-6
    values = [] if whole else [math.nan, -math.inf, *([] if range_.infinite else [math.inf])]
    if range_.low > -math.inf:
        values += [range_.low - step, range_.low - 1000, *([range_.low] if range_.low_open else [])]
    if range_.high < math.inf:
        values += [range_.high + step, range_.high + 1000]
    return [int(value) if whole else value for value in values]


def inside(range_: Range, whole: bool) -> list[float]:
    values = [range_.low + (1e-6 if range_.low_open else 0)] if range_.low > -math.inf else [-3.0, 0.0]
    values += [range_.high] if range_.high < math.inf or range_.infinite else [12345.0]
    return [int(value) if whole else value for value in values]


def test_a_warm_up_may_be_as_long_as_the_run_and_that_of_a_preset_longer():
    assert parse_config(sft.PRESETS, ["--steps", "7", "--warmup", "7"], "sft").warmup == 7
    assert parse_config(sft.PRESETS, ["--steps", "2"], "sft").warmup > 2
    assert parse_config(sft.PRESETS, ["--steps", "0", "--warmup", "7"], "sft").warmup == 7  # it only measures


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_number_has_one_range_and_what_lies_outside_is_refused_in_one_line_that_names_the_flag(recipe):
    tested = set()
    for start, config in everything_of(recipe):
        for name, (kind, _) in settings_of(config).items():
            items = typing.get_args(bare(kind)) if typing.get_origin(bare(kind)) is tuple else (kind,)
            if name in tested or bare(items[0]) not in (int, float):
                continue
            tested.add(name)
            whole, range_ = bare(items[0]) is int, range_of(items[0])
            loose = name in UNBOUNDED or name.rpartition(".")[2] in UNBOUNDED
            assert (range_ is None) == loose, f"{recipe} --{name} declares no range"
            size = 1 if Ellipsis in items or len(items) == 1 else len(items)
            for bad in outside(range_ or Range(), whole):
                flag = name.replace("_", "-")
                message = refused(recipe, *start, f"--{flag}={','.join([str(bad)] * size)}")
                assert f"--{flag}" in message or f"--{name}" in message, message
            for good in inside(range_ or Range(), whole):
                check((good,) * size if len(items) > 1 else good, kind, name)
                if "." not in name:
                    only_measured = ["--steps=0"] if name == "warmup" and hasattr(config, "steps") else []
                    said = flag_of(name, good if len(items) == 1 else (good,))
                    assert getattr(parsed(recipe, said, *only_measured), name)  \
                        == (good if len(items) == 1 else (good,))  # fmt: skip
            for text in ("", "x", "1,", "nan", "--1"):
                if len(items) == 1:
                    refused(recipe, *start, f"--{name}={text}")
    assert len(tested) >= 3


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "1e999", "0x1", "1.2.3"])
def test_a_weight_is_a_finite_number(weight):
    assert "--rewards" in refused("grpo", f"--rewards=accuracy,format:{weight}")


NO_SCHEDULES = ["0", "-3", "x", "", "50,", "50,31", "50,31:0", "50,31:x", "50,9:4,9:5", "50,9:4,8:5", "1.5"]


@pytest.mark.parametrize("text", NO_SCHEDULES)
def test_what_is_no_schedule_is_refused_with_an_example(text):
    message = refused("grpo", f"--max-new-tokens={text}")
    assert "--max-new-tokens" in message and "50,31:112" in message


@given(schedules())
def test_a_schedule_changes_at_its_steps_and_is_read_back_as_it_is_shown(schedule):
    assert Schedule.parse(str(schedule)) == schedule
    value = schedule.first
    changes = dict(schedule.changes)
    assert schedule.at(0) == schedule.first
    for step in range(1, 502):
        value = changes.get(step, value)
        assert schedule.at(step) == value
    assert schedule.largest == max([schedule.first, *changes.values()])


# -------------------------------------------------------------------------------------------------------- objects


@st.composite
def tasks(draw, wrapped=True):
    """Any task with any settings it allows, perhaps in wrappers."""
    kind = TASKS[draw(st.sampled_from([name for name in TASKS if name not in WRAPPERS]))]
    values = {}
    for field in dataclasses.fields(kind):
        if hints_of(kind)[field.name] is Mixture:
            values[field.name] = Mixture((("guess", draw(st.floats(0.001, 10))), ("long", 1.0)))
        elif draw(st.booleans()):
            values[field.name] = draw(values_of(hints_of(kind)[field.name]))
    if "digits" in hints_of(kind) and values.keys() & {"digits", "shares", "hinted_shares"}:
        values["digits"] = values.get("digits") or (1, 2)
        for name in [name for name in values if name.endswith("shares")]:
            weights = st.floats(0.001, 10)
            values[name] = tuple(draw(weights) for _ in values["digits"]) if draw(st.booleans()) else ()
    if "targets" in values:
        values["targets"] = tuple(sorted(draw(st.sets(st.integers(0, 999), min_size=2, max_size=2))))
    if "strategies" in values:
        values["strategies"] = tuple(draw(st.lists(st.sampled_from(list(STRATEGIES)), unique=True)))
    try:
        task = kind(**values)
        for wrapper in draw(st.permutations(list(WRAPPERS.values()))) if wrapped else ():
            fits = wrapper is not Parallel or hasattr(task, "tried")  # it goes around attempts alone
            if fits and draw(st.booleans()):
                own = {}
                for field in dataclasses.fields(wrapper):
                    if field.name not in ("task", "tokens") and draw(st.booleans()):
                        own[field.name] = draw(values_of(hints_of(wrapper)[field.name]))
                if wrapper is AskedLength:
                    own["tokens"] = tuple(sorted(draw(st.tuples(st.integers(1, 99), st.integers(1, 99)))))
                task = wrapper(task, **own)
        flatten(sft.SftConfig(task=task))  # two of them may have a setting of one name, which is refused
    except ValueError:
        assume(False)
    return task


@given(tasks())
def test_a_task_is_the_same_after_it_was_written_to_json_and_read_back(task):
    flat = json.loads(json.dumps(flatten(sft.SftConfig(task=task))))
    assert from_flat("task", flat, TASKS) == task
    assert from_flat("task", task_flags(flat), TASKS) == task  # what a checkpoint records suffices
    assert task_flags(flat).keys() == {name for name in flat if name.split(".")[0] == "task"}


@given(tasks())
def test_the_flags_of_a_task_make_this_task(task):
    config = sft.SftConfig(task=task)
    parts = {flag: value for flag, (_, value) in settings_of(config).items() if flag.startswith("task.")}
    flags = [f"--task={spec_of(task, TASKS)}", *(flag_of(flag, value) for flag, value in parts.items())]
    assert parsed("sft", *flags).task == task


@given(st.lists(st.sampled_from(list(REWARDS)), unique=True, min_size=1), st.data())
def test_the_flags_of_rewards_make_these_rewards(names, data):
    wanted = []
    for name in names:
        kind = REWARDS[name]
        values = {field.name: data.draw(values_of(hints_of(kind)[field.name])) for field in dataclasses.fields(kind)}
        wanted.append(kind(**values))
    config = grpo.GrpoConfig(rewards=tuple(wanted))
    parts = {flag: value for flag, (_, value) in settings_of(config).items() if flag.startswith("rewards.")}
    flags = [f"--rewards={spec_of(tuple(wanted), REWARDS)}", *(flag_of(flag, value) for flag, value in parts.items())]
    assert parsed("grpo", *flags).rewards == tuple(wanted)


@given(st.sampled_from(list(ALGORITHMS)), st.data())
def test_the_flags_of_an_algorithm_change_what_they_name_and_leave_the_rest_as_it_sets_it(name, data):
    start = ALGORITHMS[name]
    fields = [field.name for field in dataclasses.fields(Algorithm) if not field.metadata.get("hidden")]
    chosen = data.draw(st.lists(st.sampled_from(fields), unique=True))
    wanted = replace(start, **{field: data.draw(values_of(hints_of(Algorithm)[field])) for field in chosen})
    flags = [flag_of(f"algorithm.{field}", getattr(wanted, field)) for field in chosen]
    config = parsed("grpo", f"--algorithm={name}", *flags)
    assert config.algorithm == wanted and ALGORITHMS[name] is start
    assert from_flat("algorithm", json.loads(json.dumps(flatten(config))), ALGORITHMS) == wanted


NO_VALUES = [
    ("digits", 3), ("digits", [0]), ("digits", ["x"]), ("digits", [1.5]), ("digits", None), ("form", "poem"),
    ("hint_share", "much"), ("hint_share", 2), ("hint_share", True), ("hint_share", {}), ("shares", [1]),
]  # fmt: skip


@pytest.mark.parametrize("flag, value", NO_VALUES, ids=str)
def test_what_a_checkpoint_says_of_its_task_is_checked_like_a_flag(flag, value):
    """A file may hold any type of value."""
    flat = {**task_flags(flatten(sft.SftConfig())), f"task.{flag}": value}
    with pytest.raises(ValueError, match=rf"--task\.{flag}") as error:
        from_flat("task", flat, TASKS)
    assert "\n" not in str(error.value)
    for no_task in (None, 3, ["addition"]):
        with pytest.raises(ValueError, match="--task .*a text"):
            from_flat("task", {"task": no_task}, TASKS)


NO_CONFIGS = [
    ({"lr": math.nan}, "--lr nan"), ({"steps": -1}, "--steps -1"), ({"steps": 2.5}, "--steps 2.5: must be a whole"),
    ({"steps": True}, "--steps True"), ({"width": "wide"}, "--width 'wide'"), ({"threads": 0}, "--threads 0"),
    ({"task": Addition((0,))}, "--task.digits 0"), ({"task": Addition(digits=[1])}, r"--task.digits \[1\]"),
]  # fmt: skip


@pytest.mark.parametrize("changes, said", NO_CONFIGS, ids=str)
def test_a_config_made_in_python_is_checked_before_its_run_begins(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        Run(replace(sft.SftConfig(), out=str(tmp_path / "a"), **changes))
    assert not (tmp_path / "a").exists()


def test_the_presets_are_within_their_ranges():
    sections = [importlib.import_module(f"nanoreason.experiments.{name}") for name in SECTIONS]
    for module in RECIPES.values():
        for config in module.PRESETS.values():
            settings_code.check_settings(config)
    for section in sections:
        for preset in section.PRESETS:
            for arm in section.arms(preset, 0):
                settings_code.check_settings(arm.settings)


def test_numbers_are_stored_without_rounding():
    third = 1 / 3
    config = parsed("grpo", f"--rewards=format:{third}", f"--task.shares={third},{third},1", f"--lr={third}")
    assert config.rewards == (Format(third),) and config.lr == third and config.task.shares == (third, third, 1.0)
    flat = json.loads(json.dumps(flatten(config)))
    assert from_flat("task", flat, TASKS) == config.task


def test_a_dotted_flag_changes_the_object_that_is_there_or_the_one_that_is_named_beside_it():
    assert parsed("grpo", "--task.digits", "7").task == Addition((7,))
    assert parsed("grpo", "--task.digits", "7", "--task", "thinking").task == ThinkingAddition((7,))
    assert parsed("grpo", "--task", "addition", "--preset", "tiny").task == Addition((1,))  # of its kind: as it is
    assert "task.inputs" in refused("grpo", "--task.inputs", "3")  # a setting of another task


def test_wrappers_go_around_a_task_in_the_order_given_and_their_fields_are_its_fields():
    config = parsed("grpo", "--task=thinking,asked_length,templated", "--task.tokens=8,40", "--task.template=r1",
                    "--task.digits=3")  # fmt: skip
    assert config.task == Templated(AskedLength(ThinkingAddition((3,)), tokens=(8, 40)), "r1")
    assert flatten(config)["task"] == "thinking,asked_length,templated"
    assert "wraps a task" in refused("grpo", "--task", "templated")
    assert "wraps nothing" in refused("grpo", "--task", "thinking,addition")
    assert "'template'" in refused("grpo", "--task", "thinking,templated,templated")
    assert "one of addition" in refused("grpo", "--task", "thinking,poem")


def test_rewards_keep_their_settings_where_they_are_named_again_and_none_is_named_twice():
    presets = {"x": grpo.GrpoConfig(rewards=(Cosine(exceed=-3.0), Accuracy()))}
    config = parse_config(presets, ["--rewards", "cosine:0.5,format"], "x")
    assert config.rewards == (Cosine(0.5, exceed=-3.0), Format())
    assert parsed("grpo", "--rewards=cosine,accuracy:-2", "--rewards.cosine.wrong=-10,-1").rewards == (
        Cosine(wrong=(-10.0, -1.0)), Accuracy(-2.0))  # fmt: skip
    assert "twice" in refused("grpo", "--rewards", "accuracy,format,accuracy:2")
    assert "one of accuracy" in refused("grpo", "--rewards", "acuracy")
    assert "rewards.cosine.wrong" in refused("grpo", "--rewards.cosine.wrong=1,2")  # it is not among them


def test_a_second_task_starts_from_the_first_one_and_is_another_object():
    config = parsed("grpo", "--task.digits", "1,2", "--eval-task.digits", "5")
    assert (config.task.digits, config.eval_task.digits) == ((1, 2), (5,))
    config = parsed("grpo", "--eval-task.digits", "5")
    assert (config.task, config.eval_task) == (Addition((1, 2, 3)), Addition((5,)))
    config = parsed("grpo", "--task", "thinking", "--task.error-prob", "0.5", "--eval-task.digits", "4")
    assert config.task == ThinkingAddition(error_prob=0.5)
    assert config.eval_task == ThinkingAddition((4,), error_prob=0.5)  # like the task, but for what is said of it
    config = parsed("grpo", "--task.digits", "1,2", "--eval-task", "thinking", "--eval-task.digits", "5")
    assert (config.task, config.eval_task) == (Addition((1, 2)), ThinkingAddition((5,)))
    config = parsed("grpo", "--task.digits", "1,2", "--eval-task", "addition")
    assert config.eval_task == Addition()  # chosen by itself
    assert parsed("grpo", "--task.digits", "1,2").eval_task is None


OWN = '''
from dataclasses import dataclass
from typing import Annotated
from nanoreason.rollout import Problem, Task
from nanoreason.run import Range
from nanoreason.tasks import Addition
from nanoreason.tasks.wrappers import Wrapper

@dataclass(frozen=True)
class Echo(Task):
    """Say it again."""
    word: str = "1"  # what is to be said
    times: Annotated[int, Range(1, 9)] = 2  # how often

    def tokenizer(self):
        return Addition().tokenizer()

    def problem(self, split, index):
        return Problem(self.word, " ".join([self.word] * self.times))

    def reward(self, problem, response):
        return float(response == problem.answer)

@dataclass(frozen=True)
class Short:
    weight: float = 1.0
    most: Annotated[int, Range(0)] = 5  # tokens

    def __call__(self, scored):
        return float(scored.tokens <= self.most)

@dataclass(frozen=True)
class Loud(Wrapper):
    task: Task
    mark: str = "!"  # behind the prompt

    def wrap(self, problem, split, index):
        return Problem(problem.prompt + self.mark, problem.answer)

@dataclass(frozen=True)
class NoWeight:
    most: int = 5

    def __call__(self, scored):
        return 1.0

@dataclass(frozen=True)
class NoDefault:
    weight: float

    def __call__(self, scored):
        return 1.0

class NoData:
    weight = 1.0

an_object = Short(2.0)
'''


@pytest.fixture
def own(tmp_path) -> str:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return str(path)


def test_a_task_and_a_reward_of_ones_own_are_chosen_by_file_and_name_and_their_fields_are_flags(own):
    config = parsed("grpo", f"--task={own}:Echo,templated", "--task.times=3", "--task.template=r1",
                    f"--rewards=accuracy,{own}:Short:0.25", "--rewards.Short.most=7")  # fmt: skip
    task, (_, short) = config.task.task, config.rewards
    assert (type(task).__name__, task.times, task.problem("train", 0).answer) == ("Echo", 3, "1 1 1")
    assert (short.weight, short.most) == (0.25, 7)
    flat = json.loads(json.dumps(flatten(config)))
    assert flat["task"] == f"{own}:Echo,templated" and flat["rewards"] == f"accuracy,{own}:Short:0.25"
    again = from_flat("task", flat, TASKS)
    assert flatten(replace(config, task=again)) == flatten(config)
    assert parsed("grpo", f"--task=addition,{own}:Loud", "--task.mark=?").task.mark == "?"
    assert "--task.times" in refused("grpo", f"--task={own}:Echo", "--task.times=10")
    assert "--rewards.Short.most" in refused("grpo", f"--rewards={own}:Short", "--rewards.Short.most=-1")
    assert "--task.times" in settings_code.help_text(config, "cpu", ["cpu"], "x")


@pytest.mark.parametrize(
    ("name", "said"),
    [("Missing", "defines no Missing"), ("NoData", "dataclass"), ("an_object", "dataclass"), ("NoDefault", "default"),
     ("NoWeight", "weight")],
)  # fmt: skip
def test_what_is_wrong_with_an_entry_of_ones_own_is_said_in_one_line(own, name, said):
    message = refused("grpo", f"--rewards={own}:{name}")
    assert said in message and name in message


def test_a_file_that_is_not_there_or_cannot_be_imported_is_named(tmp_path):
    assert "nowhere.py" in refused("sft", f"--task={tmp_path}/nowhere.py:Mine")
    (tmp_path / "broken.py").write_text("import\n")
    assert "broken.py cannot be imported: SyntaxError" in refused("sft", f"--task={tmp_path}/broken.py:Mine").replace(
        str(tmp_path) + "/", ""
    )


# ----------------------------------------------------------------------------------------------------------- help


def help_of(recipe: str, capsys, *flags: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse_config(RECIPES[recipe].PRESETS, [*flags, "--help"], f"train.py {recipe}")
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_shows_every_field_with_its_comment_and_its_value_in_the_preset(recipe, capsys):
    for preset, config in RECIPES[recipe].PRESETS.items():
        text = help_of(recipe, capsys, f"--preset={preset}")
        assert f"Values are those of --preset {preset}" in text
        words = re.sub(r"\s+", " ", text)
        for field in dataclasses.fields(config):
            comment = field_comments(type(config))[field.name][0]
            assert len(comment) > 5, f"{field.name} has no comment"
            assert comment in words
        for name, (_, value) in settings_of(config).items():
            assert re.search(rf"^  --{re.escape(name.replace('_', '-'))} {re.escape(shown(value))}", text, re.MULTILINE)
        for name, entries in tables(config).items():
            assert ", ".join(entries) in words and f"--{name.replace('_', '-')} " in text


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_fits_on_100_lines_of_at_most_120_columns(recipe, capsys):
    flags = [[f"--preset={preset}"] for preset in RECIPES[recipe].PRESETS]
    known = tables(next(iter(RECIPES[recipe].PRESETS.values())))
    if "task" in known:
        flags.append(["--task=thinking,asked_length,unanswerable,templated"])
    if "rewards" in known:
        flags.append(["--rewards=accuracy,format,cosine,repetition"])
    for some in flags:
        lines = help_of(recipe, capsys, *some).split("\n")
        assert len(lines) <= 100 and max(map(len, lines)) <= 120


def test_help_shows_the_fields_of_the_task_that_is_named(capsys):
    text = help_of("sft", capsys, "--task", "countdown")
    assert "--task.inputs 4" in text and "--task.digits" not in text


def test_a_comment_is_that_of_the_field_in_the_most_derived_class():
    assert "samples" in field_comments(star.StarConfig)["out"][0]
    assert field_comments(star.StarConfig)["seed"] == field_comments(RunConfig)["seed"] != ("", "")
    assert field_comments(star.StarConfig)["rounds"][1] == "rounds"  # the heading above it


@pytest.mark.parametrize("recipe", RECIPES)
def test_settings_are_flat_and_are_json_without_infinity(recipe):
    for preset in RECIPES[recipe].PRESETS.values():
        flat = flatten(preset)
        assert json.loads(json.dumps(flat, allow_nan=False)) == flat
        assert all(isinstance(value, (int, float, str, bool, list, type(None))) for value in flat.values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipes_own_config_has_few_fields(recipe):
    """What belongs to the task, the loss, the rewards or the sampler lives there."""
    config = next(iter(RECIPES[recipe].PRESETS.values()))
    assert len(dataclasses.fields(config)) - len(dataclasses.fields(RunConfig)) <= 26


def test_every_recipe_and_section_has_the_presets_that_the_command_line_promises():
    sections = [importlib.import_module(f"nanoreason.experiments.{name}") for name in SECTIONS]
    for module in [*RECIPES.values(), *sections]:
        wanted = {"tiny", "cpu"} if module is RECIPES["grpo_minimal"] else {"tiny", "cpu", "gpu"}
        assert wanted <= module.PRESETS.keys(), module.__name__


# ------------------------------------------------------------------------------------------------- the run folder


@dataclass
class Settings(RunConfig):
    """A run that does nothing."""

    rate: float = 0.5  # a number
    sizes: tuple[int, ...] = (1, 2)  # a tuple
    steps: int = 10  # a number that may change


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


def test_resuming_lists_all_settings_that_changed_with_what_they_were_and_are(tmp_path):
    config = grpo.GrpoConfig(out=str(tmp_path / "a"))
    Run(config).log(0)
    changed = replace(
        config,
        resume=True,
        lr=0.5,
        seed=8,
        task=Addition((4,)),
        rewards=(Accuracy(0.5), Format()),
        algorithm=Algorithm(clip_high=0.3),
        max_new_tokens=Schedule(9),
        eval_task=Addition(),
    )
    with pytest.raises(ValueError) as error:
        Run(changed)
    parts = [
        "lr=0.0001, not 0.5",
        "seed=0, not 8",
        "task.digits=[1, 2, 3], not [4]",
        "algorithm.clip_high=0.2, not 0.3",
        "rewards='accuracy', not 'accuracy:0.5,format'",
        "max_new_tokens='64', not '9'",
        "eval_task=None",
    ]
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_does_not_change_a_step_may_change_and_everything_else_may_not(tmp_path_factory, recipe):
    start = next(iter(RECIPES[recipe].PRESETS.values()))
    for name, (_, value) in settings_of(start).items():
        if "." in name or not isinstance(value, (bool, int, float)):
            continue
        config = replace(start, out=str(tmp_path_factory.mktemp("run") / "a"))
        Run(config).log(0)
        changed = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value / 2 + 0.01
        other = replace(config, **{"resume": True, name: changed})
        if name in FREE or (name == "steps" and getattr(start, "decay", "none") == "none"):
            Run(other)
        else:
            with pytest.raises(ValueError, match=f"cannot resume .*{name}="):
                Run(other)


def test_resuming_as_another_recipe_is_refused(tmp_path):
    Run(Settings(out=str(tmp_path / "a"))).log(0)
    with pytest.raises(ValueError, match="cannot resume"):
        Run(RunConfig(out=str(tmp_path / "a"), resume=True))


def test_resuming_with_the_same_settings_elsewhere_is_fine(tmp_path):
    config = Settings(out=str(tmp_path / "a"))
    Run(config).log(0)
    (tmp_path / "a").rename(tmp_path / "b")
    Run(dataclasses.replace(config, out=str(tmp_path / "b"), resume=True, threads=2, device="cpu", steps=20))


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
    run.rewind(last)  # what it has open is replaced
    expected = [{"step": step, "k": k} for k, step in enumerate(steps) if step <= last]
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert not steps or read_jsonl(folder / name) == expected
    run.log(last + 1, k=-1)  # and the run goes on behind them
    run.close()
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


# --------------------------------------------------------------------------------------------------- progress


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """What the time is for lines of progress; stderr is no terminal."""
    now = [1000.0]
    monkeypatch.setattr(settings_code, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(settings_code, "LINE_SECONDS", 10.0)
    monkeypatch.setattr(settings_code, "_last_line", 1000.0)
    return now


def test_without_a_terminal_a_line_comes_every_few_seconds_with_what_is_known(clock, capsys):
    with Progress(100, "grpo", "steps") as steps:
        for _ in range(12):
            clock[0] += 4
            steps.update(tokens=8000, reward=0.4117)
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines() == [
        "grpo: 3/100 steps, reward 0.412, 2,000 tok/s, 6:28 left",
        "grpo: 6/100 steps, reward 0.412, 2,000 tok/s, 6:16 left",
        "grpo: 9/100 steps, reward 0.412, 2,000 tok/s, 6:04 left",
        "grpo: 12/100 steps, reward 0.412, 2,000 tok/s, 5:52 left",
    ]


def test_what_runs_inside_another_shares_its_line_and_who_speaks_is_said_first(clock, capsys):
    with speaking_as("plain, seed 1"), Progress(9, "star", "rounds", done=2) as rounds:
        with Progress(4, "sample", "rows") as rows:
            clock[0] += 20
            rows.update(tokens=100)  # no round is done yet: the rows say how fast it goes
        clock[0] += 20
        rounds.update(loss=0.5)
        say("a table\n\nof two lines")
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "[plain, seed 1] star: 2/9 rounds; sample: 1/4 rows, 5 tok/s, 1:00 left",
        "[plain, seed 1] star: 3/9 rounds, loss 0.500, 4:00 left",
    ]
    assert said.out == "[plain, seed 1] a table\n\n[plain, seed 1] of two lines\n"
    say("alone")
    assert capsys.readouterr().out == "alone\n"


def test_a_resumed_run_is_as_fast_as_it_has_been_since(clock, capsys):
    with Progress(100, "sft", "steps", done=90) as steps:
        clock[0] += 50
        steps.update(5)
    assert capsys.readouterr().err == "sft: 95/100 steps, 0:50 left\n"


def test_on_a_terminal_there_is_a_bar_and_no_line(clock, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    with Progress(3, "sft", "steps") as steps:
        for _ in range(3):
            clock[0] += 60
            steps.update(loss=1.0)
        assert not steps.bar.disable
        with Progress(3, "test", "rows") as rows:
            assert not rows.bar.disable
        monkeypatch.setattr(settings_code, "_bar_position", 1)  # one of several processes: one screen line each
        with Progress(3, "test", "rows") as rows:
            assert rows.bar.disable
    assert "sft:   0%" in screen.getvalue() and " left" not in screen.getvalue()
