"""A simulated vLLM server: its OpenAI API, its timing, its failures."""
