"""Evaluations that speak to the gateway, or to a model server, over HTTP only."""
