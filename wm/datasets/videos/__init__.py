"""List videos: folders, list files and the layouts of the usual data sets."""
