"""Shapes as clouds of points: furniture, judges, rewards and metrics."""
