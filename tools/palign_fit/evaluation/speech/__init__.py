"""What a persona makes of what the model says: recognition by a reader who never sees it, damage, fading."""
