"""Reads what people give: answers, inventories, pairs, sliders, and the files they come in."""
