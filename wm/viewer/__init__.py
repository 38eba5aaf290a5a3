"""Static pages: triplets with filters, motion curves and rejects; and clips with the pairs proposed of them."""

from wm.viewer.build import Limits, plan_page, write_page
from wm.viewer.source import open_source

__all__ = ["Limits", "open_source", "plan_page", "write_page"]
