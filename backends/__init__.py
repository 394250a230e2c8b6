"""All code that depends on the model or its servers; the gateway reaches it over HTTP only."""
