"""The paper's tables and figures from result folders, the published numbers beside one's own."""
