import json
import re
from html import unescape

import numpy as np
import pytest

from jobs import report
from jobs.report import ReportRecipe
from wm.errors import InputError
from wm.evaluation.metrics.stats import build_figure
from wm.evaluation.report.charts import Line, line_chart, nice_ticks, thin_out
from wm.evaluation.report.claims import Labels, judge_claims
from wm.evaluation.report.differences import compare_figures
from wm.evaluation.report.figures import draw_curves
from wm.evaluation.report.findings import read_findings
from wm.evaluation.report.images import heat_uri
from wm.evaluation.report.summary import format_tables
from wm.images import encode_png

NASTY = "move <script>alert('x')</script> & \"cup\""


def fig(values, low=None, high=None):
    """Values of training seeds 0, 1, …"""
    one = build_figure({seed: [value] for seed, value in enumerate(values)})
    return one | {"ci_low": low, "ci_high": high}


def fdm_row(label, choice, k, **figures):
    return {"label": label, "choice": choice, "k": k, "metrics": figures, "by_subset": {}}


def judged(final, right):
    names = {"editing_success": final, "minimal_editing": final, "copied": right, "l1": right, "final": final}
    return {name: fig(values) for name, values in names.items()} | {"right": fig(right)}


def tables_of(**more):
    rows = [
        fdm_row("Copy", "none", 1, **judged([0.0], [0.0])),
        fdm_row("C-FT", "greedy", 1, **judged([4.0, 4.2], [0.40, 0.42])),
        fdm_row("C-FT", "idm", 1, **judged([4.0, 4.2], [0.38, 0.40])),
        fdm_row("C-FT", "idm", 8, **judged([5.0, 5.2], [0.48, 0.505])),
        fdm_row("C-FT", "oracle", 8, **judged([7.0, 7.0], [0.70, 0.70])),
        fdm_row("C-FDM", "idm", 1, **judged([6.0, 4.0], [0.60, 0.30])),
        fdm_row("C-FDM", "idm", 8, **judged([5.0, 3.0], [0.50, 0.20])),
        fdm_row("C-FDM", "oracle", 8, **judged([8.0, 8.0], [0.80, 0.80])),
    ]
    idm = [{"label": "IDM", "metrics": {"rouge1": fig([0.9, 0.8]), "state_equivalent": fig([0.9, 0.86])}}]
    probe = []
    for role, label, shares in (
        ("idm", "C-ZS", [0.5, 0.4, 0.55, 0.6]),
        ("idm", "IDM", [1.0, 0.98, 0.99, 0.97]),
        ("fdm", "C-ZS", [0.5, 0.8, 0.05, 0.6]),
        ("fdm", "C-FT", [0.9, 0.9, 0.1, 0.8]),
    ):
        for negative, share in zip(("random_action", "random_observation", "copy", "inverse"), shares, strict=True):
            metrics = {"share": fig([share]), "pearson_r": fig([0.5])}
            probe.append(
                {
                    "role": role,
                    "label": label,
                    "negative": negative,
                    "pairs": 9,
                    "ties": {},
                    "metrics": metrics,
                }
            )
    tables = {"items": 9, "k": [1, 8], "seeds": [0], "subsets": ["x"], "judge": "oracle"}
    return tables | {"fdm": rows, "idm": idm, "probe": probe} | more


def write_stage(folder, stage, recipe=None, counts=None, **more):
    folder.mkdir(parents=True)
    record = {
        "stage": stage,
        "recipe": recipe or {},
        "inputs": {},
        "wm_version": "0.1.0",
        "counts": counts or {},
    }
    record |= {"timings_s": {"work": 1.0}, "wall_s": 61.0, "finished_at": "2026-11-20T10:00:00Z"}
    (folder / "run.json").write_text(json.dumps(record | more))


