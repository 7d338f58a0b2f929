"""Routers between two networks: forwarding, NAT and firewalls; pure. `gpasst.api.router` puts one on switches."""
