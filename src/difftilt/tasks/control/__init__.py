"""Offline control: logged transitions, the environments they come from, and how a policy scores."""
