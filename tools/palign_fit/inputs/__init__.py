"""What people give: answers, inventories, pairs, sliders, and the readers of their files."""
