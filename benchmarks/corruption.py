"""Runs with one thing wrong, and what every reading command does: says it, or changes its answer without a word.

    python benchmarks/corruption.py [--commands 1200] [--seed 0]

Trains a small run with snapshots and evaluations, damages a copy of it in one way at a time, and runs the commands in
this process. Each is one of: the same output; said (an error in one sentence, a warning line, or `check` naming the
file); changed without a word; a traceback. A file that no command reads may be damaged without a word: the output is
the same then. Permission is taken away by an `open` that refuses, because root may read everything.
"""

from __future__ import annotations

import argparse
import builtins
import io
import itertools
import json
import os
import random
import re
import shutil
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollsight.cli import main as rollsight

Damage = Callable[[Path, random.Random], None]
FILES = ("records", "rounds", "evaluations", "snapshots", "run.json", "SHA256SUMS")
# What takes its time, with the fewest records, episodes and masks that it takes.
COMMANDS: dict[str, list[str]] = {
    "top": ["top", "RUN", "--round", "2", "--json"],
    "top action": ["top", "RUN", "--round", "2", "--target", "action", "--record", "0:3", "--json"],
    "sql records": ["sql", "RUN", "select round, count(*), sum(reward), sum(score_return) from records group by 1"],
    "sql rounds": ["sql", "RUN", "select * from rounds order by round", "--json"],
    "sql evaluations": ["sql", "RUN", "select * from evaluations order by round, episode", "--json"],
    "export": ["export", "RUN", "--out", "OUT/all.csv", "--overwrite"],
    "compare": ["compare", "RUN", "--json"],
    "check": ["check", "RUN", "--json"],
    "diagnose": [
        *("diagnose", "RUN", "--round", "2", "--records", "8", "--branches", "3", "--processes", "1", "--json"),
        *("--out", "OUT/d", "--overwrite"),
    ],
    "intervene": [
        *("intervene", "RUN", "--rounds", "2", "--orders", "1", "--episodes", "2", "--processes", "1", "--json"),
    ],
    "fidelity": ["fidelity", "RUN", "--round", "2", "--masks", "4", "--json"],
    "phases": ["phases", "RUN", "--record", "2:0:3", "--permutations", "40", "--neighbours", "5", "--json"],
}
SLOW = ("diagnose", "intervene", "fidelity", "phases")


@dataclass(frozen=True)
class Outcome:
    """How a command ended. code: its exit code, None after a traceback; said: whether it said what was wrong."""

    code: int | None
    text: str
    said: bool
    trace: str = ""


