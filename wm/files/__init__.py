"""Find, read and download files: local paths, object stores and web servers."""
