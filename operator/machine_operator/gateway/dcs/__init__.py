"""The DCS REST dialect: paths, bodies and errors as its published clients expect them."""
