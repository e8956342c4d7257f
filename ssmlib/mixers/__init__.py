"""The layers that have a proper name, one file per name: `y, state = mixer(x, state=None)`."""
