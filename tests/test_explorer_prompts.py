"""The page of prompts: groups of completions, filters, tokens, conversations, and texts that try to break out."""

import json

import numpy as np
import pytest

pytest.importorskip("dash", reason="the explorer needs Dash (pip install 'rollsight[explorer]')")

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.explorer import Reading
from rollsight.explorer.addresses import Address
from rollsight.explorer.completions import completions_of
from rollsight.explorer.context import Context
from rollsight.explorer.figures.tokens import by_position, measure_of, scale_of
from rollsight.explorer.pages import prompts
from rollsight.explorer.pages.prompts.choice import choice
from rollsight.explorer.pages.prompts.detail import completion_text, scale_for
from rollsight.explorer.pages.prompts.elsewhere import completions_of_prompt, rounds_with

CHAT = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "What is 6 x 7?"},
]
CALL = [
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "multiply", "arguments": {"a": 6}}}]},
    {"role": "tool", "name": "multiply", "content": "42" + " digits" * 400},
    {"role": "assistant", "content": "It is 42."},
]
HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "[click](javascript:alert(3)) **bold** $x$ `code`",
    "abc \u202e evil \u2066 text",
    "x" * 1_000_000,
]
GROUPS = [
    ("2+2=", ["4", "5", "", "4 it is"], [1.0, 0.0, 0.0, 1.0], [2.0, -3.0, 0.5, -1.0]),
    ("3+3=", ["6", "six", "7", "9"], [1.0, 1.0, 1.0, 1.0], [0.1, 0.2, 0.3, 0.4]),
    ("4+4=", ["8", "8", "8", "8"], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]),
    ("Say what you like: <b>now</b>", HOSTILE, [0.0, 0.2, 0.4, 0.6], [5.0, 6.0, 7.0, 8.0]),
    (json.dumps(CHAT), [json.dumps(CALL), "No.", "42", "Yes."], [1.0, 0.0, 1.0, 0.0], [9.0, -2.0, 1.0, np.nan]),
]


def columns(round, tokens=True):
    rows = [
        (number, prompt, text, reward, score)
        for number, (prompt, texts, rewards, scores) in enumerate(GROUPS)
        for text, reward, score in zip(texts, rewards, scores, strict=True)
    ]
    group, prompt, completion, reward, score = (list(column) for column in zip(*rows, strict=True))
    pieces = [[*text[:3], "<end>"] for text in completion]
    found = {
        "round": np.full(len(rows), round),
        "episode": np.arange(len(rows)),
        "group": group,
        "prompt": prompt,
        "completion": completion,
        "length": [4 if text == "4 it is" else len(text[:3]) for text in completion],
        "reward": np.array(reward),
        "score_sequence": np.array(score),
        "kept": np.nan_to_num(np.array(score)) >= 0,
        "valid": np.array([bool(text) for text in completion]),
        "token_advantages": [np.linspace(-1, 1, len(one), dtype=np.float32) for one in pieces],
        "token_log_probs": [-np.arange(len(one), dtype=np.float32) for one in pieces],
    }
    return found | ({"token_texts": pieces} if tokens else {})


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    metadata = {"host": "rollsight", "env": "sums", "run_settings": {"options": {"max_new_tokens": 4}}}
    for name, tokens in (("run", True), ("plain", False)):
        with runs.create(folder / name, metadata) as writer:
            for round in (1, 2):
                writer.write_records(round, columns(round, tokens))
                writer.write_round(round, {"records": 20, "reward_mean": 0.5, "target": "sequence", "scored": True})
    with runs.create(folder / "empty", metadata):
        pass
    with runs.create(folder / "steps", {"host": "stable-baselines3 2.7"}) as writer:
        writer.write_records(1, {"round": [1], "env": [0], "step": [0], "action": [1]})
        writer.write_round(1, {"records": 1})
    return Context(Reading([folder]))


def at(name="run", **query):
    return Address("prompts", name, query={key: str(value) for key, value in query.items()})


