"""The server's pages and endpoints, one file a group: each a router over ``serve_apps.graph``."""
