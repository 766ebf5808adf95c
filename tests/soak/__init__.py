"""Everything at once for an hour (``make soak``), or for five minutes (``tests/test_soak.py``)."""