@pytest.fixture
def run_folder(tmp_path):
    """A run with every stage the report knows, two training runs and one example."""
    root = tmp_path / "demo"
    same = {"steps": 600, "triplets": [{"path": "t"}], "global_batch": 32}
    for name, task in (("idm", "idm"), ("ft", "fdm")):
        write_stage(root / name, "train", same | {"task": task})
        lines = [json.dumps({"step": step, "loss": 3 / step, "lr": 1e-3}) for step in range(1, 300)]
        (root / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    write_stage(root / "triplets", "annotate", counts={"videos": 12, "rejects_by_reason": {"too_<short>": 3}})
    by_class = {"<b>run</b>": {"triplets": 9, "chosen": 5, "lowest": -3.0, "highest": -0.5}}
    write_stage(root / "selected", "select", counts={"triplets": 9, "chosen": 5, "by_class": by_class})
    models = {
        "idm-0": {"path": str(root / "idm/model"), "label": "IDM"},
        "ft-0": {"path": str(root / "ft/model"), "label": "C-FT"},
    }
    evaluation = root / "evaluate"
    write_stage(evaluation, "evaluate", {"models": models})
    (evaluation / "tables.json").write_text(json.dumps(tables_of()))
    (evaluation / "examples").mkdir()
    rng = np.random.default_rng(0)
    for name, side in (("source", 48), ("target", 48), ("large", 400)):
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        (evaluation / "examples" / f"{name}.png").write_bytes(encode_png(pixels))
    metrics = {"final": 10.0, "right": 1.0, "l1": 0.1}
    candidates = [
        {"image": "examples/large.png", "times": 3, "logprob": -1.5, "metrics": metrics},
        {"image": "examples/source.png", "times": 1, "logprob": -9.25, "metrics": metrics | {"right": 0.0}},
    ]
    example = {"triplet_id": "t", "subset": "x", "action": NASTY, "change": [0.0, 1.0, 2.0, 4.0]}
    example |= {"source": "examples/source.png", "target": "examples/target.png"}
    example["proposed"] = [{"label": "IDM", "text": "<img src=x>", "right": False}]
    example["models"] = [{"label": "C-FT", "seed": 0, "candidates": candidates, "chosen": 0}]
    (evaluation / "examples.json").write_text(json.dumps([example]))
    return root


def render(root, out, **more):
    report.run(ReportRecipe.parse({"run": str(root), "out": str(out)} | more, "test"))
    return (out / "report.html").read_text()


def test_stands_alone_and_escapes(run_folder, tmp_path):
    html = render(run_folder, tmp_path / "out", notes={"asymmetry": "because <i>so</i>"})
    assert not re.search(r"https?:|src=\"(?!data:)|href=\"(?!#)|url\(|@import|<script|<link", html)
    assert "move &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;cup&#34;" in html
    for text in (
        "&lt;img src=x&gt;",
        "too &lt;short&gt;",
        "&lt;b&gt;run&lt;/b&gt;",
        "because &lt;i&gt;so&lt;/i&gt;",
    ):
        assert text in html
    assert html.count('class="shot chosen"') == 1
    assert "×3" in html and "-9.25" in html and "data:image/jpeg" in html
    assert "5 finished stages took 1 min 01 s of wall time" in html
    assert "trained on the same triplets for the same steps" in html
    assert "Left out" not in html.split("</nav>")[1].split("<section")[0]


def test_a_missing_stage_is_named(run_folder, tmp_path):
    (run_folder / "evaluate/run.json").unlink()
    html = render(run_folder, tmp_path / "out")
    assert "holds nothing for it: Claims, Forward dynamics, Inverse dynamics, Preference probe, Examples." in html
    assert "Inverse model: loss" in html


def test_second_run_does_nothing_and_changed_input_is_refused(run_folder, tmp_path, capsys):
    render(run_folder, tmp_path / "out")
    render(run_folder, tmp_path / "out")
    assert "up to date" in capsys.readouterr().out
    write_stage(run_folder / "later", "train")
    with pytest.raises(InputError, match="holds another run"):
        render(run_folder, tmp_path / "out")


@pytest.mark.parametrize(("name", "message"), [("nowhere", "no such run folder"), ("", "holds no finished stage")])
def test_nothing_to_report(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        render(tmp_path / name, tmp_path / "out")


def test_damaged_metrics_are_named(run_folder, tmp_path):
    with (run_folder / "idm/metrics.jsonl").open("a") as file:
        file.write('{"step": 3')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 300 is not JSON"):
        render(run_folder, tmp_path / "out")


def test_verdicts_follow_the_figures():
    verdicts = {claim.key: claim.verdict for claim in judge_claims(tables_of(), Labels())}
    assert verdicts == {
        "probe-idm-before": "shows",  # 0.40 to 0.60
        "probe-fdm-before": "does not show",  # the mean is 0.49, but copies are preferred to the truth
        "probe-idm-after": "shows",  # a mean of 0.985
        "probe-fdm-after": "does not show",  # a mean of 0.675
        "asymmetry": "shows",  # gains 0.50 and 0.44, far beyond their spread
        "bootstrapping": "within the spread",  # gains 2.0 and -0.2
        "weights": "not measured",
        "verification-C-FT": "shows",  # gains 0.10 and 0.105: 0.1025 ± 12.7 x 0.0025
        "verification-C-FDM": "does not show",  # losses 0.10 and 0.10
    }


def test_without_a_judge_distances_decide():
    tables = tables_of(judge="none", idm=[], probe=[])
    tables["fdm"] = [
        fdm_row("C-FT", "idm", 1, l1=fig([0.3, 0.3])),
        fdm_row("C-FT", "idm", 8, l1=fig([0.2, 0.21])),
        fdm_row("C-FDM", "idm", 1, l1=fig([0.4, 0.41])),
    ]
    verdicts = {claim.key: claim.verdict for claim in judge_claims(tables, Labels())}
    assert verdicts["verification-C-FT"] == "shows"
    assert verdicts["bootstrapping"] == "does not show"
    assert verdicts["asymmetry"] == verdicts["probe-idm-before"] == "not measured"


def test_difference_is_paired_by_training_seed():
    paired = compare_figures(fig([0.5, 0.7, 0.9]), fig([0.4, 0.6, 0.7]))
    assert paired.mean == pytest.approx(0.4 / 3)
    assert paired.spread == pytest.approx(4.302653 * np.std([0.1, 0.1, 0.2], ddof=1) / np.sqrt(3))
    single = compare_figures(fig([0.5], low=0.4, high=0.6), fig([0.2], low=0.16, high=0.24))
    assert (single.mean, single.spread) == (pytest.approx(0.3), pytest.approx(np.hypot(0.1, 0.04)))


def test_a_difference_without_any_spread_is_not_measured():
    """One value each: no spread is known, which is not a spread of 0."""
    lone = compare_figures(fig([0.5]), fig([0.2]))
    assert (lone.mean, lone.spread, lone.verdict()) == (pytest.approx(0.3), None, "not measured")
    half = compare_figures(fig([0.5], low=0.4, high=0.6), fig([0.2]))
    assert (half.spread, half.verdict()) == (None, "not measured")
    assert "spread unknown" in lone.text()
    seeds = build_figure({0: [0.5, 0.7]})  # sampling seeds of one run
    assert compare_figures(seeds, seeds).spread == pytest.approx(
        np.sqrt(2) * 12.7062 * np.std([0.5, 0.7], ddof=1) / 2**0.5
    )


def test_a_difference_goes_by_items_where_they_are_paired():
    by_item = {"mean": 0.3, "ci_low": 0.28, "ci_high": 0.32, "items": 40}
    first, second = fig([0.5], low=0.4, high=0.6), fig([0.2], low=0.16, high=0.24)
    paired = compare_figures(first, second, by_item)
    assert paired.spread == pytest.approx(0.02) and "40 paired items" in paired.basis
    seeds = compare_figures(fig([0.5, 0.7]), fig([0.4, 0.7]), by_item)  # the seeds differ more than the items
    assert seeds.spread == pytest.approx(12.7062 * 0.05, rel=1e-4) and "2 paired training seeds" in seeds.basis


def test_one_value_draws_no_band():
    """A curve whose figures have one value each has no spread to draw; with two it has."""
    rows = [fdm_row("A", "idm", k, l1=fig([0.3 - k / 100])) for k in (1, 8)]
    rows += [fdm_row("A", "oracle", 8, l1=fig([0.1]))]
    assert "<polygon" not in draw_curves(rows, ["l1"])[0]
    rows = [fdm_row("A", "idm", k, l1=fig([0.3, 0.2])) for k in (1, 8)] + rows[2:]
    assert "<polygon" in draw_curves(rows, ["l1"])[0]


def test_stages_side_by_side_count_once(tmp_path):
    """Two overlap by 20 s, one is inside another, one is an hour later; of one only its length is known."""
    ends = {"a": ("10:00:00", 60), "b": ("10:00:40", 60), "c": ("10:00:30", 10), "d": ("11:00:00", 30)}
    for name, (clock, wall_s) in ends.items():
        write_stage(tmp_path / name, "train", wall_s=wall_s, finished_at=f"2026-11-20T{clock}Z")
    assert read_findings(tmp_path).wall_s == 60 + 40 + 30
    write_stage(tmp_path / "old", "train", wall_s=5, finished_at="2026")
    assert read_findings(tmp_path).wall_s == 135


def test_the_best_of_several_is_named_by_what_it_is_by(run_folder, tmp_path):
    tables = tables_of()
    judged_page = render(run_folder, tmp_path / "judged")
    assert "oracle, best of 8" in judged_page and "(dashed: oracle)" in judged_page
    assert "K = 1, mean of all" in judged_page and "C-FT, oracle, best of 8" in format_tables(tables)
    (run_folder / "evaluate" / "tables.json").write_text(json.dumps(tables | {"judge": "none"}))
    page = render(run_folder, tmp_path / "none")
    assert "closest to the target of 8" in page and "oracle" not in page.partition("<h2>Examples")[0]
    text = format_tables(tables | {"judge": "none"})
    assert "C-FT, closest to the target of 8" in text and "oracle" not in text
    assert text.count("K = 1: mean over all candidates sampled") == 1


def test_charts():
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(3.1, 97) == [0, 20, 40, 60, 80, 100]
    assert nice_ticks(5, 5)[0] < 5 < nice_ticks(5, 5)[-1]
    assert thin_out([1.0, 2.0, 3.0]) == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]
    assert thin_out([1.0, 3.0, 5.0, 7.0], points=2) == [(0.5, 2.0), (2.5, 6.0)]
    chart = line_chart("A < B", [Line("x & y", [1, 2, 4, 8], [0, 1, 2, 3], 0)], x_label="K", y_label="y", even_x=True)
    assert "A &lt; B" in chart and "x &amp; y" in chart
    xs = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart)]
    assert np.diff(xs) == pytest.approx([np.diff(xs)[0]] * 3, abs=0.11)
    assert line_chart("empty", [], x_label="", y_label="") == ""


