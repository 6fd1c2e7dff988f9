"""TRL: what cannot be scored as it is trained is named before training, by trying a few made-up completions."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl")

from torch import nn
from transformers import (
    BioGptConfig,
    BioGptForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from trl_zoo import CHARACTERS, lora, model, trainer

import rollsight as rs
from rollsight.adapters.trl import attach

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

SIZE = {"vocab_size": len(CHARACTERS) + 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
WIDE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERTS = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
OPT = {"hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32}


def made(model_class: Any, config_class: Any, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    built: nn.Module = model_class(config_class(**SIZE, **config))
    return built


def opt(**config: Any) -> nn.Module:
    return made(OPTForCausalLM, OPTConfig, **OPT, **config)


def state_of(model: nn.Module) -> list[Any]:
    return [
        {name: value.clone() for name, value in model.state_dict().items()},
        [part.training for part in model.modules()],
        [p.grad for p in model.parameters()],
    ]


@pytest.mark.parametrize(
    ("build", "named", "remedy"),
    [
        (lambda: model(attention_dropout=0.3), "attention_dropout=0.3", "attention_dropout=0"),
        (lambda: opt(dropout=0.1, attention_dropout=0.2), "dropout=0.1, attention_dropout=0.2", "dropout=0,"),
        (lambda: opt(dropout=0.0, layerdrop=0.5), "layerdrop=0.5", "layerdrop=0"),
        (lambda: made(BioGptForCausalLM, BioGptConfig, **WIDE), "attention_probs_dropout_prob=0.1", "with "),
        (lambda: made(GPTBigCodeForCausalLM, GPTBigCodeConfig, **GPT), "attn_pdrop=0.1", "with "),
        (
            lambda: made(MixtralForCausalLM, MixtralConfig, **WIDE, **EXPERTS, router_jitter_noise=0.05),
            "router_jitter_noise=0.05",
            "router_jitter_noise=0",
        ),
        (lambda: made(PhimoeForCausalLM, PhimoeConfig, **WIDE, **EXPERTS), "router_jitter_noise=0.01", "with "),
    ],
    ids=["llama", "opt", "layerdrop", "biogpt", "gpt_bigcode", "mixtral", "phimoe"],
)
def test_numbers_in_the_config_that_make_training_random_are_refused(
    tmp_path: Any, build: Any, named: str, remedy: str
) -> None:
    trained = trainer(tmp_path, model=build(), disable_dropout=True)
    with pytest.raises(rs.RollsightError, match="forward is random in training") as refused:
        attach(trained)
    assert named in str(refused.value)
    assert f"load the model {'' if remedy.startswith('with') else 'with '}" in str(refused.value)
    assert remedy in str(refused.value)
    assert "_generate_and_score_completions" not in vars(trained)


@pytest.mark.parametrize(
    "build",
    [
        model,
        lambda: opt(dropout=0.0, layerdrop=0.0),  # draws, without effect
        lambda: made(GPT2LMHeadModel, GPT2Config, **GPT),  # its config's 0.1 is of layers that disable_dropout sets
        lambda: made(MixtralForCausalLM, MixtralConfig, **WIDE, **EXPERTS),
    ],
    ids=["llama", "opt", "gpt2", "mixtral"],
)
def test_models_without_randomness_are_scored(tmp_path: Any, build: Any) -> None:
    trained = trainer(tmp_path, model=build(), disable_dropout=True, max_steps=1)
    attachment = attach(trained)
    trained.train()
    assert attachment.scores["sequence"].values.abs().max() > 0


def test_randomness_that_nothing_names_is_refused(tmp_path: Any) -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0.1 * random.random() * torch.ones_like(x) if self.training else x

    trained = trainer(tmp_path)
    trained.model.model.layers[0].mlp = nn.Sequential(trained.model.model.layers[0].mlp, Noisy())
    with pytest.raises(rs.RollsightError, match=r"no entry of its config says why.* make it deterministic"):
        attach(trained)


@pytest.mark.parametrize("mode", [True, False])
def test_trying_leaves_the_model_and_every_random_stream_alone(tmp_path: Any, mode: bool) -> None:
    class Counting(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.calls += 1
            return self.inner(x)

    trained = trainer(tmp_path)
    trained.model.model.layers[0].mlp = Counting(trained.model.model.layers[0].mlp)
    trained.model.train(mode)
    trained.model.model.layers[1].train(not mode)
    before = state_of(trained.model)
    streams = [torch.get_rng_state(), random.getstate(), str(np.random.get_state())]
    attach(trained, cross_fit=True)
    after = state_of(trained.model)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:] == after[1:]
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert [random.getstate(), str(np.random.get_state())] == streams[1:]


def test_encoder_decoders_are_refused(tmp_path: Any) -> None:
    config = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
    trained, tokens = trainer(tmp_path), torch.ones(2, 4, dtype=torch.long)
    trained.model = made(T5ForConditionalGeneration, T5Config, **config)
    records = rs.language.completion_records(tokens, tokens, tokens, tokens, torch.zeros(2, 4), torch.ones(2))
    with pytest.raises(rs.RollsightError, match="T5ForConditionalGeneration is an encoder-decoder; give a causal"):
        rs.score_records(rs.Policy(trained.model, rs.language.Completions()), records, rs.targets.Sequence())
    with pytest.raises(
        rs.RollsightError, match=r"T5ForConditionalGeneration is an encoder-decoder; .* causal language"
    ):
        attach(trained)


HELD_OUT = rs.targets.Return(records=rs.Records(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.zeros(2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leave_self_out": True}, r"leave_self_out=True needs every record's own gradient|layer"),
        ({"leave_self_out": True, "cross_fit": True}, "leave_self_out=True does not go with cross_fit=True"),
        ({"leave_self_out": True, "precondition": True}, "leave_self_out=True does not go with precondition=True"),
        ({"leave_self_out": True, "backend": "jvp"}, "leave_self_out=True does not go with backend='jvp'"),
        (
            {"leave_self_out": True, "target": HELD_OUT},
            "does not go with the target 'return', which has records of its",
        ),
        ({"cross_fit": True, "target": ["sequence", HELD_OUT]}, "cross_fit=True does not go with the target 'return'"),
        ({"chunk_size": 0}, "chunk_size=0 is not a number of completions"),
        ({"chunk_size": 2.5}, r"chunk_size=2\.5 is not a number of completions"),
        ({"run": ""}, "run='' is not the path of a folder"),
        ({"run": 123}, "run=123 is not the path of a folder"),
        ({"metadata": {"algo": "mine"}}, "the name 'algo' is written by attach itself"),
        ({"metadata": {"every": 2}}, "the name 'every' is written by attach itself"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(tmp_path: Any, options: Any, message: str) -> None:
    trained = trainer(tmp_path)
    with pytest.raises(rs.RollsightError, match=message):
        attach(trained, **options)
    assert "_generate_and_score_completions" not in vars(trained)


def test_layerwise_is_refused_where_it_does_not_cover_the_model(tmp_path: Any) -> None:
    trained = trainer(tmp_path)
    embedding = trained.model.model.embed_tokens
    trained.model.model.norm.register_forward_hook(lambda _module, _inputs, output: output * embedding.weight.sum())
    with pytest.raises(rs.RollsightError, match="embed_tokens"):
        attach(trained, backend="layerwise")
    attach(trained, backend="jvp")


def test_noise_on_the_embeddings_and_images_are_refused(tmp_path: Any) -> None:
    noisy = trainer(tmp_path, neftune_noise_alpha=5.0)
    with pytest.raises(rs.RollsightError, match=r"neftune_noise_alpha=5\.0 adds noise"):
        attach(noisy)
    seeing = trainer(tmp_path)
    seeing.train_dataset = seeing.train_dataset.add_column("image", [None] * len(seeing.train_dataset))
    with pytest.raises(rs.RollsightError, match="has images"):
        attach(seeing)


def test_leave_self_out_is_accepted_with_an_adapter(tmp_path: Any) -> None:
    trained = trainer(tmp_path, lora=lora(), max_steps=1)
    attachment = attach(trained, leave_self_out=True, scoring="own_pass")
    trained.train()
    assert attachment.scores["sequence"].backend == "layerwise"
