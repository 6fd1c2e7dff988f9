"""Which completions taught this behaviour: frozen rounds, scores against the definition, exact replays, errors."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="language models need PEFT (pip install 'rollsight[llm]')")

from language_trainer import PROMPTS, options, vowels

from rollsight import cli, objectives, runs
from rollsight.analysis import culprits
from rollsight.analysis.culprits.groups import flat
from rollsight.errors import RollsightError
from rollsight.explorer import Reading
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.pages import PAGES
from rollsight.explorer.report import write_report
from rollsight.snapshot import LanguageRound
from rollsight.training.language import rewards
from rollsight.training.language import run as language_run

VOWELS = "select round, episode from records where round = 3 and reward > 1"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Three rounds of a miniature, completions that hurt left out."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), "utf-8")
    small = options(prompts_per_round=16, lr=1e-2, minibatch=8, micro_batch=8)
    settings = language_run.RunSettings(
        "miniature", str(folder / "prompts.txt"), "test", options=small, rounds=3, lora_rank=2, eval_prompts=0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewards, "load", lambda *_: vowels)
        language_run.train(settings, folder / "run")
    return folder / "run"


@pytest.fixture
def run(path):
    return runs.open(path)


def test_every_round_of_a_small_model_is_frozen_unless_asked_otherwise(run, path):
    assert run.policy_rounds == run.rounds == [1, 2, 3]
    assert run.snapshot_rounds == []
    frozen = LanguageRound.load(run.policy_path(2))
    table = run.records(2)
    assert frozen.weights.tolist() == [float(kept) for kept in table["kept"].to_pylist()]
    assert 0 < frozen.weights.sum() < len(table)
    for row, tokens in enumerate(table["token_ids"].to_pylist()):
        assert frozen.records.actions[row][frozen.records.valid[row]].tolist() == tokens


@pytest.mark.parametrize(("snapshots", "frozen"), [("none", []), ("every:2", [2])])
def test_the_option_says_which_rounds_are_frozen_and_changes_no_training(
    path, tmp_path, monkeypatch, snapshots, frozen
):
    monkeypatch.setattr(rewards, "load", lambda *_: vowels)
    settings = language_run.settings_of(path)
    language_run.train(replace(settings, rounds=2, snapshots=snapshots), tmp_path / "run")
    other = runs.open(tmp_path / "run")
    assert other.policy_rounds == frozen
    assert other.records(2).equals(runs.open(path).records(2))
    with pytest.raises(RollsightError, match="is unknown: give auto, all, every:K or none"):
        language_run.train(replace(settings, snapshots="sometimes"), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_a_replay_of_a_round_ends_where_the_next_begins_to_the_bit(run):
    behaviour = culprits.of_query(run, VOWELS)
    ends = behaviour.rounds.open(2).after(None)
    ended = {name: p.detach().clone() for name, p in ends.trainable().items()}
    begins = behaviour.rounds.open(3).before().trainable()
    assert ended.keys() == begins.keys()
    assert all(torch.equal(ended[name], begins[name]) for name in begins)
    moved = behaviour.rounds.open(2).before().trainable()
    assert not all(torch.equal(ended[name], moved[name]) for name in moved)


def test_influence_is_the_gradients_product_and_zero_where_dropped(run):
    behaviour = culprits.of_query(run, VOWELS)
    (found,) = culprits.score_rounds(run, [behaviour])
    for one in found:
        opened = behaviour.rounds.open(one.round)
        policy, records = opened.before(), opened.records
        parameters = list(policy.trainable().values())

        def gradient(total, parameters=parameters):
            return torch.cat([part.flatten() for part in torch.autograd.grad(total, parameters)])

        terms = behaviour.target().terms(policy(behaviour.records), behaviour.records)
        direction = gradient(terms.mean())
        assert one.log_prob == pytest.approx(float(terms.detach().mean()), rel=1e-5)
        objective = objectives.PPO("raw", 0.2)
        expected = []
        for row in range(len(records)):
            alone = records.take(torch.tensor([row]))
            expected.append(float(gradient(objective.terms(policy(alone), alone).sum()) @ direction))
        kept = opened.weights.numpy() > 0
        np.testing.assert_allclose(one.values, np.where(kept, expected, 0), rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(one.weights > 0, kept)


def test_pairs_are_explained_as_the_same_records_are(run, tmp_path):
    row = next(i for i, text in enumerate(run.records(2)["completion"].to_pylist()) if len(text) == 6)
    (listed,) = run.records(2).slice(row, 1).to_pylist()
    recorded = culprits.of_completions(run, [(2, row)])
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": listed["prompt"], "completion": listed["completion"]}) + "\n")
    given = culprits.of_pairs(run, culprits.read_pairs(file))
    asked = culprits.of_query(run, f"select prompt, completion from records where round = 2 and episode = {row}")
    assert recorded.places == [(2, row)]
    assert given.places == ()
    policy = recorded.rounds.open(2).before()
    expected = sum(listed["token_log_probs"])
    for one in (recorded, given, asked):
        assert one.log_prob(policy) == pytest.approx(expected, rel=1e-4)
    assert len({one.key for one in (recorded, given)}) == 2


def test_groups_add_up_and_the_check_replays_without_the_culprits(run):
    behaviour = culprits.of_query(run, VOWELS)
    settings = culprits.Settings(by=("prompt", "round", "group", "record"), rounds=2, draws=1, share=0.3)
    result = culprits.culprits_of(run, behaviour, settings)
    (found,) = culprits.score_rounds(run, [behaviour])
    values, trained = flat(found)
    for name in ("prompt", "round", "group"):
        assert sum(one.influence for one in culprits.gather(run, found, name)) == pytest.approx(values.sum(), rel=1e-5)
    assert set(result.groups) == {"prompt", "round", "group"}
    best = result.records[0]
    assert best["influence"] == values[trained].max()
    row = run.records(best["round"]).slice(best["row"], 1).to_pylist()[0]
    assert (row["episode"], row["completion"]) == (best["episode"], best["completion"])
    assert culprits.gather(run, found, "record", 1)[0].value == f"{best['round']}:{best['episode']}"
    one = result.check.rounds[0]
    opened = behaviour.rounds.open(one.round)
    weights = opened.weights.clone()
    influence = found[one.round - 1].values
    weights[torch.from_numpy(np.argsort(-influence, kind="stable")[: one.left_out].copy())] = 0
    assert behaviour.log_prob(opened.after(weights)) == one.without_culprits
    assert behaviour.log_prob(opened.after(None)) == one.trained
    assert one.without_culprits != one.trained


def test_the_command_takes_several_behaviours_and_prints_texts(path, tmp_path, capsys):
    other = VOWELS.replace("reward > 1", "reward <= 1")
    options = ["--rounds", "1", "--draws", "1", "--top", "2"]
    assert cli.main(["culprits", str(path), "--behaviour", VOWELS, "--behaviour", other, *options, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert [first["behaviour"], second["behaviour"]] == [VOWELS, other]
    assert runs.stored_results(path, "culprits")[second["key"]]["rounds"] == second["rounds"]
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps([{"prompt": "No", "completion": "aeio"}, {"prompt": "I", "completion": "ou"}]))
    assert cli.main(["culprits", str(path), "--pairs", str(pairs), *options, "--without", "prompt"]) == 0
    shown = capsys.readouterr().out
    assert "2 completions" in shown
    assert "the records of prompt" in shown
    assert "log p(y|x)" in shown
    assert cli.main(["culprits", str(path), "--record", "2:3", "--no-check"]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--behaviour", "select round from records"], "neither round and episode nor prompt and completion"),
        (["--behaviour", "select round, episode from records where round = 9"], "never occurs"),
        (["--record", "1:0:1"], "names no completion: give --record ROUND:EPISODE"),
        (["--record", "1:99"], "has no record 1:99: in round 1 episode goes from 0 to 15"),
        (["--record", "7:0"], "round 7 of"),
        (["--record", "1:0", "--by", "token_ids"], "'token_ids' holds lists"),
        (["--pairs", "nothing.json"], "is not a file"),
    ],
)
def test_mistakes_are_said_in_a_sentence(path, options, said, capsys):
    assert cli.main(["culprits", str(path), *options]) == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_files_of_pairs_that_are_not_say_so(tmp_path):
    for text, said in (("{", "neither JSON"), ("[]", "no pair"), ('[{"prompt": "a"}]', "entry 1 of .* no completion")):
        (tmp_path / "pairs.json").write_text(text)
        with pytest.raises(RollsightError, match=said):
            culprits.read_pairs(tmp_path / "pairs.json")


def test_another_base_model_is_refused(run):
    frozen = LanguageRound.load(run.policy_path(1))
    with pytest.raises(RollsightError, match="another model or adapter"):
        frozen.put_into({"weight": torch.zeros(2)})


def test_the_page_and_the_report_show_the_texts(path, tmp_path, capsys):
    context = Context(Reading([path.parent]))
    run = runs.open(path)
    behaviour = culprits.of_query(run, VOWELS, name="says vowels")
    culprits.culprits_of(run, behaviour, culprits.Settings(rounds=1, draws=1))
    bare = spelled(PAGES["culprits"].layout(context, Address("culprits", "run")))
    assert "rollsight culprits" in bare
    first = next(iter(runs.stored_results(path, "culprits").values()))
    assert json.dumps(first["records"][0]["completion"])[1:-1] in bare  # without a choice, the first that is kept
    shown = spelled(PAGES["culprits"].layout(context, Address("culprits", "run", query={"behaviour": behaviour.key})))
    kept = runs.stored_results(path, "culprits")[behaviour.key]
    best = kept["records"][0]
    assert json.dumps(best["completion"])[1:-1] in shown
    assert f"/runs/run/record/{best['round']}/{best['row']}" in shown
    written = write_report(path, tmp_path / "report.html").read_text("utf-8")
    assert "Which rollouts taught it?" in written
    assert "says vowels" in written
    assert kept["check"]["verdict"].split(": ")[1] in written


def spelled(parts):
    return json.dumps(parts, default=lambda part: part.to_plotly_json())
