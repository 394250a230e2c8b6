"""What needs to know the model; meets the gateway over HTTP only."""
