"""Knows who asks and what they may: the tenants file, API keys, the caller of a request."""
