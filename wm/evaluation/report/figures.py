"""Render the sections of the report that show the evaluation's figures."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from wm.evaluation.report.adaptive import adaptive_part
from wm.evaluation.report.charts import Line, line_chart
from wm.evaluation.report.claims import Claim, Labels, judge_claims
from wm.evaluation.report.findings import Findings, same_training
from wm.evaluation.report.page import prose, section, table
from wm.evaluation.report.summary import probe_notes, row_name, text_notes

_BADGES = {"shows": "yes", "does not show": "no", "within the spread": "open", "not measured": "none"}
_SHARES = {"right", "copied", "unchanged_tokens", "state_equivalent", "exact_match"}
_LOWER_IS_BETTER = {"copied", "l1"}
_WORDS = {
    "final": "score",
    "editing_success": "editing success",
    "minimal_editing": "minimal editing",
    "right": "right, %",
    "copied": "copies, %",
    "l1": "L1",
    "unchanged_tokens": "unchanged tokens, %",
    "state_equivalent": "right, %",
    "exact_match": "exact, %",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "mean_logprob": "nats/token",
}


def claims_section(findings: Findings, labels: Labels, notes: Mapping[str, str]) -> str:
    """Render one card a claim."""
    if findings.tables is None:
        return ""
    cards = []
    for claim in judge_claims(findings.tables, labels):
        extra = [equal_training(findings, labels)] if claim.key == "asymmetry" else []
        cards.append(_render_card(claim, [line for line in extra if line], notes.get(claim.key, "")))
    explanation = (
        "Each verdict is computed from the figures below: “shows” if the difference has the claimed sign "
        "and exceeds its spread, “does not show” if it exceeds it with the other sign, else “within the "
        "spread”."
    )
    return section("claims", "Claims", prose(explanation), f'<div class="claims">{"".join(cards)}</div>')


def _render_card(claim: Claim, extra: Sequence[str], note: str) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in [*claim.measured, *extra])
    badge = f'<span class="badge {_BADGES[claim.verdict]}">{escape(claim.verdict)}</span>'
    body = f"<ul>{lines}</ul>" if lines else prose("The figures this needs are not in the tables.", "soft small")
    remark = f"<p class='small'>{escape(note)}</p>" if note else ""
    return f'<div class="card">{badge}<h3>{escape(claim.title)}</h3>{body}{remark}</div>'


def equal_training(findings: Findings, labels: Labels) -> str:
    """Say whether inverse and forward model were trained on equal data for equal steps, from their recipes."""
    runs = findings.of("train")
    idm = next((stage for stage in runs if findings.label_of(stage) == labels.idm), None)
    fdm = next((stage for stage in runs if findings.label_of(stage) == labels.finetuned), None)
    if idm is None or fdm is None:
        return ""
    unequal = same_training(idm, fdm)
    if unequal is None:
        return ""
    return f"training differs in {'; '.join(unequal)}" if unequal else "trained on the same triplets for the same steps"


def forward_section(findings: Findings) -> str:
    """Render the table of labels by K, and the verification curves."""
    tables = findings.tables
    if tables is None or not tables["fdm"]:
        return ""
    judged = tables["judge"] != "none"
    columns = ["final", "editing_success", "minimal_editing", "right", "copied"] if judged else []
    columns = columns or ["l1", "unchanged_tokens"]
    rows = [row for row in tables["fdm"] if row["choice"] != "oracle"]
    oracle = [row for row in tables["fdm"] if row["choice"] == "oracle"]
    parts = [prose(_explain_table(tables, judged)), _render_forward_table(rows, columns)]
    if oracle:
        bound = _render_forward_table(oracle, columns)
        parts.append(f"<details><summary>Oracle best-of-N, the bound of any choice</summary>{bound}</details>")
    parts.append(curves(tables, ["right", "final"] if judged else ["l1"]))
    metrics = ["right", "final"] if judged else ["l1"]
    parts.append(adaptive_part(tables, [(name, _WORDS[name], 100 if name in _SHARES else 1) for name in metrics]))
    by_subset = _render_subset_table(tables, "final" if judged else "l1")
    if by_subset:
        parts += ["<h3>By subset</h3>", by_subset]
    return section("forward", "Forward dynamics", *parts)


def _render_forward_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    best = _find_best(rows, columns)
    cells, kinds = [], []
    for index, row in enumerate(rows):
        figures = [_render_cell(row["metrics"].get(name), name, index == best.get(name)) for name in columns]
        first = index == 0 or rows[index - 1]["label"] != row["label"]
        cells.append([escape(row["label"]) if first else "", escape(_name_choice(row)), *figures])
        kinds.append(("first" if first else "") + (" dim" if row["choice"] == "none" else ""))
    return table(["model", "prediction", *(_WORDS[name] for name in columns)], cells, kinds)


def _explain_table(tables: Mapping[str, Any], judged: bool) -> str:
    text = (
        "K = 1 averages all candidates sampled; at larger K the inverse model chooses; the oracle "
        "(dashed) chooses by the true score and bounds any choice from above. Copy gives the source back; "
        "the codec row is the true target encoded and decoded. ± is the standard deviation over training "
        "seeds, or over sampling seeds where a label has one run. Bold: best of the predictions that a "
        "model made or chose itself."
    )
    scale = " Score, editing success and minimal editing run from 0 to 10; the score is the smaller of the two."
    return text + (scale if judged else " L1 is the mean absolute difference to the target, 0 to 1.")


def _name_choice(row: Mapping[str, Any]) -> str:
    if row["choice"] in ("none", "greedy"):
        return "–" if row["choice"] == "none" else "greedy"
    return f"K = {row['k']}" if row["choice"] == "idm" else f"oracle, best of {row['k']}"


def _find_best(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, int]:
    """Map each column to the row of the best figure among honest predictions."""
    best = {}
    for name in columns:
        if name in ("copied", "unchanged_tokens", "minimal_editing"):
            continue  # copying is best at keeping: alone it says nothing
        sign = -1 if name in _LOWER_IS_BETTER else 1
        honest = [
            (sign * row["metrics"][name]["mean"], -index)
            for index, row in enumerate(rows)
            if row["choice"] in ("idm", "greedy") and name in row["metrics"]
        ]
        # A column of zeros has no best.
        if honest and max(honest)[0] != 0:
            best[name] = -max(honest)[1]
    return best


def _render_cell(figure: Mapping[str, Any] | None, name: str, is_best: bool = False, why: str = "") -> str:
    if figure is None:
        hint = f' title="{escape(why)}"' if why else ""
        return f'<td class="soft"{hint}>–</td>'
    scale, digits = (100, 1) if name in _SHARES else (1, 3 if name == "l1" else 2)
    text = f"{figure['mean'] * scale:.{digits}f}"
    if figure["std"] is not None:
        text += f' <span class="pm">± {figure["std"] * scale:.{digits}f}</span>'
    low, high = figure["ci_low"], figure["ci_high"]
    hint = f"n = {figure['n']} {figure['over']}"
    if low is not None:
        hint += f"; 95 % interval over items {low * scale:.{digits}f} to {high * scale:.{digits}f}"
    return f'<td{" class=best" if is_best else ""} title="{escape(hint)}">{text}</td>'


def curves(tables: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """Chart each metric against K for every label: chosen by the inverse model, and by the oracle (dashed)."""
    labels = list(dict.fromkeys(row["label"] for row in tables["fdm"] if row["choice"] == "oracle"))
    charts = []
    for metric in metrics:
        scale = 100 if metric in _SHARES else 1
        lines = []
        for colour, label in enumerate(labels):
            own = [row for row in tables["fdm"] if row["label"] == label and metric in row["metrics"]]
            start = [row for row in own if row["choice"] == "idm" and row["k"] == 1]
            verified = any(row["choice"] == "idm" and row["k"] > 1 for row in own)
            for choice, extra in (("idm", []), ("oracle", start)):
                rows = [*extra, *(row for row in own if row["choice"] == choice)]
                if choice == "idm" and len(rows) < 2:
                    continue
                figures = [row["metrics"][metric] for row in rows]
                # One value has no spread, which is not a spread of 0: then no band is drawn.
                with_band = choice == "idm" and all(figure["std"] is not None for figure in figures)
                lines.append(
                    Line(
                        label if choice == "idm" or not verified else "",
                        [row["k"] for row in rows],
                        [figure["mean"] * scale for figure in figures],
                        colour,
                        [figure["std"] * scale for figure in figures] if with_band else [],
                        dashed=choice == "oracle",
                    )
                )
        word = _WORDS[metric]
        charts.append(
            line_chart(
                f"Verification: {word} by K (dashed: oracle)",
                lines,
                x_label="K candidates",
                y_label=word,
                even_x=True,
            )
        )
    inside = "".join(f'<div class="card">{chart}</div>' for chart in charts if chart)
    return f'<div class="charts">{inside}</div>' if inside else ""


def _render_subset_table(tables: Mapping[str, Any], metric: str) -> str:
    """Render the headline metric by subset, for K = 1 and for the largest K chosen by the inverse model."""
    top = max(tables["k"])
    rows = [row for row in tables["fdm"] if row["by_subset"] and (row["choice"] != "oracle") and row["k"] in (1, top)]
    if not rows:
        return ""
    names = tables["subsets"]
    body = [
        [
            escape(row_name(row)),
            *(f"{row['by_subset'][name][metric]:.{3 if metric == 'l1' else 2}f}" for name in names),
        ]
        for row in rows
    ]
    return table([_WORDS[metric], *(name or "(none)" for name in names)], body)


def inverse_section(findings: Findings) -> str:
    """Render the text metrics of the inverse models."""
    tables = findings.tables
    if tables is None or not tables["idm"]:
        return ""
    metrics = {name for row in tables["idm"] for part in ("metrics", "absent") for name in row.get(part, {})}
    names = [name for name in _WORDS if name in metrics]
    rows = [
        [
            escape(row["label"]),
            *(_render_cell(row["metrics"].get(name), name, why=row.get("absent", {}).get(name, "")) for name in names),
        ]
        for row in tables["idm"]
    ]
    explanation = "Greedy actions against the reference actions: ROUGE F1, corpus BLEU divided by 100, exact match."
    if "state_equivalent" in names:
        explanation += " Right: the action, done in the source, gives the target state, however it is worded."
    tokens = " ".join(f"{word}." for word in text_notes(tables["idm"], _WORDS))
    parts = [
        prose(explanation),
        table(["model", *(_WORDS[n] for n in names)], rows),
        *([prose(tokens)] if tokens else []),
    ]
    return section("inverse", "Inverse dynamics", *parts)


def probe_section(findings: Findings) -> str:
    """Render the share of true trajectories preferred, by model and kind of negative."""
    tables = findings.tables
    if tables is None or not tables["probe"]:
        return ""
    kinds = list(dict.fromkeys(row["negative"] for row in tables["probe"]))
    parts = [
        prose(
            "Share of triplets whose true trajectory gets a higher likelihood than a manipulated one; ties "
            "count half, so 50 % is chance. r is the correlation of the two log-likelihoods."
        )
    ]
    for role, word in (
        ("idm", "Inverse: likelihood of the action"),
        ("fdm", "Forward: likelihood of the target"),
    ):
        of_role = [row for row in tables["probe"] if row["role"] == role]
        labels = list(dict.fromkeys(row["label"] for row in of_role))
        rows = []
        for label in labels:
            by_kind = {row["negative"]: row for row in of_role if row["label"] == label}
            rows.append([escape(label), *(_render_probe_cell(by_kind.get(kind)) for kind in kinds)])
        if rows:
            header = ["model", *(kind.replace("_", " ") for kind in kinds)]
            parts += [f"<h3>{escape(word)}</h3>", table(header, rows)]
    missing = probe_notes(tables)
    parts += [prose(" ".join(f"{line.replace('_', ' ')}." for line in missing))] if missing else []
    return section("probe", "Preference probe", *parts)


def _render_probe_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return '<td class="soft">–</td>'
    share = row["metrics"]["share"]
    tint = "--hi" if share["mean"] >= 0.5 else "--lo"
    strength = abs(share["mean"] - 0.5) * 0.7
    spread = "" if share["std"] is None else f" ± {share['std'] * 100:.0f}"
    r = row["metrics"].get("pearson_r")
    per_token = row["metrics"].get("share_per_token")
    hint = f"{row['pairs']} pairs" + (f", {per_token['mean'] * 100:.0f} % by mean per token" if per_token else "")
    correlation = "" if r is None else f", r {r['mean']:.2f}"
    return (
        f'<td style="background:rgb(var({tint}) / {strength:.2f})" title="{hint}">'
        f'{share["mean"] * 100:.0f} %<span class="pm">{spread}{correlation}</span></td>'
    )