def make_run(folder: Path) -> None:
    """A run of three rounds of CartPole with snapshots, evaluations and scores."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    from rollsight.adapters.sb3 import InfluenceCallback

    def evaluate(model: Any, round: int) -> Any:
        return evaluate_policy(model, make_vec_env("CartPole-v1", 1, seed=round), 2, return_episode_rewards=True)

    env = make_vec_env("CartPole-v1", 2, seed=0)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, seed=0, device="cpu")
    callback = InfluenceCallback(drop=0.5, run=folder, snapshots="all", evaluate=evaluate)
    model.learn(64 * 3, callback=callback)


def run_command(name: str, run: Path) -> Outcome:
    """Run a command on a run folder, in this process."""
    with tempfile.TemporaryDirectory() as out:
        arguments = [part.replace("RUN", str(run)).replace("OUT", out) for part in COMMANDS[name]]
        said, shown, trace = io.StringIO(), io.StringIO(), ""
        code: int | None
        try:
            with redirect_stdout(shown), redirect_stderr(said), warnings.catch_warnings():
                code = rollsight(arguments)
        except SystemExit as error:
            code = int(error.code or 0) if isinstance(error.code, int | None) else 1
        except Exception:
            code, trace = None, traceback.format_exc()
        written = "".join(p.read_text() for p in sorted(Path(out).glob("*.csv")))
    text = re.sub(r'"(seconds|time_\w+)": [\d.e-]+', "", shown.getvalue() + written)
    return Outcome(
        code,
        text.replace(str(out), "OUT"),
        bool(re.search("^(error|warning): ", said.getvalue(), re.M)) or "No faults were injected: " in text,
        trace,
    )


def classify(healthy: Outcome, now: Outcome) -> str:
    """same, said, changed or traceback."""
    if now.code is None:
        return "traceback"
    if now.said and not healthy.said:
        return "said"
    return "same" if (now.code, now.text) == (healthy.code, healthy.text) else "changed"


def target_of(kind: str, run: Path, rng: random.Random) -> Path:
    """A file of this kind, of round 2 most of the time, which the commands look at."""
    if kind in ("run.json", "SHA256SUMS"):
        return run / kind
    files = sorted((run / kind).glob("round-*"))
    second = next(path for path in files if "000002" in path.name)
    return second if rng.random() < 0.7 else rng.choice(files)


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size)])


def swap(path: Path, rng: random.Random) -> None:
    others = [other for other in sorted(path.parent.glob(f"*{path.suffix}")) if other != path and other.is_file()]
    if others:
        shutil.copy(rng.choice(others), path)
    else:
        path.write_bytes(b"{}")


def other_schema(path: Path, rng: random.Random) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"another": ["column"] * 64}), path)


def more_zeros(path: Path, rng: random.Random) -> None:
    shutil.copy(path, path.with_name(path.name.replace("round-", "round-0")))


def as_another_round(path: Path, rng: random.Random) -> None:
    shutil.copy(path, path.with_name(f"round-000004{path.suffix}"))


DAMAGES: dict[str, Damage] = {
    "flipped bit": flip,
    "truncated": truncate,
    "emptied": lambda path, rng: path.write_bytes(b"") and None,
    "doubled": lambda path, rng: path.write_bytes(path.read_bytes() * 2) and None,
    "swapped": swap,
    "of another schema": other_schema,
    "deleted": lambda path, rng: path.unlink(),
    "renamed": lambda path, rng: path.rename(path.with_name(f"{path.name}.bak")) and None,
    "a copy with more zeros": more_zeros,
    "a copy as another round": as_another_round,
}


def lost_round(run: Path, rng: random.Random) -> None:
    for kind in ("records", "rounds", "evaluations", "snapshots"):
        for path in (run / kind).glob("round-000002.*"):
            path.unlink()


def edit_metadata(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(run: Path, rng: random.Random) -> None:
        metadata = json.loads((run / "run.json").read_text())
        change(metadata)
        (run / "run.json").write_text(json.dumps(metadata))

    return damage


def put(name: str, value: Any, inside: str | None = None) -> Damage:
    def change(metadata: dict[str, Any]) -> None:
        (metadata if inside is None else metadata.setdefault(inside, {}))[name] = value

    return edit_metadata(change)


RUN_DAMAGES: dict[str, Damage] = {
    "a round lost from all tables": lost_round,
    "run.json nested 20,000 deep": lambda run, rng: (run / "run.json").write_text("[" * 20000) and None,
    "run.json an entry nested deep": lambda run, rng: (run / "run.json").write_text(
        '{"format": 1, "x": ' + "[" * 20000 + "]" * 20000 + "}"
    )
    and None,
    "run.json of a later format": put("format", 99),
    "run.json a list": lambda run, rng: (run / "run.json").write_text("[]") and None,
    "format a text": put("format", "one"),
    "no digests entry": edit_metadata(lambda metadata: metadata.pop("digests")),
    "digests a list": put("digests", []),
    "from_round a text": put("from_round", "x", "digests"),
    **{f"{name} {type(value).__name__}": put(name, value) for name in (
        "env", "env_kwargs", "settings", "run_settings", "max_episode_steps", "n_envs", "arm", "created", "seed",
    ) for value in (["a", 1], "text", {"x": [1]})},
    "gamma a text": put("gamma", "high", "settings"),
    "gamma missing": edit_metadata(lambda metadata: metadata["settings"].pop("gamma")),
    "env of another kind": put("env", "Acrobot-v1"),
    "env unknown": put("env", "NoSuch-v0"),
    "env_kwargs unknown": put("env_kwargs", {"slipperiness": 3}),
}  # fmt: skip


@contextmanager
def without_permission(path: Path) -> Iterator[None]:
    """Every way that Python code opens a file refuses this one."""
    opened = builtins.open, io.open, os.open

    def refusing(call: Any) -> Any:
        def refuse(file: Any, *arguments: Any, **options: Any) -> Any:
            if not isinstance(file, int) and os.path.abspath(file) == str(path.absolute()):
                raise PermissionError(13, "Permission denied", str(file))
            return call(file, *arguments, **options)

        return refuse

    builtins.open, io.open, os.open = map(refusing, opened)
    try:
        yield
    finally:
        builtins.open, io.open, os.open = opened


def cases(rng: random.Random) -> Iterator[tuple[str, Damage, str | None]]:
    """(name, damage of a run folder, kind of file), without end: every way first, then random ones again."""
    first = True
    while True:
        for kind in FILES:
            for name, damage in DAMAGES.items():
                if name.startswith("a copy") and kind in FILES[4:]:
                    continue  # of a file that no round has
                if first or name in ("flipped bit", "truncated", "swapped"):
                    yield (
                        f"{kind}: {name}",
                        lambda run, rng, kind=kind, damage=damage: damage(target_of(kind, run, rng), rng),
                        kind,
                    )
            if first:
                yield f"{kind}: permission denied", lambda run, rng: None, kind
        if first:
            for name, damage in RUN_DAMAGES.items():
                yield f"run: {name}", damage, None
        first = False


def measure(
    count: int, seed: int, healthy_run: Path, work: Path, every: int = 1
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Outcomes by (case, class) of `count` commands, and a line for each that ended badly. every: of the cases."""
    rng, found, bad = random.Random(seed), Counter[tuple[str, str]](), list[str]()
    healthy = {name: run_command(name, _copy(healthy_run, work / "run")) for name in COMMANDS}
    for name, outcome in healthy.items():
        if outcome.code != 0:
            raise SystemExit(f"{name} fails on a run without damage: {outcome}")
    again = {name: run_command(name, work / "run") for name in COMMANDS}
    unstable = [name for name in COMMANDS if classify(healthy[name], again[name]) != "same"]
    if unstable:
        raise SystemExit(f"the output of {unstable} differs without damage")
    done = 0
    for number, (case, damage, kind) in enumerate(itertools.islice(cases(rng), 0, None, every)):
        run = _copy(healthy_run, work / "run")
        damage(run, rng)
        slow = SLOW if kind in ("records", "snapshots", None) or number % 7 == 0 else ()
        names = [name for name in COMMANDS if name not in SLOW]
        slow = tuple(name for name in slow if name in COMMANDS)
        names += rng.sample(slow, min(1 if kind is None else 2, len(slow)))
        for name in names:
            refused = (
                without_permission(target_of(kind, run, random.Random(0))) if kind and "permission" in case else None
            )
            with refused or warnings.catch_warnings():
                outcome = run_command(name, run)
            what = classify(healthy[name], outcome)
            found[case, what] += 1
            if what in ("changed", "traceback"):
                last = outcome.trace.strip().splitlines()[-1:] or [outcome.text[:80]]
                bad.append(f"{case} | {name} | {what} | {last[0][:150]}")
            done += 1
            if done >= count:
                return found, bad
    raise AssertionError


def _copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        healthy = Path(folder) / "healthy"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make_run(healthy)
        found, bad = measure(given.commands, given.seed, healthy, Path(folder))
    print(f"{'what was wrong':45} {'same':>5} {'said':>5} {'changed':>8} {'traceback':>10}")
    totals = Counter[str]()
    for case in dict.fromkeys(case for case, _ in found):
        row = [found[case, what] for what in ("same", "said", "changed", "traceback")]
        totals.update(dict(zip(("same", "said", "changed", "traceback"), row, strict=True)))
        print(f"{case:45} {row[0]:5} {row[1]:5} {row[2]:8} {row[3]:10}")
    print(f"{sum(totals.values())} commands: {dict(totals)}")
    print(*bad, sep="\n")


if __name__ == "__main__":
    main()
