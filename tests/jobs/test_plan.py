"""The planning job: from videos, benchmark files and a cluster to hours and cost."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.plan.job import PlanRecipe, main, run
from tests.helpers.video_files import marked_frame, write_video
from wm.datasets.scale import MEASURED
from wm.errors import InputError
from wm.runs import write_json

KEYFRAMES = {"dis_frames_per_s": 1000.0, "exact_frames_per_s": 100.0, "fetch_images_per_s": 50.0}
ANNOTATE = {"encode_images_per_s": 20.0, "idm_pairs_per_s": 10.0, "write_triplets_per_s": 200.0}
NODES = [
    {"name": "gpu", "count": 1, "cpus": 9, "gpus": 1, "price_per_hour": 2.0},
    {"name": "cpu", "count": 2, "cpus": 4, "price_per_hour": 0.5},
]


@pytest.fixture
def rates(tmp_path: Path) -> list[str]:
    for name, values in (("keyframes", KEYFRAMES), ("annotate", ANNOTATE)):
        write_json(tmp_path / f"{name}.json", {"benchmark": name, "ratios": {}, "rates": values})
    return [str(tmp_path / "keyframes.json"), str(tmp_path / "annotate.json")]


def planned(rates: list[str], **values: Any) -> dict[str, Any]:
    return run(PlanRecipe.parse({"rates": rates, "nodes": NODES} | values, "here"))


def test_hours_and_cost_by_hand(rates: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plans" / "plan.json"
    given = {"hours": 2.0, "mean_length_s": 7.2, "fps": 20.0, "keyframes_per_video": 3.0}
    plan = planned(rates, **given, out=str(out))
    assert plan["work"] == {
        "videos": 1000,
        "length_s": 7200,
        "frames": 144_000,
        "images": 3000,
        "pairs": 2000,
        "triplets": 2000,
    }
    # CPU: 144 + 60 s on 9 - 1 + 2 x 4 cores. GPU: 150 + 200 + 10 s on one. Nine tenths of the time at work.
    assert plan["hours"] == pytest.approx(360 / 0.9 / 3600, abs=1e-6) and plan["bottleneck"] == "gpu"
    assert plan["cost"] == pytest.approx(3.0 / 9, abs=1e-6)
    assert plan["busy"]["cpu"] == pytest.approx(204 / 16 / 400, abs=1e-6) and plan["busy"]["gpu"] == 0.9
    assert plan["storage_gb"] == 0.38
    assert plan["one_more"]["gpu"]["hours"] == pytest.approx(200 / 3600, abs=1e-6)
    assert plan["one_more"]["gpu"]["cost"] == pytest.approx(5 * 200 / 3600, abs=1e-5)
    assert plan["one_more"]["cpu"]["hours"] == plan["hours"]
    assert json.loads(out.read_text()) == plan
    message = capsys.readouterr().out
    assert "1,000 videos, 2.00 h of video → 2,000 triplets, 0.38 GB" in message
    assert (
        "takes 6.7 min; gpu is the bottleneck; costs 0.33" in message and "one more gpu: 3.3 min, costs 0.28" in message
    )
    on_cores = planned(rates, **given, resources={"annotate_on": "cpu"}, keyframes={"motion": "farneback"})
    assert on_cores["hours"] == pytest.approx((1440 + 60 + 360) / 17 / 0.9 / 3600, abs=1e-6)
    slow = planned([*rates, _file(tmp_path, {"rates": {"idm_pairs_per_s": 1.0}})], **given)
    assert slow["stage_hours"]["idm"] == pytest.approx(2000 / 3600, abs=1e-6)


def _file(folder: Path, value: Any, name: str = "more.json") -> str:
    write_json(folder / name, value)
    return str(folder / name)


def test_table_7_stands_in_for_what_is_not_known(rates: list[str]) -> None:
    plan = planned(rates, hours=7.24, mean_length_s=7.24)
    assert plan["work"]["videos"] == 3600 and plan["work"]["images"] == 10800 and plan["work"]["pairs"] == 7200
    assert plan["work"]["frames"] == 3600 * 181
    assert any("25 frames/s: assumed" in note for note in plan["notes"])
    assert any("3.00 key-frames a video of 7.24 s" in note for note in plan["notes"])


def test_gpus_measure_motion_where_that_is_known_to_be_quicker(rates: list[str], tmp_path: Path) -> None:
    """144,000 frames: 1,440 + 60 s on 16 cores, or 144 + 60 s there and 360 s + 144,000 / rate on the GPU."""
    given = {"hours": 2.0, "mean_length_s": 7.2, "fps": 20.0, "keyframes_per_video": 3.0}
    given["resources"] = {"efficiency": 1.0}
    exact = {"motion": "farneback"}
    unknown = planned(rates, **given, keyframes=exact)
    assert unknown["bottleneck"] == "gpu" and "flow" not in unknown["stage_hours"]
    assert unknown["rates"].keys() == unknown["stage_hours"].keys()
    assert any("rates lack 'grey_frames_per_s'; wm benchmark keyframes" in note for note in unknown["notes"])
    # One core in all: exact motion is the bottleneck.
    given["nodes"] = [{"name": "node", "count": 1, "cpus": 2, "gpus": 1}]
    quick, slow = (
        _file(tmp_path, {"rates": {"grey_frames_per_s": 1000.0, "flow_frames_per_s": rate}}, f"{rate:g}.json")
        for rate in (7200.0, 72.0)
    )
    plan = planned([*rates, quick], **given, keyframes=exact)
    assert plan["stage_hours"]["flow"] == pytest.approx(20 / 3600, abs=1e-6)
    assert plan["hours"] == pytest.approx(380 / 3600, abs=1e-6) and plan["bottleneck"] == "gpu"
    assert "keyframes.device = cuda: 0.11 h, with cpu 0.42 h" in plan["notes"]
    plan = planned([*rates, slow], **given, keyframes=exact)
    assert plan["hours"] == pytest.approx(1500 / 3600, abs=1e-6) and "flow" not in plan["stage_hours"]
    assert "keyframes.device = cpu: 0.42 h, with cuda 0.66 h" in plan["notes"]
    forced = planned([*rates, slow], **given, keyframes={**exact, "device": "cuda"})
    assert forced["hours"] == pytest.approx((360 + 2000) / 3600, abs=1e-6)
    with pytest.raises(InputError, match="rates lack 'grey_frames_per_s'"):
        planned(rates, **given, keyframes={**exact, "device": "cuda"})


def test_a_folder_of_videos_is_probed(rates: list[str], tmp_path: Path) -> None:
    for number, frames in enumerate((20, 40)):
        write_video(tmp_path / "v" / f"{number}.mp4", [marked_frame(index) for index in range(frames)], fps=10)
    (tmp_path / "v" / "broken.mp4").write_bytes(b"no video")
    plan = planned(rates, videos=str(tmp_path / "v"))
    assert plan["work"]["videos"] == 3
    assert plan["work"]["length_s"] == pytest.approx(9, abs=0.5) and plan["work"]["frames"] == pytest.approx(90, abs=5)
    assert any("headers of 2 of 3 local videos" in note for note in plan["notes"])
    with pytest.raises(InputError, match=r"how long are the videos. None of 0 headers says"):
        planned(rates, videos=str(tmp_path / "v"), probe=0)


def test_a_list_with_times_needs_no_probing(rates: list[str], tmp_path: Path) -> None:
    lines = ["uri,start_s,end_s", "a.mp4,1.0,3.0", "a.mp4,,4.0", "s3://bucket/b.mp4,,"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    plan = planned(rates, videos=str(tmp_path / "list.csv"), mean_length_s=6.0, fps=10.0)
    assert plan["work"]["length_s"] == 12 and plan["work"]["frames"] == 120
    with pytest.raises(InputError, match="how long are the videos"):
        planned(rates, videos=str(tmp_path / "list.csv"))


def test_a_finished_run_tells_what_videos_give(rates: list[str], tmp_path: Path) -> None:
    counts = {"videos": 10, "decoded": 8, "frames": 2400, "video_s": 80.0}
    counts |= {"keyframes_of_paired": 20, "pairs": 14, "triplets": 7}
    write_json_in(tmp_path / "run", {"stage": "annotate", "counts": counts})
    (tmp_path / "run" / "triplets").mkdir()
    (tmp_path / "run" / "triplets" / "shard-000000.parquet").write_bytes(bytes(7000))
    plan = planned(rates, hours=1.0, from_run=str(tmp_path / "run"))
    # 360 videos of 10 s at 30 frames/s, of which 8 in 10 decode.
    work = {"videos": 360, "length_s": 3600, "frames": 86_400, "images": 720, "pairs": 504, "triplets": 252}
    assert plan["work"] == work and plan["storage_gb"] == 0.0
    assert planned(rates, hours=1.0, from_run=str(tmp_path / "run"), bytes_per_triplet=10**6)["storage_gb"] == 0.252
    # A look knows no triplets, but the pairs that the filters without a model keep, and the size of their images.
    counts = {name: value for name, value in counts.items() if name != "triplets"}
    counts |= {"kept": 7, "png_bytes_per_image": 500_000}
    write_json_in(tmp_path / "run", {"stage": "look", "counts": counts})
    plan = planned(rates, hours=1.0, from_run=str(tmp_path / "run"))
    assert plan["work"] == work and plan["storage_gb"] == 0.252
    assert "without the filters that need a model" in plan["notes"][0]
    write_json_in(tmp_path / "run", {"stage": "select", "counts": {}})
    with pytest.raises(InputError, match="is no finished annotate or look"):
        planned(rates, hours=1.0, from_run=str(tmp_path / "run"))


def write_json_in(folder: Path, record: Any) -> None:
    folder.mkdir(exist_ok=True)
    write_json(folder / "run.json", record)


PROBE = {
    "videos": 10, "decoded": 8, "frames": 2400, "video_s": 80.0, "keyframes_of_paired": 20, "pairs": 14, "triplets": 7,
    "triplet_bytes": 7000,
}  # fmt: skip


def test_a_probe_says_rates_habits_and_efficiency(tmp_path: Path) -> None:
    record = {"benchmark": "probe", "ratios": {"efficiency": 0.5}, "rates": KEYFRAMES | ANNOTATE, "counts": PROBE}
    plan = planned([_file(tmp_path, record)], hours=1.0)
    # 360 videos of 10 s, of which 8 in 10 decode: as a finished run of the same counts has it.
    assert plan["work"] == {
        "videos": 360, "length_s": 3600, "frames": 86_400, "images": 720, "pairs": 504, "triplets": 252
    }  # fmt: skip
    assert plan["busy"]["gpu"] == 0.5 and f"from {tmp_path / 'more.json'}, 8 videos that decode" in plan["notes"][0]
    # What is given comes first.
    assert planned([str(tmp_path / "more.json")], hours=1.0, resources={"efficiency": 1.0})["busy"]["gpu"] == 1.0
    del record["counts"]["pairs"]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"is a probe without counts\.pairs"):
        planned([_file(tmp_path, record)], hours=1.0)


def test_all_sizes_and_what_breaks_first(rates: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = dict.fromkeys(MEASURED, 1.0) | {"list_peak_mib": 1024.0, "shards_s": 36_000.0}
    write_json(tmp_path / "costs.json", {"unit_costs": costs})
    scale = {"unit_costs": str(tmp_path / "costs.json"), "driver_memory_gib": 0.5, "in_bucket": False}
    given = {"hours": 200.0, "mean_length_s": 7.2, "fps": 20.0, "keyframes_per_video": 3.0, "max_nodes": 300}
    plan = planned(rates, **given, scale=scale, figure=str(tmp_path / "plans" / "plan.svg"))
    # 100,000 videos in 3,125 shards: 36,000 s for 10,000 of them are 3.125 h of the driver, and a second of listing.
    assert [row["nodes"] for row in plan["sizes"]] == [3, 6, 9, 21, 51, 99, 201]
    first, last = plan["sizes"][0], plan["sizes"][-1]
    assert (first["bottleneck"], last["bottleneck"]) == ("gpu", "driver")
    alone_h = (1.0 + 0.3125) / 3600
    assert last["hours"] == pytest.approx(3.125 + alone_h)
    assert last["cost"] == pytest.approx(last["hours"] * (67 * 2.0 + 134 * 0.5))
    assert first["hours"] == pytest.approx(plan["hours"] + alone_h, abs=1e-5)
    # 1 GiB for the listing, where half is there.
    limit = plan["scale"]["limits"][0]
    assert limit["share"] == pytest.approx(2.0) and limit["breaks_at"] == 50_000
    assert plan["scale"]["price"] == 0.0
    message = capsys.readouterr().out
    assert "breaks first: the driver's memory, to list the videos: 200% of it (reached at 50,000 videos)" in message
    assert (tmp_path / "plans" / "plan.svg").read_text().startswith("<?xml")
    for values, said in (
        ({"figure": "plan.gif"}, "expected a name that ends in .svg or .png"),
        ({"scale": {"unit_costs": str(tmp_path / "none.json")}}, "cannot be read"),
        ({"scale": {"unit_costs": rates[0]}}, r"unit_costs\.list_s = None; wm benchmark scale writes such files"),
    ):
        with pytest.raises(InputError, match=said):
            planned(rates, **given | values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"nodes": []}, "nodes = "),
        ({"nodes": [NODES[0] | {"count": 0}]}, "nodes holds no node"),
        ({"nodes": NODES[1:]}, "annotate_on = 'gpu' and no node has gpus"),
        ({"nodes": [NODES[0], NODES[0]]}, "nodes of the same name"),
        ({"nodes": [NODES[0] | {"cores": 3}]}, "unknown key 'nodes.0.cores'"),
        ({"hours": None}, "give either videos, or hours and mean_length_s"),
        ({"videos": "v"}, "give either videos, or hours and mean_length_s"),
        ({"mean_length_s": None}, "hours needs mean_length_s"),
        ({"rates": ["nowhere.json"]}, "no such file: nowhere.json"),
        ({"keyframes": {"motion": "block"}}, r"keyframes\.motion = 'block'"),
        ({"keyframes": {"rule": "best"}}, r"keyframes\.rule = 'best'.*top_then_spacing or greedy_spacing"),
        ({"motion": "dis"}, r"unknown key 'motion': it is called keyframes\.motion now"),
        ({"resources": {"efficiency": 0.0}}, r"resources\.efficiency = 0\.0"),
    ],
)
def test_bad_input_is_named(rates: list[str], values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        planned(**({"rates": rates, "hours": 1.0, "mean_length_s": 9.0} | values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "holds no object 'rates'"),
        ("[1]", "holds no object 'rates'"),
        ('{"rates": {}}', "holds no object 'rates'"),
        ("{", "is not JSON"),
        ('{"rates": {"idm_pairs_per_s": "fast"}}', "has idm_pairs_per_s = 'fast'; expected a number"),
        ('{"rates": {"idm_pairs_per_s": -1}}', "rates lack 'dis_frames_per_s'; wm benchmark keyframes"),
    ],
)
def test_files_without_rates_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "rates.json").write_text(text)
    with pytest.raises(InputError, match=said):
        planned([str(tmp_path / "rates.json")], hours=1.0, mean_length_s=9.0)


def test_the_command_line(
    rates: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "all.json", {"rates": KEYFRAMES | ANNOTATE})
    recipe = Path(__file__).parents[2] / "jobs" / "recipes" / "plan" / "cluster.toml"
    given = [str(recipe), f"rates={tmp_path / 'all.json'}", "hours=10", "mean_length_s=9.02", f"out={tmp_path / 'p'}"]
    monkeypatch.setattr("sys.argv", ["plan", *given, "--dry-run"])
    assert main() == 0 and not (tmp_path / "p").exists()
    monkeypatch.setattr("sys.argv", ["plan", *given[:1], f"rates={json.dumps(rates)}", *given[2:]])
    assert main() == 0 and (tmp_path / "p").is_file()
    assert "costs" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["plan", "--help"])
    with pytest.raises(SystemExit):
        main()
    message = capsys.readouterr().out
    assert "nodes[].price_per_hour" in message and "from_run" in message
