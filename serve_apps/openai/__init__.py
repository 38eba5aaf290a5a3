"""Requests in OpenAI's form as plain data: what is accepted, and the shape of every error.

Nothing here speaks HTTP or knows a model.
"""

from serve_apps.openai.chat import ChatAsked, ChatFields, chat_from_json
from serve_apps.openai.checks import MAX_SEED
from serve_apps.openai.edits import Edit, EditFields, edit_from_form, edit_from_json
from serve_apps.openai.errors import ApiError, Limits
from serve_apps.openai.fields import MAX_GUIDANCE, OutputFormat
from serve_apps.openai.pictures import count_pixels_of, prepare_image
from serve_apps.openai.rollouts import RolloutAsked, RolloutFields, rollout_from_json
from serve_apps.openai.score import ScoreAsked, ScoreFields, score_from_json

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
