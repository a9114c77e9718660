"""Linear solves behind implicit derivatives that users steer."""
