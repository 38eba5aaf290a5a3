"""Write the tables of columns of the data format: types from the schemas, meanings from here. A test holds that both
name the same columns.
"""

import pyarrow as pa

from jobs.annotate.tables import CLIPS_SCHEMA, PAIRS_SCHEMA
from jobs.predict.triplets import SCHEMA as PREDICTIONS_SCHEMA
from wm.datasets.selection.algorithm import SELECTION_SCHEMA
from wm.models.manifest import Manifest
from wm.recipe_help import list_key_help
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA

_CLASS = "Class of the video, or of the data set's own row; empty or null where there is none."
_FRAME = "Number of the key-frame in the file, from 0; null where the pair is not of a video."
_LOGPROB = "Sum of the log-probabilities of the action's tokens and its end, nats; null for human actions."
_COUNT = "Number of those tokens; `action_logprob / action_tokens` is the mean that selection ranks by."

MEANINGS: dict[str, dict[str, str]] = {
    "triplets": {
        "triplet_id": "24 hexadecimal digits that depend on data set, video and frames alone: the same in every run.",
        "dataset": "Name of the data set, such as `kinetics700`.",
        "split": "`train`, `test`, …",
        "class_label": _CLASS,
        "video_uri": "Where the video is; null for pairs of images.",
        "source_frame": _FRAME,
        "target_frame": _FRAME,
        "source_time_s": "Its time in the file's own clock, seconds.",
        "target_time_s": "The same of the target.",
        "motion": "Mean optical-flow magnitude at the target key-frame, px/frame.",
        "source_image": "Encoded image before the action: PNG, JPEG or WebP bytes, and a file name or null.",
        "target_image": "The image after it.",
        "codec": "Identity of the image codec that made the codes, a hash of its weights.",
        "source_codes": "Codebook ids, row-major; not ids of a language model's vocabulary.",
        "target_codes": "The same of the target.",
        "change": "Squared L2 distance of the pre-quantised features at each image token, not normalised.",
        "action": "What happens from source to target, in words.",
        "action_logprob": _LOGPROB,
        "action_tokens": _COUNT,
        "origin": "`human` (somebody wrote the action), `idm` (a model read it from both images), `fdm` (a model made"
        " the target).",
        "annotator": "The model that wrote the action, or the data set's name for the person.",
        "status": "`ok`; anything else is not trained on.",
        "license": "Licence of the source, as the data set says it; null where it says nothing.",
        "reader": "What decoded both frames: `decord` or `pyav`.",
    },
    "rejects": {
        "reject_id": "Depends on data set, uri, stage and reason alone.",
        "dataset": "Name of the data set.",
        "split": "`train`, `test`, …",
        "class_label": _CLASS,
        "uri": "What was left out: a video, a triplet, an entry of a list.",
        "stage": "The command that left it out.",
        "outcome": "`filtered`: usable, not wanted. `failed`: not usable.",
        "reason": "Short and stable, to count by: `missing_file`, `time_out`, `too_dark`.",
        "detail": "The reason in words, with the thing's name and numbers.",
    },
    "clips": {
        "key": "The video's path below the listed folder, or its entry in the list.",
        "uri": "Where the video is.",
        "class_label": _CLASS,
        "start_s": "Begin of the segment in the file's clock, seconds; null: the beginning.",
        "end_s": "Its end, not included.",
        "num_frames": "Frames that were read.",
        "duration_s": "Seconds of them.",
        "frame_s": "Mean seconds between two frames.",
        "height_px": "Upright, in square pixels.",
        "width_px": "The same.",
        "orientation": "What laid the stored frames upright, as ffmpeg's filters; empty where nothing did.",
        "sample_aspect_ratio": "Of the stored frames; `1:1` where their pixels are square.",
        "reader": "What read the key-frames: `decord` or `pyav`.",
        "fallback": "Why decord, asked first, did not.",
        "errors": "Packets that could not be decoded.",
        "keyframes": "Numbers of the chosen frames.",
        "times_s": "Their times in the file's clock, seconds.",
        "motion": "The complete motion curve, px/frame at full size, one number a frame.",
    },
    "pairs": {
        "triplet_id": "That of the triplet, if the pair became one.",
        "key": "The video's, as in `clips`.",
        "class_label": _CLASS,
        "source_frame": "Number of the first key-frame.",
        "target_frame": "Number of the second.",
        "motion": "At the target, px/frame.",
        "difference": "Mean absolute difference of the two frames; null where that filter is off.",
        "cut": "Largest step of one frame to the next between them, as a score of a cut.",
        "luma": "Mean brightness of the darker frame.",
        "sharpness": "Of the less sharp frame.",
        "source_hash": "Perceptual hash.",
        "target_hash": "Perceptual hash.",
        "repeat_bits": "Bits in which the pair differs from the nearest earlier one of its shard.",
        "changed_codes": "Image codes that differ between source and target; null where the codec was not asked.",
        "changed_share": "The same as a share of all codes, 0 to 1.",
        "action": "The proposed action; null where a filter took the pair out before.",
        "action_logprob": _LOGPROB,
        "action_tokens": _COUNT,
        "outcome": "`ok`: a triplet. `filtered`: not.",
        "reason": "The filter that took it out.",
        "findings": "Every threshold that the pair is beyond, those of filters that only score among them.",
    },
    "selection": {
        "triplet_id": "A chosen row of the triplets.",
        "class_label": _CLASS,
        "score": "What ranked it: mean or sum of the action's log-probability, nats.",
        "rank_in_class": "0 is the best of its class.",
        "order": "The turn at which the round over the classes took it.",
    },
    "predictions": {
        "triplet_id": "Whose source and action were predicted from.",
        "action": "In words.",
        "rank": "0 is the prediction; more with `search.num_return`.",
        "codec": "Identity of the image codec.",
        "codes": "Codebook ids of the predicted image.",
        "logprob": "Log-probability of the action between source and prediction, nats.",
        "action_tokens": "Number of its tokens.",
        "unchanged_share": "Share of the codes that equal the source's; 1 is a copy.",
        "seed": "The row's own, made of the recipe's and of the id.",
        "candidate": "Number of the candidate; with `seed` it reproduces the sample.",
        "times": "How often this image was sampled among `draws`.",
        "draws": "Candidates that were sampled.",
        "rounds": "In how many rounds.",
        "passes": "Of the forward model, where sampling was speculative.",
    },
}
"""Of each table: what every column means, with its unit."""

