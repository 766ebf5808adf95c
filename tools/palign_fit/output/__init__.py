"""Writes personas of one subject or hundreds of thousands into folders and shards, and finds those that are there."""
