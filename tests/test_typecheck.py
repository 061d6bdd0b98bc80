"""Types and shapes are checked at the first calls of a function in every test."""

import pytest
import torch
from jaxtyping import TypeCheckError

import typecheck
from difftilt._ops import log_mean_exp, over_event
from difftilt.chains.chain import Chain


def test_a_wrong_type_is_found_at_first_and_in_the_next_test():
    wrong, right = torch.ones(3, dtype=torch.long), torch.ones(3)
    with pytest.raises(TypeCheckError):
        log_mean_exp(wrong)
    for _ in range(typecheck.ENOUGH):
        log_mean_exp(right)
    assert float(log_mean_exp(wrong)) == 1  # runs bare by now
    with pytest.raises(TypeCheckError):
        over_event(torch.ones(3, 2), torch.ones(3, 2))  # as each function for itself
    typecheck.check_anew()
    with pytest.raises(TypeCheckError):
        log_mean_exp(wrong)


@pytest.mark.parametrize("name", ["steps", "predict"])
def test_methods_and_properties_are_found_by_name(name: str):
    def stand_in() -> None: ...

    stand_in.__module__, stand_in.__qualname__ = Chain.__module__, f"Chain.{name}"
    assert len(list(typecheck._layers(stand_in))) >= 2
