"""The page for operators at /ui, its files and its own routes of /admin."""

from gateway.page.routes import page_routes

__all__ = ["page_routes"]
