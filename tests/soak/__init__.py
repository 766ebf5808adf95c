"""Everything at once for an hour (``make soak``), or for three minutes (``tests/soak/test_soak.py``)."""