SCHEMAS: dict[str, pa.Schema] = {
    "triplets": TRIPLET_SCHEMA,
    "rejects": REJECT_SCHEMA,
    "clips": CLIPS_SCHEMA,
    "pairs": PAIRS_SCHEMA,
    "selection": SELECTION_SCHEMA,
    "predictions": PREDICTIONS_SCHEMA,
}


def list_columns(table: str) -> str:
    """Build the Markdown table of a table's columns: name, type, meaning with unit.

    Args:
        table: A key of :data:`SCHEMAS`.

    Raises:
        KeyError: A column has no meaning here.
    """
    meanings = MEANINGS[table]
    rows = [
        f'| <a id="{table}.{field.name}"></a>`{field.name}` | `{_describe_type(field.type)}` | {meanings[field.name]} |'
        for field in SCHEMAS[table]
    ]
    return "\n".join(["| column | type | meaning |", "| --- | --- | --- |", *rows])


def list_manifest_keys() -> str:
    """Build the Markdown table of the keys of ``wm_model.json``."""
    rows = [f"| `{key.path}` | {key.type_words.replace(' | ', ', ')} | {key.text} |" for key in list_key_help(Manifest)]
    return "\n".join(["| key | type | meaning |", "| --- | --- | --- |", *rows])


def _describe_type(kind: pa.DataType) -> str:
    """Name a type without the names that Arrow gives to parts."""
    if pa.types.is_list(kind):
        return f"list<{_describe_type(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(field.name for field in kind)}>"
    return {"double": "float64", "float": "float32"}.get(str(kind), str(kind))
