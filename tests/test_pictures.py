"""What the agent saw: the same pictures as the environment itself showed when the record was made."""

from __future__ import annotations

import io

import gymnasium as gym
import numpy as np
import pytest

from rollsight import RollsightError, runs
from rollsight.environments.describe import describe_environment
from rollsight.environments.episode_start import START
from rollsight.environments.make import make_environment
from rollsight.playing.pictures import Pictures

Image = pytest.importorskip("PIL.Image")
STEPS = 6


def play(name, folder, metadata=None, keep_start=True, draw=None, **keywords):
    """Episodes of random actions over two rounds; the run, and the environment's own picture of every record."""
    env = make_environment(name, render_mode="rgb_array", **keywords)
    described = describe_environment(env)
    described["wrappers"] = [one for one in described["wrappers"] if "arguments" in one]
    env.action_space.seed(0)
    base = {"env": name, "env_kwargs": {}, "max_episode_steps": env.spec.max_episode_steps, "env_wrappers": []}
    base |= {"environment": {**described, "kwargs": keywords, "vec_wrappers": []}}
    limits = [one["arguments"]["max_episode_steps"] for one in described["wrappers"] if "TimeLimit" in one["wrapper"]]
    base["max_episode_steps"] = min(limits, default=None)
    obs, info = env.reset(seed=3)
    start, step, episode, pictures = info[START], 0, 0, []
    with runs.create(folder, {**base, **(metadata or {})}) as writer:
        for round in (1, 2):
            rows = []
            for _ in range(STEPS):
                pictures.append(draw(env) if draw else env.render())
                action = env.action_space.sample()
                seen = np.asarray(obs).reshape(-1)
                how = start if step == 0 and keep_start else None
                rows.append((seen if seen.size > 1 else seen[0], action, episode, step, how))
                obs, _, terminated, truncated, _ = env.step(action)
                step += 1
                if terminated or truncated:
                    obs, info = env.reset()
                    start, step, episode = info[START], 0, episode + 1
            names = ("obs", "action", "episode", "episode_step", "episode_start")
            columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
            writer.write_records(round, columns | {name: np.array(columns[name]) for name in ("obs", "action")})
            writer.write_round(round, {"records": STEPS})
    env.close()
    return runs.open(folder), pictures


def difference(one, other):
    assert one.shape == other.shape
    return np.abs(one.astype(float) - other).mean()


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("CartPole-v1", "observation"),
        ("Acrobot-v1", "observation"),
        ("Pendulum-v1", "observation"),
        ("MountainCar-v0", "observation"),
        ("MountainCarContinuous-v0", "observation"),
        ("CliffWalking-v1", "observation"),
        ("LunarLander-v3", "replay"),
    ],
)
def test_a_record_looks_as_it_looked(name, source, tmp_path):
    if name.startswith("Lunar"):
        pytest.importorskip("Box2D")
    run, shown = play(name, tmp_path / "run")
    pictures = Pictures(run)
    for round, row in ((1, 0), (1, STEPS - 1), (2, 2)):
        picture = pictures.of_record(round, row)
        assert picture.source == source
        # Positions come from float32 observations: an edge may move by a pixel. Pendulum also draws its last torque.
        assert difference(picture.image, shown[(round - 1) * STEPS + row]) < (3 if name.startswith("Pend") else 0.5)


def test_a_cell_of_frozen_lake_with_a_map_of_its_own(tmp_path):
    run, shown = play("FrozenLake-v1", tmp_path / "run", desc=["SF", "FG"], is_slippery=True)
    pictures = Pictures(run)
    for row in range(STEPS):
        assert difference(pictures.of_record(1, row).image, shown[row]) < 3  # the elf looks where it went
    cells = {pictures.of_record(1, row).image.tobytes() for row in range(STEPS)}
    assert len(cells) == len(set(run.records(1)["obs"].to_pylist()))


@pytest.mark.parametrize("channels_first", [False, True])
def test_minigrid_is_drawn_with_its_own_tiles(channels_first, tmp_path):
    pytest.importorskip("minigrid")
    run, shown = play("MiniGrid-DoorKey-5x5-v0", tmp_path / "run", draw=lambda env: env.unwrapped.get_pov_render(24))
    if channels_first:
        with runs.create(tmp_path / "first", {**_metadata(run), "env_wrappers": ["VecTransposeImage"]}) as writer:
            seen = np.array(run.records(1)["obs"].to_pylist()).reshape(-1, 7, 7, 3).transpose(0, 3, 1, 2)
            writer.write_records(1, {"obs": seen.reshape(STEPS, -1)})
            writer.write_round(1, {})
        run = runs.open(tmp_path / "first")
    pictures = Pictures(run)
    for row in range(STEPS):
        picture = pictures.of_record(1, row)
        assert picture.source == "observation"
        np.testing.assert_array_equal(picture.image, shown[row])


