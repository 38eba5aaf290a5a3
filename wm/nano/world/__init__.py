"""Simulate a procedural toy world with exact state, so that the complete loop runs and is measured offline.

``scenes``: states and their images. ``actions``: what can happen, in words and back. ``videos``: unlabelled clips.
``triplets``: a supervised set in AURORA's layout. ``oracle``: a judge that reads images back into states.
"""

from wm.nano.world.actions import actions_of, parse_action
from wm.nano.world.oracle import read_states
from wm.nano.world.scenes import State, random_state, render

__all__ = [
    "State",
    "actions_of",
    "parse_action",
    "random_state",
    "read_states",
    "render",
]
