"""Vision-language models that read pixels: their chat and its tokens, logits, and folders."""
