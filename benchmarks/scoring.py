"""What scoring costs, in time and memory, against one training forward and backward of the same records.

    python benchmarks/scoring.py [--quick] [--json FILE]

The training pass has the value error in its loss, as Stable-Baselines3's has; the policy loss alone is beside it.
One thread, timed by the CPU time of this process, because on a shared machine wall time measures the neighbours. Cells
are interleaved, each figure is a median. Extra memory: peak resident size during one call above the size before it, in
a process forked after set-up, after a warm-up on 8 records and with free memory given back. Exit code 1 where a target
is missed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import ctypes
import gc
import json
import math
import pickle
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scoring_cases import CELLS, Case, make_case, prepare

import rollsight as rs

ORACLE_RECORDS = 32
TRAINING = ("forward + backward", "policy loss alone")
ENVS, STEPS = 8, 256
DROP = 0.1  # of the negative records: about 5 % of all

Row = dict[str, Any]


def cpu_seconds(call: Callable[[], Any], times: int = 1) -> float:
    """CPU seconds per call."""
    started = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - started) / times


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds per call, `repeats` samples of each in turn; a sample lasts 30 ms at least."""
    for call in calls.values():
        call()
    times = {name: math.ceil(0.03 / cpu_seconds(call)) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            samples[name].append(cpu_seconds(call, times[name]))
    return samples


def in_child(call: Callable[[], Any]) -> Any:
    """What the call returns, computed in a fork of this process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(call(), pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"A measurement ended with status {status}; without an error above, memory ran out.")
    return pickle.loads(content)


def extra_mebibytes(call: Callable[[], Any], warm_up: Callable[[], Any]) -> float:
    """Peak resident size during the call above the size before it (Linux, glibc); to be called in a fresh child."""
    warm_up()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    call()
    return max(0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**20


def check_equal(case: Case) -> None:
    """Every way gives the same scores, to 1e-5 of the largest."""
    some = case.records.take(slice(0, ORACLE_RECORDS))
    for name, records in {**dict.fromkeys(CELLS, case.records), "oracle": some}.items():
        if name in (*TRAINING, "trust_line"):
            continue
        expected = CELLS["layerwise"](case.policy, records)
        error = float((CELLS[name](case.policy, records) - expected).abs().max() / expected.abs().max())
        if not error <= 1e-5:
            raise SystemExit(f"{case.name}: {name} differs from layerwise by {error:.1e} of the largest score.")


def measure_case(case: Case, repeats: int) -> list[Row]:
    """A row per cell: milliseconds, the multiple of one forward and backward, MiB."""
    records = dict.fromkeys(CELLS, case.records)
    records |= dict.fromkeys(TRAINING, prepare(case.records))
    records["oracle"] = case.records.take(slice(0, ORACLE_RECORDS))
    calls = {name: partial(cell, case.policy, records[name]) for name, cell in CELLS.items()}
    few = {name: partial(cell, case.policy, records[name].take(slice(0, 8))) for name, cell in CELLS.items()}
    memory = {name: in_child(partial(extra_mebibytes, calls[name], few[name])) for name in CELLS}
    check_equal(case)
    samples = interleaved(calls, repeats)
    samples["oracle"] = [seconds * len(case.records) / ORACLE_RECORDS for seconds in samples["oracle"]]
    unit = samples["forward + backward"]
    return [
        {
            "network": case.name,
            "records": len(case.records),
            "what": name,
            "ms": 1e3 * statistics.median(samples[name]),
            "multiple": statistics.median(s / u for s, u in zip(samples[name], unit, strict=True)),
            "extra_mib": memory[name],
        }
        for name in CELLS
    ]


def measure_size(n: int) -> Row:
    """Scoring n records by the small network; to be called in a fresh child."""
    case = make_case("mlp 64", n)

    def score(records: rs.Records = case.records) -> None:
        rs.score_records(case.policy, records)

    extra = extra_mebibytes(score, partial(score, case.records.take(slice(0, 8))))
    times = max(1, 2**16 // n)
    seconds = statistics.median(cpu_seconds(score) for _ in range(times))
    return {"records": n, "seconds": seconds, "us_per_record": 1e6 * seconds / n, "extra_mib": extra}


def measure_rounds(rounds: int) -> Row:
    """Whole rounds of Stable-Baselines3's PPO, stock and with IIF, in turn."""
    import gymnasium
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    from rollsight.adapters.sb3 import InfluenceCallback

    try:
        gymnasium.make("LunarLander-v3").close()
        env = "LunarLander-v3"
    except gymnasium.error.DependencyNotInstalled:
        env = "CartPole-v1"
    seen: list[Any] = []
    callbacks = {"stock": None, "iif": InfluenceCallback(drop=DROP, on_round=seen.append)}
    models, seconds = {}, dict[str, list[float]]()
    for name in callbacks:
        envs = make_vec_env(env, ENVS, seed=0)
        models[name] = PPO("MlpPolicy", envs, n_steps=STEPS, batch_size=64, n_epochs=10, seed=0, device="cpu")
        seconds[name] = []
    for turn in range(rounds + 1):
        for name in list(models) if turn % 2 else list(models)[::-1]:
            learn = partial(models[name].learn, ENVS * STEPS, callback=callbacks[name], reset_num_timesteps=False)
            seconds[name].append(cpu_seconds(learn))
    stock, iif = (statistics.median(seconds[name][1:]) for name in ("stock", "iif"))

    def middle(value: Callable[[Any], float]) -> float:
        return statistics.median(value(summary) for summary in seen[1:])

    return {
        "environment": env,
        "stock_s": stock,
        "iif_s": iif,
        "ratio": iif / stock,
        "dropped_share": middle(lambda s: s["dropped"] / s["valid"]),
        "score_ms": 1e3 * middle(lambda s: s["time_score"]),
        "trust_ms": 1e3 * middle(lambda s: s["time_trust"]),
        "train_ms": 1e3 * middle(lambda s: s["time_train"]),
        "score_share": middle(lambda s: s["time_score"] / s["time_train"]),
    }


@dataclass(frozen=True)
class Verdict:
    """One target: what was measured, and the most it may be."""

    target: str
    measured: float
    limit: float

    @property
    def met(self) -> bool:
        return self.measured <= self.limit


def verdicts(rows: list[Row], sizes: list[Row], rounds: Row) -> list[Verdict]:
    """The targets of the project's speed promise."""
    limits = {"layerwise": 1.5, "jvp": 2.5}
    multiples = [
        Verdict(f"{row['what']}, {row['network']}: multiple", row["multiple"], limits[row["what"]])
        for row in rows
        if row["what"] in limits
    ]
    one, *_, most = (size for size in sizes if size["records"] > 4096)  # the first in several chunks, and the last
    allowed = one["extra_mib"] + 64 * (most["records"] - one["records"]) / 2**20
    return [
        *multiples,
        Verdict("time per record, largest buffer over two chunks'", most["us_per_record"] / one["us_per_record"], 1.25),
        Verdict("extra MiB, largest buffer (two chunks' + 64 bytes a record)", most["extra_mib"], allowed),
        Verdict("scoring as a share of train()", rounds["score_share"], 0.03),
        Verdict("a whole IIF round over a stock one", rounds["ratio"], 1.0),
    ]


def show(console: Console, title: str, rows: list[Row], formats: Mapping[str, str]) -> None:
    """Print one table."""
    table = Table(title=title, title_justify="left")
    for name in formats:
        words = name in ("what", "environment")
        table.add_column(name.replace("_", " "), justify="left" if words else "right")
    for row in rows:
        table.add_row(*(format(row[name], kind) for name, kind in formats.items()))
    console.print(table)


def main() -> int:
    """Measure, print, and say what was missed."""
    parser = argparse.ArgumentParser(description="What scoring costs, in time and memory.")
    parser.add_argument("--quick", action="store_true", help="the small network only, fewer repetitions")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick, console = arguments.quick, Console(width=None if sys.stdout.isatty() else 120)
    load = os.getloadavg()[0]
    console.print(f"torch {torch.__version__}, 1 thread, {os.cpu_count()} CPUs, load {load:.1f} at the start")

    sizes = [in_child(partial(measure_size, 2**k)) for k in range(11, 16 if quick else 21)]
    kinds = {"records": "d", "seconds": ".3f", "us_per_record": ".2f", "extra_mib": ".1f"}
    show(console, "Growing buffers, mlp 64, backend auto", sizes, kinds)

    networks = {"mlp 64": 2048} if quick else {"mlp 64": 2048, "mlp 512": 2048, "nature cnn": 256}
    rows: list[Row] = []
    for name, n in networks.items():
        part = measure_case(make_case(name, n), 3 if quick else 7)
        kinds = {"what": "", "ms": ".1f", "multiple": ".2f", "extra_mib": ".1f"}
        show(console, f"{name}, {n} records (oracle: extrapolated from {ORACLE_RECORDS})", part, kinds)
        rows += part

    rounds = measure_rounds(3 if quick else 12)
    times = dict.fromkeys(("score_ms", "trust_ms", "train_ms"), ".1f")
    kinds = {"environment": "", "stock_s": ".3f", "iif_s": ".3f", "ratio": ".3f", "dropped_share": ".1%", **times}
    title = f"Rounds of Stable-Baselines3's PPO, {ENVS * STEPS} records, 10 epochs of batches of 64, drop={DROP}"
    show(console, title, [rounds], {**kinds, "score_share": ".1%"})

    found = verdicts(rows, sizes, rounds)
    for verdict in found:
        mark = "[green]met   [/]" if verdict.met else "[red]missed[/]"
        console.print(f"{mark} {verdict.target}: {verdict.measured:.3g} (at most {verdict.limit:.3g})")
    console.print(f"load {os.getloadavg()[0]:.1f} at the end")
    if arguments.json:
        targets = [asdict(verdict) | {"met": verdict.met} for verdict in found]
        content = {"load": load, "scoring": rows, "sizes": sizes, "rounds": rounds, "targets": targets}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return int(not all(verdict.met for verdict in found))


if __name__ == "__main__":
    sys.exit(main())
