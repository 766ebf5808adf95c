"""Steering on the real vLLM engine, against plain Hugging Face with ``o_proj.bias += W_o d``."""
