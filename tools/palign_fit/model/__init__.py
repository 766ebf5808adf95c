"""The language model: opened, prompted, read, differentiated, steered, and what it said kept."""
