"""Ask people which prediction is best: studies, their pages, and the store of their votes."""