def test_heat_of_a_square_and_of_nothing():
    assert heat_uri([0.0, 1.0, 2.0, 4.0]).startswith("data:image/png;base64,")
    assert heat_uri([0.0] * 4) == heat_uri([0.0] * 9) == heat_uri([])


def test_a_page_of_the_papers_tables_is_shown_as_it_is(tmp_path):
    page = '<!doctype html><title>t</title><p class="x">Table 2 & "more"</p>'
    for name, stage, content in (("evaluate", "ingest", ""), ("paper", "paper", page)):
        (tmp_path / name).mkdir()
        record = {"stage": stage, "counts": {}, "timings_s": {}, "wall_s": 1, "finished_at": "2026"}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
        (tmp_path / name / "paper.html").write_text(content)
    report.run(ReportRecipe(run=str(tmp_path), out=str(tmp_path / "report")))
    html = (tmp_path / "report" / "report.html").read_text()
    frame = re.search(r'<iframe class="page" title="paper" sandbox="" srcdoc="([^"]*)"></iframe>', html)
    assert frame is not None and unescape(frame[1]) == page and html.count("<iframe") == 1
    (tmp_path / "paper" / "paper.html").unlink()
    with pytest.raises(InputError, match=r"paper\.html is missing or damaged"):
        report.run(ReportRecipe(run=str(tmp_path), out=str(tmp_path / "again")))


