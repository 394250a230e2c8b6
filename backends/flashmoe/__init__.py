"""Reads fewer experts of a mixture-of-experts model, and says what that costs."""