def shown(context, address):
    """The page as the browser gets it."""
    return json.dumps([part.to_plotly_json() for part in flat(prompts.layout(context, address))], default=str)


def flat(part):
    """Every component of a layout."""
    if isinstance(part, list | tuple):
        for one in part:
            yield from flat(one)
    elif hasattr(part, "to_plotly_json"):
        yield part
        yield from flat(getattr(part, "children", None))


def texts(part):
    """All text below a component."""
    if isinstance(part, list | tuple):
        return "".join(map(texts, part))
    return part if isinstance(part, str) else texts(getattr(part, "children", None) or "")


def rows(context, **query):
    chosen = choice(context, at(**query))
    return chosen.completions.table["completion"].to_pylist(), np.flatnonzero(chosen.matching).tolist()


def test_the_worst_prompt_of_the_newest_round_is_open_first(context):
    chosen = choice(context, at())
    assert (chosen.round, chosen.target) == (2, "sequence")
    assert chosen.groups[:2] == [0, 4]  # scores -3 and -2
    assert chosen.group == 0
    assert choice(context, at(order="best")).group == 4  # 9
    assert choice(context, at(order="stored")).groups == [0, 1, 2, 3, 4]
    assert choice(context, at(group=3)).group == 3


@pytest.mark.parametrize(
    ("show", "expected"),
    [
        ("harmful", ["5", "4 it is", "No."]),
        ("hack", ["4 it is"]),  # reward 1, but it hurts
        ("dropped", ["5", "4 it is", "No."]),
        ("truncated", ["4 it is"]),
        ("empty", [""]),
        ("invalid", [""]),
        ("same", ["6", "six", "7", "9", "8", "8", "8", "8"]),
    ],
)
def test_filters(context, show, expected):
    completions, found = rows(context, show=show)
    assert [completions[row] for row in found] == ([] if show == "truncated" else expected)
    if show == "truncated":  # its last token is the end of the text: it is whole
        plain = choice(context, at("plain", show=show))
        assert [completions[row] for row in np.flatnonzero(plain.matching)] == expected


def test_groups_that_do_not_differ_are_flagged(context):
    records = context.reading.records("run", 1)
    completions = completions_of(records, "sequence", {})
    assert completions.same_texts.reshape(5, 4).all(1).tolist() == [False, False, True, False, False]
    assert completions.same_rewards.reshape(5, 4).all(1).tolist() == [False, True, True, False, False]
    page = texts(prompts.layout(context, at()))
    assert page.count("same rewards") == 1
    assert page.count("same text and rewards") == 1


def test_search_is_in_prompts_and_completions_in_any_case(context):
    completions, found = rows(context, search="SIX")
    assert [completions[row] for row in found] == ["six"]
    assert len(rows(context, search="say WHAT")[1]) == 4
    assert not rows(context, search="nowhere")[1]
    assert "No completion is like that" in texts(prompts.layout(context, at(search="nowhere")))
    run = context.reading.run("run")
    assert rounds_with(run, "SIX") == {1: 1, 2: 1}
    assert rounds_with(run, "'); drop table records; --") == {}
    assert completions_of_prompt(run, "2+2=")["completion"].to_pylist() == 2 * ["4", "5", "", "4 it is"]
    assert "over the rounds" in texts(prompts.layout(context, at(over="prompt")))


def test_hostile_texts_stay_texts(context):
    parts = list(flat(prompts.layout(context, at(group=3))))
    assert not [part for part in parts if type(part).__name__ == "Markdown" or "dangerously" in str(vars(part).keys())]
    page = texts(prompts.layout(context, at(group=3, shade="none")))
    assert "<script>alert(1)</script>" in page  # as a text, which React escapes
    assert "\u202e" not in page
    assert "\\u202e" in page
    whole = len(shown(context, at(group=3, shade="none")))
    assert whole < 200_000, "a text of a megabyte is folded"
    assert "Show all 1,000,000 characters" in page


