"""Everything at once for an hour (``make soak``), or for two minutes (``tests/soak/test_soak.py``)."""
