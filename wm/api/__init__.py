"""Requests in OpenAI's form as plain data: what is accepted, and the shape of every error.

Nothing here speaks HTTP or knows a model.
"""

from wm.api.chat import ChatAsked, ChatFields, chat_from_json
from wm.api.checks import MAX_SEED
from wm.api.edits import Edit, EditFields, edit_from_form, edit_from_json
from wm.api.errors import ApiError, Limits
from wm.api.fields import MAX_GUIDANCE, OutputFormat
from wm.api.pictures import count_pixels_of, prepare_image
from wm.api.rollouts import RolloutAsked, RolloutFields, rollout_from_json
from wm.api.score import ScoreAsked, ScoreFields, score_from_json

__all__ = [
    "MAX_GUIDANCE",
    "MAX_SEED",
    "ApiError",
    "ChatAsked",
    "ChatFields",
    "Edit",
    "EditFields",
    "Limits",
    "OutputFormat",
    "RolloutAsked",
    "RolloutFields",
    "ScoreAsked",
    "ScoreFields",
    "chat_from_json",
    "count_pixels_of",
    "edit_from_form",
    "edit_from_json",
    "prepare_image",
    "rollout_from_json",
    "score_from_json",
]
