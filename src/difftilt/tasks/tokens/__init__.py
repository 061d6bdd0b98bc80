"""Token problems whose posterior is known by enumeration, for every condition."""

from difftilt.tasks.tokens.problems import TokenProblem, token_problems

__all__ = ["TokenProblem", "token_problems"]
