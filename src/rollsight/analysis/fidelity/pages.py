"""A round's fidelity as an interactive page: LDS by outcome, removal curves, small steps of the weights."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rollsight.analysis.drawing import AMBER, BLUE, GREEN, GREY, PINK, RED
from rollsight.analysis.fidelity.labels import OUTCOMES
from rollsight.analysis.fidelity.lds import Lds, Row
from rollsight.analysis.fidelity.measure import Fidelity
from rollsight.analysis.page import Panel, band, dress, write_page
from rollsight.escaping import plain_html

_BUFFERS = ("fresh", "train")
_STEP_COLOURS = (BLUE, AMBER, GREEN, PINK)


def write(result: Fidelity, path: Path) -> Path:
    """Write the page.

    Raises:
        RollsightError: the file cannot be written.
    """
    lead = (
        f"{result.masks} random halves of {result.units} {result.unit}s. Counterfactual: {result.counterfactual} (same "
        f"buffer and advantages), {result.semantic}. Target: {result.target}. Normalisation: {result.normalisation}. "
        f"Optimiser: {result.optimizer}. Seed {result.seed}. {' '.join(result.notes)}"
    )
    title = f"{result.env}, round {result.round}: do the scores predict what training does?"
    return write_page(path, title, lead, panels(result))


def panels(result: Fidelity) -> list[Panel]:
    """The page's figures."""
    return [
        Panel(
            "lds",
            "Linear datamodeling score",
            "Rank correlation, over the halves, of the kept records' summed scores with the outcome of training on "
            "them; bars: 95 % intervals. Dashed: the ceiling, the same halves in another minibatch order. Grey: what "
            "a score without information gets.",
            lds(result),
        ),
        Panel(
            "removal",
            "What leaving records out does",
            f"Change of the target when a share of the {result.unit}s with the lowest or the highest scores is left "
            "out, compared with random ones (grey: their range).",
            removal(result),
        ),
        Panel(
            "steps",
            "Small steps of the weights",
            "Record weights 1 + eta * direction, random directions: does the target change as first order says? "
            "Filled: fresh buffer, open: training buffer. Slope: of the measured on the predicted change; 1 is exact. "
            "Right: measured over predicted change along the scores themselves.",
            steps(result),
        ),
        Panel(
            "trust",
            "Trust line over training",
            "How far each round's scores can be believed: their rank correlation between two halves of the buffer "
            "(and the same with permuted advantages), the share of the scores that is the records' own contribution to "
            "the target, how much the selection lengthened the mean gradient, and the length of the update.",
            trust(result),
        ),
    ]


def lds(result: Fidelity) -> go.Figure:
    """A panel per outcome, each with one trace: the scores' LDS with intervals."""
    titles = [OUTCOMES[outcome] for outcome in result.lds]
    figure = make_subplots(1, len(titles), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.03)
    for column, table in enumerate(result.lds.values(), 1):
        names, rows = list(map(plain_html, table.rows)), list(table.rows.values())
        bars = {"array": [row.high - row.lds for row in rows], "arrayminus": [row.lds - row.low for row in rows]}
        figure.add_scatter(
            x=[row.lds for row in rows],
            y=names,
            error_x={"symmetric": False, **bars, "thickness": 1.3, "width": 3},
            mode="markers",
            marker={"color": BLUE, "size": 8},
            hovertext=[_row(name, row, table, result.reference) for name, row in table.rows.items()],
            hoverinfo="text",
            showlegend=False,
            row=1,
            col=column,
        )
        place = {"row": 1, "col": column}
        figure.add_vrect(table.null_low, table.null_high, fillcolor=GREY, opacity=0.25, line_width=0, **place)
        figure.add_vline(table.ceiling, line={"color": GREEN, "dash": "dash"}, **place)
        figure.add_annotation(
            x=table.ceiling, y=1, yref="y domain", text=f"ceiling {table.ceiling:.2f}", showarrow=False,
            font={"color": GREEN, "size": 11}, xanchor="right" if table.ceiling > 0 else "left", yanchor="bottom",
            **place,
        )  # fmt: skip
    figure.update_xaxes(range=[-1.05, 1.05], title_text="LDS", zeroline=True)
    figure.update_yaxes(autorange="reversed")
    return dress(figure, 200 + 26 * len(result.lds["fresh"].rows)).update_layout(margin={"t": 60, "l": 190})


