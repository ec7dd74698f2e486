"""The command line, one command a file. Heavy imports stand inside the functions, so that ``--help`` is quick."""
