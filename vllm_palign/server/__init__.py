"""What an HTTP client meets: the gate, the body, persona management, models, audit, metrics."""
