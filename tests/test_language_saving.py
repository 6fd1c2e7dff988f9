"""A trained model that PEFT and transformers read again, bit for bit."""

import json

import pytest
import torch

pytest.importorskip("peft", reason="language models need PEFT (pip install 'rollsight[llm]')")

import peft
from language_trainer import PROMPTS, options, vowels
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rollsight import runs
from rollsight.cli import main
from rollsight.errors import RollsightError
from rollsight.training.language import models, ppo, rewards, run, saving
from rollsight.training.language.policy import ActorCritic


@pytest.fixture
def base(tmp_path):
    made = models.miniature()
    made.model.generation_config.repetition_penalty = 1.2
    made.model.save_pretrained(tmp_path / "base")
    made.tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def settings(base, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    monkeypatch.setattr(rewards, "load", lambda *_: vowels)
    return {
        "model": base, "prompts": str(tmp_path / "prompts.txt"), "reward": "test", "options": options(), "rounds": 2,
        "lora_rank": 2, "eval_prompts": 0, "precision": "float32", "save": str(tmp_path / "saved"),
    }  # fmt: skip


def log_probs(model, tokenizer):
    inputs = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    with torch.no_grad():
        return model(**inputs).logits.log_softmax(-1)


@pytest.mark.filterwarnings("ignore:the model's generation_config")
@pytest.mark.parametrize(("rank", "dtype"), [(2, torch.float32), (2, torch.bfloat16), (0, torch.float32)])
def test_what_is_saved_says_the_same_bits(rank, dtype, base, tmp_path):
    loaded = models.load(base, precision=str(dtype).removeprefix("torch."))
    policy = ActorCritic(loaded, rank, 0)
    ppo.LanguagePPO(policy, PROMPTS, vowels, options(lr=1e-2), 0).train_round()
    saving.save(policy, tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved" if rank == 0 else base, dtype=dtype)
    if rank:
        before = log_probs(again, tokenizer)
        again = peft.PeftModel.from_pretrained(again, tmp_path / "saved")
    else:
        before = log_probs(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), tokenizer)
        assert again.generation_config.repetition_penalty == 1.2  # the model's own, which training set aside
    ours = log_probs(policy.language_model, policy.tokenizer)
    assert torch.equal(log_probs(again.eval(), tokenizer), ours)
    assert not torch.equal(before, ours)
    head = load_file(tmp_path / "saved" / saving.VALUE_HEAD)
    assert torch.equal(head["weight"], policy.value_head.weight)
    assert torch.equal(head["bias"], policy.value_head.bias)
    assert not list((tmp_path / "saved").glob(".*"))


@pytest.mark.filterwarnings("ignore:the model's generation_config")
def test_a_run_saves_as_it_goes_and_at_its_end(settings, tmp_path):
    run.train(run.RunSettings(**settings, save_every=1), tmp_path / "run")
    saved = tmp_path / "saved"
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (saved / "round-000001", saved)]
    last = load_file(saved / "round-000002" / "adapter_model.safetensors")
    assert all(torch.equal(last[name], weights[1][name]) for name in last)
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in last)
    opened = runs.open(tmp_path / "run")
    kept = torch.load(opened.checkpoint_path(2), weights_only=True)["trainable"]
    name = next(name for name in kept if "lora_B" in name)
    stored = name.removeprefix("language_model.").replace(".default", "")
    assert torch.equal(kept[name], weights[1][stored])


@pytest.mark.filterwarnings("ignore:the model's generation_config")
def test_a_finished_run_is_saved_by_resuming_it(settings, tmp_path, capsys):
    run.train(run.RunSettings(**{**settings, "save": None}), tmp_path / "run")
    assert main(["rlhf", "--resume", str(tmp_path / "run"), "--save", str(tmp_path / "late"), "--threads", "1"]) == 0
    assert f"saved model: {tmp_path / 'late'}" in capsys.readouterr().out
    found = load_file(tmp_path / "late" / "adapter_model.safetensors")
    assert any("lora_B" in name and bool(value.any()) for name, value in found.items())
    assert runs.open(tmp_path / "run").rounds == [1, 2]


def test_a_folder_with_something_else_is_left_alone(settings, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "thesis.tex").write_text("...")
    with pytest.raises(RollsightError, match="is not empty and holds no saved model"):
        run.train(run.RunSettings(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "saved" / saving.VALUE_HEAD).write_text("")
    with pytest.raises(RollsightError, match=r"holds a saved model already.*overwrite=True"):
        run.train(run.RunSettings(**settings), tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(RollsightError, match="is a file"):
        run.train(run.RunSettings(**{**settings, "save": str(tmp_path / "file")}), tmp_path / "run")
    with pytest.raises(RollsightError, match=r"save_every=2 needs a folder"):
        run.RunSettings(save_every=2)


@pytest.mark.filterwarnings("ignore:the model's generation_config")
def test_a_full_disk_in_between_does_not_end_training(settings, tmp_path, monkeypatch):
    save = saving.save

    def full(policy, folder):
        if "round-" in str(folder):
            raise RollsightError("the model could not be saved: no space left")
        save(policy, folder)

    monkeypatch.setattr(saving, "save", full)
    with pytest.warns(UserWarning, match=r"no saved model in .*no space left\); training goes on"):
        run.train(run.RunSettings(**settings, save_every=1), tmp_path / "run")
    assert runs.open(tmp_path / "run").rounds == [1, 2]
    assert json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["r"] == 2