def test_claims_give_the_interval_of_their_own_difference():
    """The tables hold K = 1 minus K = 8, and C-FT minus C-FDM; the claims are about the opposite."""
    interval = {"mean": -1.0, "ci_low": -1.5, "ci_high": -0.5, "items": 200, "p": 0.0004, "std": 0.25}
    bounds = {"bootstrap_low": -1.6, "bootstrap_high": -0.4, "runs": [[0, 1], [0, 1]]}
    pairs = ((["C-FT", "idm", 1], ["C-FT", "idm", 8]), (["C-FT", "idm", 1], ["C-FDM", "idm", 1]))
    rows = [{"metric": "final", "first": first, "second": second, **interval, **bounds} for first, second in pairs]
    claims = {claim.key: claim.measured for claim in judge_claims(tables_of(differences=rows), Labels())}
    words = "bootstrap [+0.400, +1.600], p < .001, n 200, training seeds 2 (± 0.250)"
    assert any(words in line for line in claims["verification-C-FT"])
    assert words in claims["bootstrapping"][0]
    # As it stands in the tables where the claim is about that difference, and absent in those of earlier versions.
    turned = [{**rows[1], "first": rows[1]["second"], "second": rows[1]["first"]}]
    claims = {claim.key: claim.measured for claim in judge_claims(tables_of(differences=turned), Labels())}
    assert "bootstrap [-1.600, -0.400]" in claims["bootstrapping"][0]
    old = [{name: value for name, value in rows[1].items() if not name.startswith("bootstrap")}]
    claims = {claim.key: claim.measured for claim in judge_claims(tables_of(differences=old), Labels())}
    assert "bootstrap" not in claims["bootstrapping"][0]
