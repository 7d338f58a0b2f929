"""Network files: networks, their hosts, routers and weather as a file in TOML describes them, and pictures of them."""
