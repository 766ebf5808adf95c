"""palign: the operator's command line. One module a group of commands."""
