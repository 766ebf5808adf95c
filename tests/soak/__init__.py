"""Everything at once for an hour (``make soak``), or for five minutes (``tests/soak/test_soak.py``)."""
