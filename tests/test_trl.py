"""Rewards as TRL's reward_funcs: what its trainer passes, and whatever else a data set's columns may hold."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoreason.prompts import tagged
from nanoreason.rewards import (
    Accuracy,
    Classic,
    Cosine,
    DenseRepetition,
    Format,
    Lcpo,
    Metric,
    Overlong,
    Repetition,
    text_of,
    trl_reward,
)
from nanoreason.tasks import Addition, Countdown, StreamOfSearch, ThinkingAddition
from nanoreason.tasks.wrappers import AskedLength, Templated

TASK = Templated(ThinkingAddition((2,)))
REWARDS = (Accuracy(), Format(), Overlong(), Classic(), Cosine(), Repetition(n=2), DenseRepetition(n=2),
           Metric(name="thinking/length"))  # fmt: skip
# What its trainer passes beside prompts, completions and the columns of the data set.
OBJECTS = dict(trainer_state=object(), log_extra=lambda *a: None, log_metric=lambda *a: None, environments=None)
RIGHT, WRONG = tagged("hm", "8 5"), tagged("", "8 6")


def call(function, completions, **columns):
    n = len(completions)
    given_ = dict(prompts=["4 7 + 3 8"] * n, completions=completions, completion_ids=[[5] * 4] * n, answer=["8 5"] * n)
    return function(**{**given_, **columns}, **OBJECTS)


def chat(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("form", [lambda text: text, chat, lambda text: [{"role": "assistant",
                                  "content": [{"type": "text", "text": text}]}]])  # fmt: skip
@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: type(reward).__name__)
def test_each_reward_gives_one_float_per_completion_in_texts_and_in_chats(reward, form):
    function = trl_reward(reward, TASK, 64)
    values = call(function, [form(RIGHT), form(WRONG)])
    assert len(values) == 2 and all(type(value) is float for value in values)
    assert values == call(function, [RIGHT, WRONG])
    chats = [[{"role": "system", "content": "Add."}, {"role": "user", "content": "4 7 + 3 8"}]] * 2
    assert call(function, [form(RIGHT), form(WRONG)], prompts=chats) == values


def test_verdict_format_and_length_are_those_of_the_completion():
    assert call(trl_reward(Accuracy(), TASK, 64), [RIGHT, WRONG, "8 5", ""]) == [1, 0, 0, 0]
    assert call(trl_reward(Format(), TASK, 64), [RIGHT, WRONG, "8 5", ""]) == [1, 1, 0, 0]
    cut = call(trl_reward(Classic(), TASK, 4), [RIGHT], completion_ids=[[5] * 4])
    whole = call(trl_reward(Classic(), TASK, 5), [RIGHT], completion_ids=[[5] * 4])
    assert (cut, whole) == ([0.0], [1.0])
    assert call(trl_reward(Cosine(), TASK, 4), [RIGHT, WRONG]) == [-10, -10]
    assert call(trl_reward(Accuracy(), TASK, 64), []) == []


@pytest.mark.parametrize(
    ("task", "info", "right"),
    [
        (Countdown(3), {"numbers": [9, 4, 3], "target": 24, "operations": None}, "9-3=6, 4*6=24"),
        (Countdown(3, form="expression"), {"numbers": [9, 4, 3], "target": 24}, "4*(9-3)"),
        (StreamOfSearch(2), {"numbers": [4, 6], "target": 24}, "E 4 * 6 = 24 > 24 W"),
    ],
)
def test_columns_come_back_from_a_data_set_as_lists_and_filled_up_with_none(task, info, right):
    function = trl_reward(Accuracy(), task, 64)
    infos = [info, {**info, "target_tokens": None, "kind": None}]
    assert call(function, [right, "hm"], info=infos, answer=[None, None]) == [1.0, 0.0]
    assert call(trl_reward(Metric(name="nodes"), task, 64), [right, "hm"], info=infos)[0] >= 0
    for broken in ([None, None], [{}, {}], [{"numbers": [9, 4, 3]}] * 2, [{"numbers": 3, "target": 24}] * 2):
        with pytest.raises(ValueError, match="cannot judge row 0: the column info must hold") as caught:
            call(function, [right, "hm"], info=broken)
        assert "\n" not in str(caught.value)


def test_an_answer_may_be_a_number_and_none_is_never_right():
    direct = ThinkingAddition((2,))
    function = trl_reward(Accuracy(), direct, 64)
    assert call(function, ["7", "8"], answer=[7, 7]) == [1.0, 0.0]
    for task in (direct, Addition(), TASK):
        texts = ["", "None", tagged("", "None"), "<answer> </answer>"]
        info = [{"digits": 2}] * 4
        assert call(trl_reward(Accuracy(), task, 64), texts, answer=[None] * 4, info=info) == [0.0] * 4


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (dict(answer=None), "row 0 has neither an answer nor info"),
        (dict(answer=[None, None]), "row 0 has neither an answer nor info"),
        (dict(answer=["8 5", None]), "row 1 has neither an answer nor info"),
        (dict(answer=[["8 5"], ["8 5"]]), r"the column answer must hold texts, row 0 has \['8 5'\]"),
        (dict(answer="85"), "the column answer must be a list of 2 values"),
        (dict(answer=["8 5"]), "the column answer must be a list of 2 values"),
        (dict(info=["x", "y"]), "the column info must hold dicts, row 0 has 'x'"),
        (dict(completion_ids=None), "completion_ids: the token ids of 2 completions are needed"),
        (dict(completion_ids=[[5]]), "completion_ids: the token ids of 2 completions are needed"),
    ],
)
def test_what_cannot_be_judged_is_one_clear_error(columns, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(trl_reward(Accuracy(), TASK, 64), [RIGHT, WRONG], **columns)
    assert "\n" not in str(caught.value)


def test_lcpo_asks_for_its_column():
    asked = AskedLength(TASK, kind="exact")
    info = [{"target_tokens": 6, "kind": "exact"}, {"target_tokens": None, "kind": None}]
    function = trl_reward(Lcpo(alpha=0.1), asked, 64)
    assert call(function, [RIGHT], info=info[:1]) == pytest.approx([1 - 0.2])
    for broken in (info, None, [{}, {}]):
        with pytest.raises(ValueError, match="lcpo needs problems whose info has target_tokens"):
            call(function, [RIGHT, WRONG], info=broken)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["content", "text", "numbers", "target", "digits", "target_tokens"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(anything, anything, anything, anything)
def test_whatever_the_columns_hold_there_is_a_score_or_one_value_error(prompt, completion, answer, info):
    assert isinstance(text_of(completion), str)
    for task in (TASK, Addition(), Countdown(3), StreamOfSearch(3)):
        for reward in (Accuracy(), Cosine(), Metric(name="rating")):
            try:
                values = call(
                    trl_reward(reward, task, 64), [completion], prompts=[prompt], answer=[answer], info=[info]
                )
            except ValueError as error:
                assert "\n" not in str(error)
            else:
                assert isinstance(values[0], float)


def test_the_trainer_calls_reward_functions_by_these_names():
    trl = pytest.importorskip("trl")
    source = inspect.getsource(trl.GRPOTrainer)
    for name in ("prompts=", "completions=", "completion_ids=", "**reward_kwargs"):
        assert name in source
    inspect.signature(trl_reward(Accuracy(), TASK, 64)).bind(prompts=[], completions=[], completion_ids=[], **OBJECTS)