def removal(result: Fidelity) -> go.Figure:
    """A panel per buffer: the band and mean of random removal, then the lowest and the highest scores."""
    figure = make_subplots(1, 2, subplot_titles=[OUTCOMES[name] for name in _BUFFERS], horizontal_spacing=0.09)
    for column, name in enumerate(_BUFFERS, 1):
        curve = result.removal[name]
        at = [one.fraction for one in curve]
        place = {"row": 1, "col": column, "showlegend": column == 1}
        grey = band(at, [one.random_low for one in curve], [one.random_high for one in curve], "range of random")
        figure.add_trace(grey.update(showlegend=column == 1), row=1, col=column)
        for label, colour, values in (
            ("random", GREY, [one.random for one in curve]),
            ("lowest scores", RED, [one.lowest for one in curve]),
            ("highest scores", BLUE, [one.highest for one in curve]),
        ):
            text = [f"without {x:.0%}, {label}: {y:+.3g}" for x, y in zip(at, values, strict=True)]
            line = {"mode": "lines+markers", "line_color": colour, "name": label, "legendgroup": label}
            figure.add_scatter(x=at, y=values, hovertext=text, hoverinfo="text", **line, **place)
        figure.add_hline(0, line={"color": "black", "width": 1, "dash": "dot"}, row=1, col=column)
    figure.update_xaxes(title_text=f"share of the {result.unit}s left out", tickformat=".0%")
    figure.update_yaxes(title_text="change of the target", zeroline=False, exponentformat="e", col=1)
    return dress(figure).update_layout(margin={"t": 70}, legend={"y": 1.1})


def steps(result: Fidelity) -> go.Figure:
    """Rank correlation, slope, and the ratio along the scores, over eta; a trace per prediction and buffer."""
    measures = {"rank": "rank correlation", "slope": "slope", "along_score": "along the scores"}
    figure = make_subplots(1, 3, subplot_titles=list(measures.values()), horizontal_spacing=0.06)
    predictions = list(dict.fromkeys(one.prediction for one in result.steps["fresh"]))
    for column, measure in enumerate(measures, 1):
        for prediction, colour in zip(predictions, _STEP_COLOURS, strict=False):
            for buffer in _BUFFERS:
                mine = [one for one in result.steps[buffer] if one.prediction == prediction]
                values = [getattr(one, measure) for one in mine]
                said = f"{prediction}, {OUTCOMES[buffer]}"
                figure.add_scatter(
                    x=[one.eta for one in mine],
                    y=values,
                    hovertext=[f"{said}<br>eta {one.eta:g}: {y:.3g}" for one, y in zip(mine, values, strict=True)],
                    hoverinfo="text",
                    mode="lines+markers",
                    line={"color": colour, "dash": "solid" if buffer == "fresh" else "dot"},
                    marker={"symbol": "circle" if buffer == "fresh" else "circle-open", "size": 8},
                    name=prediction,
                    legendgroup=prediction,
                    showlegend=column == 1 and buffer == "fresh",
                    row=1,
                    col=column,
                )
        figure.add_hline(1, line={"color": "black", "width": 1, "dash": "dot"}, row=1, col=column)
    figure.update_xaxes(title_text="eta", rangemode="tozero")
    return dress(figure).update_layout(margin={"t": 70}, legend={"y": 1.1})


def trust(result: Fidelity) -> go.Figure:
    """Correlations and own share over rounds; gradient ratio; norm of the update. The measured round is dotted."""
    panels = (
        ("between halves, own share", {"split_half": BLUE, "split_half_permuted": GREY, "self_share": RED}),
        ("gradient after / before selection", {"gradient_ratio": AMBER}),
        ("norm of the update", {"update_norm": GREEN}),
    )
    figure = make_subplots(1, 3, subplot_titles=[title for title, _ in panels], horizontal_spacing=0.06)
    for column, (_, lines) in enumerate(panels, 1):
        for name, colour in lines.items():
            known = [(one.round, y) for one in result.trust_over_training if (y := getattr(one, name)) is not None]
            figure.add_scatter(
                x=[round for round, _ in known],
                y=[y for _, y in known],
                mode="lines+markers",
                marker={"size": 5},
                line={"color": colour},
                name=_TRUST_NAMES[name],
                row=1,
                col=column,
            )
        figure.add_vline(result.round, line={"color": "black", "width": 1, "dash": "dot"}, row=1, col=column)
    figure.update_xaxes(title_text="round")
    return dress(figure).update_layout(margin={"t": 70}, legend={"y": 1.1})


_TRUST_NAMES = {
    "split_half": "between halves",
    "split_half_permuted": "the same, advantages permuted",
    "self_share": "own share",
    "gradient_ratio": "gradient ratio",
    "update_norm": "norm of the update",
}


def _row(name: str, row: Row, table: Lds, reference: str) -> str:
    lines = [f"<b>{plain_html(name)}</b>: {row.lds:.2f} [{row.low:.2f}, {row.high:.2f}]"]
    if name != reference:
        lines.append(
            f"minus {plain_html(reference)}: {row.difference:+.2f} "
            f"[{row.difference_low:+.2f}, {row.difference_high:+.2f}]"
        )
    lines.append(f"ceiling {table.ceiling:.2f} [{table.ceiling_low:.2f}, {table.ceiling_high:.2f}]")
    lines.append(f"null band [{table.null_low:.2f}, {table.null_high:.2f}]")
    return "<br>".join(lines)
