"""``palign verify``: what a machine can prove about steering, on its own hardware, with any model."""
