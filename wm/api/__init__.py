"""Requests in OpenAI's form as plain data: what is accepted, and the shape of every error.

Nothing here speaks HTTP or knows a model.
"""

from wm.api.checks import MAX_SEED
from wm.api.edits import MAX_GUIDANCE, Edit, EditFields, OutputFormat, edit_from_form, edit_from_json
from wm.api.errors import ApiError, Limits

__all__ = [
    "MAX_GUIDANCE",
    "MAX_SEED",
    "ApiError",
    "Edit",
    "EditFields",
    "Limits",
    "OutputFormat",
    "edit_from_form",
    "edit_from_json",
]
