"""What a user can call: one module a command, which ``cli`` puts together."""
