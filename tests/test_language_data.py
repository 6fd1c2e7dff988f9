"""What a language model is asked and rewarded by: data sets, conversations, columns for the reward, reward models."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="language models need PEFT (pip install 'rollsight[llm]')")
pytest.importorskip("datasets")

import datasets
from language_trainer import PROMPTS, options

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.training.language import models, ppo, prompts, rewards, run, sources
from rollsight.training.language.policy import ActorCritic
from rollsight.training.language.prompts import Prompt

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "({{ m.role }}){{ m.content }}{% endfor %}{% if add_generation_prompt %}(assistant){% endif %}"
)
ROWS = [{"question": f"What is {i} + {i}?", "answer": str(2 * i), "level": i % 2} for i in range(6)]


def asked(found):
    return [one.asked for one in found]


# --- data sets


@pytest.fixture(params=["rows.json", "rows.jsonl", "rows.csv", "rows.parquet", "folder", "saved", "parts"])
def source(request, tmp_path):
    path, data = tmp_path / request.param, datasets.Dataset.from_list(ROWS)
    match request.param:
        case "rows.json":
            path.write_text(json.dumps(ROWS))
        case "rows.jsonl":
            data.to_json(path)
        case "rows.csv":
            data.to_csv(path)
        case "rows.parquet":
            data.to_parquet(path)
        case "folder":
            path.mkdir()
            data.to_parquet(path / "train.parquet")
        case "saved":
            data.save_to_disk(path)
        case "parts":
            datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(path)
    return str(path)


def test_prompts_come_from_data_sets_with_their_further_columns(source):
    found = sources.load(source)
    assert asked(found) == [row["question"] for row in ROWS]
    assert {name: str(value) for name, value in found[3].columns.items()} == {"answer": "6", "level": "1"}
    assert asked(sources.load(f"{source}#answer")) == [row["answer"] for row in ROWS]
    assert asked(sources.load(source, "train[1:3]")) == [row["question"] for row in ROWS[1:3]]
    with pytest.raises(RollsightError, match=r"other|split"):
        sources.load(source, "other")


def test_a_part_of_a_saved_data_set(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "parts")
    assert asked(sources.load(str(tmp_path / "parts"), "test")) == [ROWS[0]["question"]]
    with pytest.raises(RollsightError, match=r"no part split='dev': choose from train, test"):
        sources.load(str(tmp_path / "parts"), "dev")


def test_text_files_have_no_parts(tmp_path):
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    assert asked(sources.load(str(tmp_path / "prompts.txt"))) == ["one", "two"]
    with pytest.raises(RollsightError, match=r"has no parts and split='test'"):
        sources.load(str(tmp_path / "prompts.txt"), "test")


def test_damaged_and_unfit_data(tmp_path):
    (tmp_path / "bad.json").write_text("{ not json")
    with pytest.raises(RollsightError, match=r"could not be loaded"):
        sources.load(str(tmp_path / "bad.json"))
    (tmp_path / "lists.jsonl").write_text('{"prompt": [1, 2]}\n')
    with pytest.raises(RollsightError, match=r"holds lists that are not conversations"):
        sources.load(str(tmp_path / "lists.jsonl"))


# --- conversations


def chatty():
    loaded = models.miniature()
    loaded.tokenizer.chat_template = TEMPLATE
    return loaded


def test_conversations_go_through_the_chat_template(tmp_path):
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "A"},
    ]
    answered = [*talk, {"role": "assistant", "content": "B"}]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in (talk, answered)))
    tokenizer = chatty().tokenizer
    found = prompts.through_template(sources.load(str(tmp_path / "talks.jsonl")), tokenizer, False, None)
    assert [one.text for one in found] == ["(user)Hi(assistant)Yes?(user)A(assistant)"] * 2
    assert asked(found) == [talk, talk]
    assert json.loads(found[0].stored) == talk
    told = prompts.through_template(found, tokenizer, False, "Be kind")
    assert told[0].text == "(system)Be kind(user)Hi(assistant)Yes?(user)A(assistant)"


def test_texts_become_conversations_only_where_asked():
    tokenizer, plain = chatty().tokenizer, [Prompt("Hi")]
    assert prompts.through_template(plain, tokenizer, False, None) == plain
    assert prompts.through_template(plain, tokenizer, True, None)[0].text == "(user)Hi(assistant)"
    assert prompts.through_template(plain, tokenizer, False, "S")[0].text == "(system)S(user)Hi(assistant)"
    with pytest.raises(RollsightError, match="has no chat template"):
        prompts.through_template(plain, models.miniature().tokenizer, True, None)
    tool = Prompt("", [{"role": "tool", "content": "x"}])
    with pytest.raises(RollsightError, match=r"does not take a conversation of tool \(no tools\)"):
        prompts.through_template([tool], tokenizer, True, None)


def test_a_template_writes_its_own_special_tokens():
    loaded = models.miniature()
    loaded.tokenizer.chat_template = "<end>" + TEMPLATE
    ids = []
    tokenizer = loaded.tokenizer

    class Adding:  # a tokenizer that starts each text with a token of its own, as Llama's does
        def __call__(self, texts, add_special_tokens):
            found = tokenizer(texts)["input_ids"]
            return {"input_ids": [[1] * add_special_tokens + list(row) for row in found]}

    (chat,) = prompts.through_template([Prompt("Hi")], tokenizer, True, None)
    ids = prompts.token_ids(["Hi", chat], Adding())
    assert ids[0][0] == 1
    assert ids[1][0] == 0  # <end>, which the template wrote
    assert ids[1] == tokenizer("<end>(user)Hi(assistant)")["input_ids"]


def test_a_run_with_conversations(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    loaded = chatty()
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    seen = []

    def right(completions, answer, prompts, **columns):
        seen.append((prompts, answer, columns))
        return [float(len(set(text)) - len(a)) for text, a in zip(completions, answer, strict=True)]

    monkeypatch.setattr(rewards, "load", lambda *_: right)
    settings = run.RunSettings(
        str(folder), str(tmp_path / "rows.jsonl"), system="Be kind", options=options(prompts_per_round=4), rounds=1,
        lora_rank=2, eval_prompts=2, precision="float32",
    )  # fmt: skip
    run.train(settings, tmp_path / "run")
    first_prompts, answers, columns = seen[1]
    assert [messages[0]["content"] for messages in first_prompts] == ["Be kind"] * 4
    by_question = {row["question"]: row for row in ROWS}
    expected = [by_question[messages[1]["content"]] for messages in first_prompts]
    assert answers == [row["answer"] for row in expected]
    assert columns == {"level": [row["level"] for row in expected]}
    stored = [json.loads(row) for row in runs.open(tmp_path / "run").records(1)["prompt"].to_pylist()]
    assert stored == [list(messages) for messages in first_prompts]


# --- the reward


def trained_with(reward, columns=("answer",)):
    policy = ActorCritic(models.miniature(), 2, 0)
    given = [Prompt(text, None, {name: f"{name} {text}" for name in columns}) for text in PROMPTS]
    return ppo.LanguagePPO(policy, given, reward, options(prompts_per_round=4), 0)


def by_position(given, texts, answer):
    assert all(a == f"answer {p}" for p, a in zip(given, answer, strict=True))
    return [float(len(set(text))) for text in texts]


def with_default(given, texts, weight=1.0):
    assert weight == 1.0
    return [float(len(set(text))) for text in texts]


def takes_all(given, texts, **columns):
    assert columns.keys() == {"answer"}
    return [float(len(set(text))) for text in texts]


def as_trl_calls_it(completions, answer, **rest):
    assert rest.keys() == {"prompts"}
    return [float(len(set(text))) for text in completions]


class Judge:
    def __call__(self, prompts, completions, *, answer):
        return torch.tensor([float(len(set(text))) for text in completions], requires_grad=True)


@pytest.mark.parametrize("reward", [by_position, with_default, takes_all, as_trl_calls_it, Judge()])
def test_a_reward_is_given_the_columns_that_it_names(reward):
    rollout = trained_with(reward).train_round()[0]
    assert rollout.rewards.tolist() == [len(set(text)) for text in rollout.texts]


def test_a_column_that_is_missing_is_said_before_training():
    def needs(prompts, completions, solution):
        return [0.0] * len(completions)

    with pytest.raises(RollsightError, match=r"needs takes solution, and the prompts have only the columns answer"):
        trained_with(needs)
    with pytest.raises(RollsightError, match=r"no further columns"):
        trained_with(needs, columns=())


def raising(prompts, completions):
    raise KeyError("no such entry")


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        (raising, r"test_language_data:raising raised KeyError: 'no such entry'"),
        (lambda p, c: ["good"] * len(c), r"returned a list of str: return one number for each of the 4"),
        (lambda p, c: ["1.5"] * len(c), r"returned a list of str"),
        (lambda p, c: None, r"returned None"),
        (lambda p, c: [None] * len(c), r"is None for 4 of 4 completions"),
        (lambda p, c: [1.0, None, 2.0, 3.0], r"is None for 1 of 4"),
        (lambda p, c: 1.0, r"returned float 1.0 for 4 completions"),
        (lambda p, c: {"reward": 1.0}, r"returned dict"),
        (lambda p, c: (1.0 for _ in c), r"returned generator"),
        (lambda p, c: [1.0] * (len(c) - 1), r"shape \(3,\) for 4 completions"),
        (lambda p, c: [[1.0] for _ in c], r"shape \(4, 1\) for 4 completions"),
        (lambda p, c: [1.0, [2.0], 3.0, 4.0], r"returned a list of float and list"),
        (lambda p, c: [1j] * len(c), r"returned a list of complex"),
        (lambda p, c: [float("inf")] * len(c), r"is inf for 4 of 4"),
        (lambda p, c, d: [1.0] * len(c), r"takes d, and the prompts have only"),
    ],
)
def test_rewards_that_fail_are_one_sentence(reward, sentence):
    with pytest.raises(RollsightError, match=sentence):
        trained_with(reward).train_round()


@pytest.mark.parametrize("values", [[True, False, True, True], [1, 2, 3, 4], np.float32([1, 2, 3, 4])])
def test_rewards_of_any_kind_of_number(values):
    found = rewards.compute(lambda p, c: values, ["x"] * 4, ["a"] * 4)
    assert found.dtype == np.float64
    assert found.tolist() == [float(value) for value in values]


def reward_model(folder, template=None, padded=True):
    from transformers import LlamaForSequenceClassification

    made = models.miniature()
    made.model.config.num_labels = 1
    torch.manual_seed(0)
    judge = LlamaForSequenceClassification(made.model.config).eval()
    if not padded:
        judge.config.pad_token_id = made.tokenizer.pad_token = None
    made.tokenizer.chat_template = template
    judge.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    tokenizer = models.miniature().tokenizer

    def value(text):
        with torch.no_grad():
            return float(judge(**tokenizer(text, return_tensors="pt")).logits[0, 0])

    return value


@pytest.mark.parametrize("padded", [True, False])
def test_a_reward_model_sees_the_prompt(tmp_path, padded):
    value = reward_model(tmp_path, TEMPLATE, padded)
    talk = Prompt("ignored", [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}])
    given, texts = [Prompt("Hello "), talk, Prompt("I ")], ["you", "there", "am here"]
    both = rewards.compute(rewards.load(str(tmp_path), "both"), given, texts)
    expected = ["Hello you", "(system)S(user)Hi(assistant)there", "I am here"]
    np.testing.assert_allclose(both, [value(text) for text in expected], atol=1e-5)
    alone = rewards.compute(rewards.load(str(tmp_path)), given, texts)
    np.testing.assert_allclose(alone, [value(text) for text in texts], atol=1e-5)


def test_a_long_prompt_loses_its_beginning_and_not_the_completion(tmp_path):
    reward_model(tmp_path)
    tokenizer = models.miniature().tokenizer
    tokenizer.model_max_length = 20
    tokenizer.save_pretrained(tmp_path)
    reward = rewards.load(str(tmp_path), "both")
    one, same, other = rewards.compute(reward, ["a" * 50, "b" + "a" * 50, "a" * 50], ["yes", "yes", "no!"])
    assert one == pytest.approx(same)
    assert abs(one - other) > 1e-4


# --- the texts of tokens


def test_the_texts_of_tokens_joined_are_the_completion():
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    from rollsight.training.language.token_texts import TokenTexts

    alphabet = {one: i for i, one in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(kinds.BPE({**alphabet, "<end>": len(alphabet)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    by_bytes = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
    row = [*by_bytes("n\u00e9 \u65e5!").input_ids, by_bytes.eos_token_id]
    (texts,) = TokenTexts(by_bytes).of([row])
    assert texts == ["n", "", "\u00e9", " ", "", "", "\u65e5", "!", "<end>"]  # a character is said by its last byte
    (cut,) = TokenTexts(by_bytes).of([row[:2]])
    assert cut == ["n", "\ufffd"]  # the text ends within it

    words = {"\u2581Hello": 0, "\u2581world": 1, "<end>": 2}
    raw = Tokenizer(kinds.WordLevel(words, unk_token="<end>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    by_words = PreTrainedTokenizerFast(tokenizer_object=raw)
    # What continues a prompt begins with its space, which decoding a text of its own leaves out.
    assert TokenTexts(by_words).of([[1, 0]]) == [[" world", " Hello"]]