def test_tokens_are_shaded_by_their_own_numbers(context):
    spans = [
        part for part in flat(prompts.layout(context, at(group=0, shade="token_advantages")))
        if "rs-token" in str(getattr(part, "className", ""))
    ]  # fmt: skip
    first = spans[:2]  # of the worst, "5" and its end
    assert [texts(span) for span in first] == ["5", "<end>"]
    assert first[0].title == "token 1: advantage −1"
    assert first[0].style["backgroundColor"] != first[1].style["backgroundColor"]
    assert not [part for part in flat(prompts.layout(context, at(shade="none"))) if "rs-token" in str(vars(part))]


def test_without_token_texts_the_page_says_so_and_draws_a_strip(context):
    page = prompts.layout(context, at("plain"))
    assert "not stored in this run" in texts(page)
    figures = [part.figure for part in flat(page) if type(part).__name__ == "Graph"]
    assert figures[0].data[0].y.tolist() == [-1.0, 1.0]  # the two tokens of "5"


def test_conversations_show_who_speaks_and_fold_tools(context):
    parts = list(flat(prompts.layout(context, at(group=4, order="best"))))
    folded = [texts(part) for part in parts if type(part).__name__ == "Details"]
    said = [text.partition(" · ")[0] for text in folded if not text.startswith("Token by token")]
    assert said == ["system", "tool (multiply)"]
    assert any("multiply(a=6)" in texts(part) for part in parts)


def test_keys_lead_to_the_neighbours_in_the_list(context):
    assert prompts.keys(context, at())["next"].query["group"] == "4"
    assert "previous" not in prompts.keys(context, at())
    assert prompts.keys(context, at(group=4))["previous"].query["group"] == "0"
    assert prompts.keys(context, at())["up"] == Address("round", "run", 2)


def test_runs_with_nothing_to_show(context):
    assert "No round is complete yet" in texts(prompts.layout(context, at("empty")))
    assert prompts.keys(context, at("empty")) == {}
    with pytest.raises(RollsightError, match="are steps and not completions"):
        prompts.layout(context, at("steps"))
    with pytest.raises(RollsightError, match="round 7"):
        prompts.layout(context, at(round=7))


def test_scales_are_those_of_the_round():
    signed = scale_of(measure_of("token_advantages"), np.array([-2.0, 0.0, 1.0, np.nan]))
    assert signed.colour(np.nan) == "transparent"
    assert signed.colour(-1.0)[:16] == signed.colour(-2.0)[:16] != signed.colour(1.0)[:16]
    surprise = scale_of(measure_of("token_log_probs"), np.linspace(-10, 0, 101))
    deep, pale = (float(surprise.colour(value).rpartition(",")[2][:-1]) for value in (-10.0, 0.0))
    assert deep > pale == 0
    long = by_position(np.zeros(5_000), signed)
    assert len(long.data[0].x) <= 1_000


def test_tokens_outside_the_loss_are_dimmed(tmp_path):
    found = columns(1)
    counted = [[True] * len(one) for one in found["token_texts"]]
    counted[0][1] = False
    chat = len(counted) - 4
    counted[chat] = [False] * len(counted[chat])
    with runs.create(tmp_path / "masked", {"host": "trl 1.0"}) as writer:
        shaded = {name: found.pop(name) for name in ("token_advantages", "token_log_probs")}
        writer.write_records(1, {**found, "token_in_loss": counted})
        writer.write_round(1, {"records": len(counted)})
        writer.write_records(2, {**found, **shaded, "token_in_loss": counted})
        writer.write_round(2, {"records": len(counted)})
    context = Context(Reading([tmp_path]))
    for round in (1, 2):
        chosen = choice(context, Address("prompts", "masked", query={"round": str(round)}))
        said = str(completion_text(chosen, 0, scale_for(chosen)))
        assert said.count("rs-masked") == 1
        assert "token 2: " in said
        assert "not in the loss" in said
        assert ("advantage" in said) == (round == 2)
        assert "Token by token" in str(completion_text(chosen, chat, scale_for(chosen)))
        plain = str(completion_text(chosen, 1, scale_for(chosen)))
        assert ("rs-token" in plain) == (round == 2)
