"""Let a vision-language model behind OpenAI's chat API judge predicted images."""