def _metadata(run):
    made = ("format", "schema", "created", "command", "versions", "machine", "digests")
    return {name: value for name, value in run.metadata.items() if name not in made}


def test_ataris_newest_frame(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 84, 84), np.uint8)
    metadata = {"env": "ALE/Pong-v5", "env_wrappers": ["VecTransposeImage", "VecFrameStack"]}
    with runs.create(tmp_path / "run", metadata) as writer:
        writer.write_records(1, {"obs": [frames[0].reshape(-1), None]})
        writer.write_round(1, {})
    pictures = Pictures(runs.open(tmp_path / "run"))
    np.testing.assert_array_equal(pictures.of_record(1, 0).image[::2, ::2, 1], frames[0, -1])
    with pytest.raises(RollsightError, match=r"Pong-v5 cannot be drawn: .* not store how this episode started"):
        pictures.of_record(1, 1)


@pytest.mark.parametrize("name", ["CartPole-v1", "LunarLander-v3"])
def test_a_film_strip_goes_over_rounds(name, tmp_path):
    if name.startswith("Lunar"):
        pytest.importorskip("Box2D")
    run, shown = play(name, tmp_path / "run")
    strip = Pictures(run).of_episode(2, 0, height=60)
    numbers = [run.records(round)["episode"].to_pylist() for round in (1, 2)]
    expected = [(r + 1, i) for r in (0, 1) for i in range(STEPS) if numbers[r][i] == numbers[1][0]]
    assert strip.rows == expected
    assert len(strip.frames) == len(expected) > STEPS
    for (round, row), frame in zip(strip.rows, strip.frames, strict=True):
        picture = Image.open(io.BytesIO(frame))
        assert picture.size == (90, 60)
        small = Image.fromarray(shown[(round - 1) * STEPS + row]).resize((90, 60), Image.Resampling.BILINEAR)
        assert difference(np.asarray(picture), np.asarray(small)) < 0.5


def test_what_cannot_be_drawn_is_said_by_name(tmp_path):
    pytest.importorskip("Box2D")
    run, _ = play("LunarLander-v3", tmp_path / "a", keep_start=False)
    with pytest.raises(RollsightError, match="LunarLander-v3 cannot be drawn: its observations do not say all"):
        Pictures(run).of_record(1, 2)
    with pytest.raises(RollsightError, match="has 6 records and none of number 6"):
        Pictures(run).of_record(1, 6)
    run, _ = play("CartPole-v1", tmp_path / "b", {"env_wrappers": ["VecNormalize"]}, keep_start=False)
    with pytest.raises(RollsightError, match="CartPole-v1 cannot be drawn"):
        Pictures(run).of_record(1, 2)
    run, _ = play("CartPole-v1", tmp_path / "c", {"observation_space": "Box(-inf, inf, (4,), float32)"}, False)
    with pytest.raises(RollsightError, match="CartPole-v1 cannot be drawn"):
        Pictures(run).of_record(1, 2)


def test_another_episode_than_the_stored_one_is_refused(tmp_path):
    pytest.importorskip("Box2D")
    run, _ = play("LunarLander-v3", tmp_path / "a")
    table = run.records(1).to_pydict()
    table["obs"] = np.array(table["obs"]) + 0.5
    with runs.create(tmp_path / "b", _metadata(run)) as writer:
        writer.write_records(1, table)
        writer.write_round(1, {})
    with pytest.raises(RollsightError, match="does not reproduce what the run recorded"):
        Pictures(runs.open(tmp_path / "b")).of_record(1, 1)


def test_runs_of_registered_names_only(tmp_path):
    with runs.create(tmp_path / "run", {"env": "NoSuch-v0"}) as writer:
        writer.write_records(1, {"obs": [[0.0]]})
        writer.write_round(1, {})
    with pytest.raises(RollsightError, match="NoSuch-v0 cannot be drawn"):
        Pictures(runs.open(tmp_path / "run")).of_record(1, 0)
    assert "NoSuch-v0" not in gym.registry
