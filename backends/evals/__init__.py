"""Quality of models and of routing decisions, measured over HTTP."""
