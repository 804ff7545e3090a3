"""Vision-language models and the contract that they share."""
