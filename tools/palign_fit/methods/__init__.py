"""From answers or pairs to offsets: each method in a room of its own, and the maths they share."""
