"""A static page to look at a triplet data set: contact sheet, filters, motion curves, rejects by reason."""

from wm.viewer.build import Limits, plan_page, write_page
from wm.viewer.source import open_source

__all__ = ["Limits", "open_source", "plan_page", "write_page"]
