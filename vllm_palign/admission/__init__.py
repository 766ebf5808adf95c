"""Lets a request in: names to content, content to effect and KV identity, to engines that steer."""
