"""Where personas of one subject or hundreds of thousands go: folders and shards."""
