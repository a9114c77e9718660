"""What is solved: problem families, proximal operators, checks of arguments."""
