"""The tables of fidelity.md from the results of `rollsight fidelity`.

    python docs/studies/fidelity_table.py RESULT.json ... > tables.md    # and fidelity.parquet, fidelity.png
    python docs/studies/fidelity_table.py                                # the picture alone, from fidelity.parquet

Each result's folder is named ENVIRONMENT-SEED-ROUND, as the commands in fidelity.md write them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STAGES = ("early", "middle", "late")
REFERENCE = "single checkpoint"


def main() -> None:
    if not sys.argv[1:]:
        draw()
        return
    results = {}
    for path in map(Path, sys.argv[1:]):
        _, seed, round_ = path.parent.name.rsplit("-", 2)
        content = json.loads(path.read_text())
        results[content["env"], int(seed), int(round_)] = content
    write_figures(results)
    envs = list(dict.fromkeys(env for env, _, _ in results))
    for outcome in next(iter(results.values()))["outcomes"]:
        print(f"\nLDS, outcome: {outcome}; mean over seeds (lowest, highest)\n")
        print_table(results, envs, outcome)
    print("\nDifference to the single checkpoint on the fresh buffer, one number per environment, seed and round\n")
    print_differences(results)
    draw()


def draw() -> None:
    """LDS on the fresh buffer by environment and round: the mean of the seeds as a dot, each seed as a small one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = pq.read_table(Path(__file__).with_name("fidelity.parquet")).to_pandas()
    rows = rows[rows.outcome == "fresh"]
    rounds = rows[["env", "round"]].drop_duplicates().sort_values(["env", "round"]).to_records(index=False).tolist()
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    scores = {"ceiling": "lightgrey", "single checkpoint": "tab:blue", "every step": "tab:orange"}
    for shift, (score, colour) in zip((0, -0.12, 0.12), scores.items(), strict=True):
        for place, (env, number) in enumerate(rounds):
            lds = rows[(rows.env == env) & (rows["round"] == number) & (rows.score == score)].lds
            axes.scatter([place + shift] * len(lds), lds, s=8, color=colour, alpha=0.6)
            axes.scatter(place + shift, lds.mean(), s=50, color=colour, label=score if place == 0 else None)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set(ylabel="LDS, fresh buffer", xticks=range(len(rounds)))
    axes.set_xticklabels([f"{env}\nround {number}" for env, number in rounds], fontsize=7)
    figure.legend(fontsize=8, loc="outside upper center", ncols=3)
    figure.savefig(Path(__file__).with_name("fidelity.png"), dpi=130)


def write_figures(results: dict) -> None:
    rows = []
    for (env, seed, round_), content in sorted(results.items()):
        for outcome, table in content["outcomes"].items():
            bands = {"ceiling": (table["ceiling"], table["ceiling_low"], table["ceiling_high"])}
            bands["null band"] = (None, table["null_low"], table["null_high"])
            bands |= {name: (row["lds"], row["low"], row["high"]) for name, row in table["rows"].items()}
            for score, values in bands.items():
                lds, low, high = (None if v is None else round(v, 3) for v in values)
                row = {"env": env, "seed": seed, "round": round_, "outcome": outcome, "score": score}
                rows.append({**row, "lds": lds, "low": low, "high": high})
    pq.write_table(pa.Table.from_pylist(rows), Path(__file__).with_name("fidelity.parquet"), compression="zstd")


def print_table(results: dict, envs: list[str], outcome: str) -> None:
    rounds = {env: sorted({r for e, _, r in results if e == env}) for env in envs}
    columns = [(env, r) for env in envs for r in rounds[env]]
    named = zip(columns, STAGES * len(envs), strict=True)
    print("| | " + " | ".join(f"{env} {stage} ({r})" for (env, r), stage in named) + " |")
    print("|---" * (len(columns) + 1) + "|")
    tables = {key: content["outcomes"][outcome] for key, content in results.items()}
    names = list(next(iter(tables.values()))["rows"])
    for name in ["ceiling", *names, "null band"]:
        cells = []
        for env, r in columns:
            mine = [t for (e, _, k), t in tables.items() if (e, k) == (env, r)]
            if name == "null band":
                low, high = (np.mean([t[end] for t in mine]) for end in ("null_low", "null_high"))
                cells.append(f"[{low:.2f}, {high:.2f}]")
                continue
            values = [
                t["ceiling"] if name == "ceiling" else t["rows"][name]["lds"]
                for t in mine
                if name == "ceiling" or name in t["rows"]
            ]
            known = [v for v in values if v is not None]
            cells.append(f"{np.mean(known):.2f} ({min(known):.2f}, {max(known):.2f})" if known else "-")
        print(f"| {name} | " + " | ".join(cells) + " |")


def print_differences(results: dict) -> None:
    print("| score | mean | better in | mean by environment |")
    print("|---|---|---|---|")
    names = next(iter(results.values()))["outcomes"]["fresh"]["rows"]
    for name in names:
        if name == REFERENCE:
            continue
        by_env: dict[str, list[float]] = {}
        for (env, _, _), content in results.items():
            rows = content["outcomes"]["fresh"]["rows"]
            if name in rows and rows[name]["lds"] is not None and rows[REFERENCE]["lds"] is not None:
                by_env.setdefault(env, []).append(rows[name]["lds"] - rows[REFERENCE]["lds"])
        every = [d for part in by_env.values() for d in part]
        parts = ", ".join(f"{env} {np.mean(part):+.2f}" for env, part in by_env.items())
        print(f"| {name} | {np.mean(every):+.3f} | {sum(d > 0 for d in every)} of {len(every)} | {parts} |")


if __name__ == "__main__":
    main()
