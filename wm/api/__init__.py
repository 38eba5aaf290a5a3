"""Requests in OpenAI's form as plain data: what is accepted, and the shape of every error.

Nothing here speaks HTTP or knows a model.
"""

from wm.api.chat import ChatFields, Question, question_from_json
from wm.api.checks import MAX_SEED
from wm.api.edits import MAX_GUIDANCE, Edit, EditFields, OutputFormat, edit_from_form, edit_from_json
from wm.api.errors import ApiError, Limits
from wm.api.pictures import prepare_images
from wm.api.score import ScoreFields, Scoring, scoring_from_json

__all__ = [
    "MAX_GUIDANCE",
    "MAX_SEED",
    "ApiError",
    "ChatFields",
    "Edit",
    "EditFields",
    "Limits",
    "OutputFormat",
    "Question",
    "ScoreFields",
    "Scoring",
    "edit_from_form",
    "edit_from_json",
    "prepare_images",
    "question_from_json",
    "scoring_from_json",
]
