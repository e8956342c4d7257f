"""The GPU twins of the equations, one file per equation; importing one imports triton."""
