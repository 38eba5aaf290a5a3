"""Figure 3: weights are the stored ones, or those of a codec; without either the map says why it is not there."""

import numpy as np
import pytest

from tests.helpers.evaluate_data import noise_pair, write_triplets
from wm.errors import InputError
from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.drawing import save_png
from wm.evaluation.paper.figures.heat_maps import HeatMaps, WeightedTriplet, build_heat_maps, to_weights
from wm.evaluation.paper.figures.read_heat_maps import read_heat_maps
from wm.evaluation.paper.options import FigureOptions
from wm.evaluation.paper.sources import read_sources
from wm.models import change_map, load_codec
from wm.runs import write_json

ACTIONS = ["put the cup", "take the cup"]


@pytest.fixture(scope="module")
def folders(tiny_base, tmp_path_factory):
    """Two data sets: one with stored weights, one without."""
    root = tmp_path_factory.mktemp("sets")
    sets = []
    for name, stage, codec in (("videos", "annotate", load_codec(tiny_base)), ("kubric", "ingest", None)):
        write_triplets(root / name / "triplets", noise_pair, ACTIONS, codec=codec)
        write_json(root / name / "run.json", {"stage": stage, "recipe": {"dataset": name}, "counts": {}})
        sets.append(str(root / name))
    return sets


def test_weights_have_mean_one():
    assert to_weights(np.array([1.0, 3.0, 0.0, 0.0])).tolist() == [[1.0, 3.0], [0.0, 0.0]]
    assert to_weights(np.zeros(4)).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert to_weights(np.ones(3)) is None and to_weights(np.array([])) is None


def test_maps_are_drawn_over_the_target():
    source, target = noise_pair(0)
    weights = np.array([[0.0, 4.0], [0.0, 0.0]])
    data = HeatMaps(
        (
            WeightedTriplet("AG", "open it", source, target, weights),
            WeightedTriplet("MIT", "jump", source, target, None, "no codec"),
        ),
        is_toy=True,
    )
    figure = build_heat_maps(data)
    images = [axes.get_images() for axes in figure.axes]
    assert np.array_equal(images[0][0].get_array(), source) and np.array_equal(images[1][0].get_array(), target)
    grey, heat = images[2]
    assert grey.get_extent() == heat.get_extent() and np.array_equal(heat.get_array(), weights)
    assert heat.get_clim() == (0, 4) and figure.axes[2].get_xlabel() == "0 to 4 (mean 1)"
    assert images[5] == [] and figure.axes[5].texts[0].get_text() == "no codec"
    assert save_png(figure) == save_png(build_heat_maps(data))


def test_stored_weights_come_first_then_the_codecs(folders, tiny_base):
    data = read_heat_maps(read_sources(folders, options=FigureOptions(weighted_triplets=["t1"])))
    # The paper's sets come first.
    assert [(triplet.title, triplet.action) for triplet in data.triplets] == [
        ("Kubric", ACTIONS[1]),
        ("videos", ACTIONS[1]),
    ]
    kubric, videos = data.triplets
    assert kubric.weights is None and kubric.reason == "no weights stored: give figures.codec=MODEL"
    assert videos.weights.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert np.array_equal(videos.target, noise_pair(1)[1]) and np.array_equal(kubric.source, noise_pair(1)[0])
    options = FigureOptions(weighted_triplets=["t1"], codec=str(tiny_base))
    kubric = read_heat_maps(read_sources(folders, options=options)).triplets[0]
    codec = load_codec(tiny_base)
    change = change_map(*(codec.encode_with_features(image[None])[1] for image in noise_pair(1)))[0].numpy()
    assert kubric.weights.ravel() == pytest.approx(change / change.mean())


def test_the_choice_is_by_seed(folders):
    actions = [
        read_heat_maps(read_sources(folders, options=FigureOptions(seed=seed))).triplets[0].action for seed in range(8)
    ]
    assert set(actions) == set(ACTIONS)
    assert isinstance(read_heat_maps(read_sources([])), Absent)
    with pytest.raises(InputError, match="weighted_triplets: 't9' is of none of the 2 data sets"):
        read_heat_maps(read_sources(folders, options=FigureOptions(weighted_triplets=["t1", "t9"])))
