"""Ask models over OpenAI's chat API: the client, and asking many questions within limits of cost and attempts."""
