"""Tiergate: one OpenAI-compatible endpoint in front of a fast and a strong model."""

__version__ = "0.1.0"
