"""What does an operator look at?   The page at /ui, and what it asks for that nothing else gives."""

from gateway.page.routes import page_routes

__all__ = ["page_routes"]
