"""Networks that train in a second."""
