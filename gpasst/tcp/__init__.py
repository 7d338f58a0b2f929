"""TCP between the guest and the host. Pure."""
