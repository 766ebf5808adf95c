"""The language model: whether it fits, opened, prompted, read, differentiated, steered, and what it said kept."""
