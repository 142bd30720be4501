"""One module per kernel family: what is legal, what it costs in resources, how it is instantiated."""
