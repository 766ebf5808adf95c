"""``palign play``: a page where a person meets personas. It knows a server by its public HTTP interface only."""
