"""The program under torture: kills, mutated inputs, rivals and hostile names, counted."""
