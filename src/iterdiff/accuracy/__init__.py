"""How wrong a derivative is: estimates, reports, and a stopping rule."""
