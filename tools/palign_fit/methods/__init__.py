"""Makes offsets of answers or pairs: each method in a room or module of its own, and the maths they share."""
