"""Requests and replies in OpenAI's form: what is accepted, and the shape of every error. Nothing here speaks HTTP."""
