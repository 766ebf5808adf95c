from tests.directions.made_up import inventory, tiny_directions

__all__ = ["inventory", "tiny_directions"]
