"""Simulate a procedural toy world with exact state, so that the complete loop runs and is measured offline.

``scenes``: states and their images. ``actions``: what can happen, in words and back. ``videos``: unlabelled clips.
``triplets``: a supervised set in AURORA's layout. ``oracle``: a judge that reads images back into states.
"""

from wm.nano.world.actions import Action, actions_of, parse_action
from wm.nano.world.oracle import action_is_right, judge, read_states
from wm.nano.world.scenes import Camera, State, random_state, render

__all__ = [
    "Action",
    "Camera",
    "State",
    "action_is_right",
    "actions_of",
    "judge",
    "parse_action",
    "random_state",
    "read_states",
    "render",
]
