"""Read a class from the folder that a video is in, at any depth."""

from wm.datasets.layouts.base import Layout, folder_of

LAYOUT = Layout(class_of=folder_of, path_example="class/NAME.mp4")
