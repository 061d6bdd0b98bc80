"""Small molecules in space: what an atom is, how bonds follow, rewards, and the shipped models."""
