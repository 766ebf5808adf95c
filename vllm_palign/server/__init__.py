"""What an HTTP client meets: gate, body, management of personas, models, audit, usage."""
