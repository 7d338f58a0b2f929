"""The small unpatched process that owns namespaces and speaks netlink, and its client."""
