"""The published procedure, as a yardstick."""
