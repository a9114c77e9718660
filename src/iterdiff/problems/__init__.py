"""What is solved: problem families, proximal operators, and checks of user arguments."""
