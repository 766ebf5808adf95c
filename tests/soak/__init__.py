"""Everything at once for an hour (``make soak``), or for a minute or two (``tests/soak/test_soak.py``)."""
