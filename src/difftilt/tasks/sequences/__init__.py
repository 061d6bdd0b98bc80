"""Sequences with two controls: DNA with known activities, real peptides, molecules as SELFIES."""
