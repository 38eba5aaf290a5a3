"""Read Moments in Time: ``training/class/FILE``, as Kinetics has it."""

from wm.datasets.layouts.base import Layout
from wm.datasets.layouts.kinetics import class_of

LAYOUT = Layout(class_of=class_of, path_example="training/class/NAME.mp4")
