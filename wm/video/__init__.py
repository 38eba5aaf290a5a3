"""Turn a video file into key-frame pairs: decoding, optical flow, the paper's key-frame rule, isolation."""

from wm.video.clips import Clip, ClipReader, ClipSettings
from wm.video.errors import REASONS, VideoError
from wm.video.fetch import Reader
from wm.video.keyframes import KEYFRAME_RULES, choose_keyframes, frame_pairs
from wm.video.motion import MotionKind
from wm.video.scan import Scan, scan_video

__all__ = [
    "KEYFRAME_RULES",
    "REASONS",
    "Clip",
    "ClipReader",
    "ClipSettings",
    "MotionKind",
    "Reader",
    "Scan",
    "VideoError",
    "choose_keyframes",
    "frame_pairs",
    "scan_video",
]
