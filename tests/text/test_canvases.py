"""Canvases: the ids at the seams, the roles, the lengths, and the way back to text."""

import pytest
import torch

from difftilt.diffusions.masked import GENERATED, GIVEN, PADDING, SUFFIX
from difftilt.errors import InputError
from difftilt.text.canvases import Canvases, canvases_of, given_canvases
from difftilt.text.codecs import Codec, surrounding
from difftilt.text.templates import parsed
from tiny_text import byte_tokenizer, tiny_prior, word_tokenizer


@pytest.fixture
def codec() -> Codec:
    tokenizer = word_tokenizer()
    return Codec(tokenizer, tokenizer.pad_token_id, *surrounding(tokenizer))


def made(codec: Codec, *texts: str, **options) -> Canvases:
    return canvases_of([parsed(text) for text in texts], codec, **options)


def test_special_tokens_stand_around_the_whole_once(codec: Codec):
    tokenizer = codec.tokenizer
    assert (codec.opening, codec.closing) == (
        (tokenizer.cls_token_id,),
        (tokenizer.sep_token_id,),
    )
    (layout,) = made(codec, "ann saw [2] . bob ran").layouts
    ids = tokenizer("ann saw [PAD] [PAD] . bob ran")["input_ids"]
    assert list(layout.tokens) == ids
    assert layout.roles == (GIVEN,) * 3 + (GENERATED,) * 2 + (SUFFIX,) * 3 + (GIVEN,)


@pytest.mark.parametrize(
    ("suffix", "roles"), [("posterior", [SUFFIX]), ("both", [GIVEN]), ("none", [])]
)
def test_who_sees_the_suffix(codec: Codec, suffix, roles: list[int]):
    (layout,) = made(codec, "[1] ran", suffix=suffix).layouts
    assert list(layout.roles) == [GIVEN, GENERATED, *roles, GIVEN]
    filled = [*layout.tokens]
    filled[1] = codec.ids("ann")[0]
    assert layout.passage(filled, codec).text == "ann ran"


def test_pieces_keep_the_ids_that_they_have_alone():
    tokenizer = byte_tokenizer()
    codec = Codec(tokenizer, tokenizer.eos_token_id)
    (layout,) = made(codec, "She ran. [2] Then").layouts
    first, last = codec.ids("She ran."), codec.ids(" Then")
    assert list(layout.tokens) == [*first, codec.pad_id, codec.pad_id, *last]
    assert tokenizer.decode(last) == " Then"


def test_canvases_of_several_templates_have_one_length(codec: Codec):
    canvases = made(codec, "ann saw bob . [3]", "[1] ran")
    tokens, roles = canvases.conditions.unbind(1)
    assert canvases.conditions.shape == (2, 2, 9) and canvases.generated == 3
    assert bool((tokens[1, 4:] == codec.pad_id).all()) and bool((roles[1, 4:] == PADDING).all())
    layouts = canvases.layouts_of(canvases.conditions.flip(0))
    assert [layout.context for layout in layouts] == [1, 0]


def test_lengths_follow_their_law(codec: Codec, generator: torch.Generator):
    canvases = made(codec, "[1-3] ran", "[2] met [0-1]", lengths=lambda n: n + 1.0)
    conditions, shares = canvases.of(0)
    assert (conditions[:, 1] == GENERATED).sum(1).tolist() == [1, 2, 3]
    assert shares == pytest.approx([2 / 9, 3 / 9, 4 / 9])
    drawn = canvases.drawn(20_000, generator)
    keys = [tuple(len(p) for p in layout.places) for layout in canvases.layouts_of(drawn)]
    wanted = {(1,): 2 / 18, (2,): 3 / 18, (3,): 4 / 18, (2, 0): 1 / 6, (2, 1): 2 / 6}
    assert set(keys) == set(wanted)
    for key, share in wanted.items():  # 5 cells, 5 standard errors: 3e-6 false alarms
        error = (share * (1 - share) / 20_000) ** 0.5
        assert abs(keys.count(key) / 20_000 - share) < 5 * error


def test_with_padding_a_slot_holds_its_most(codec: Codec):
    canvases = made(codec, "[2-3] ran")
    (layout,) = canvases.layouts
    ann, bob, pad = codec.ids("ann")[0], codec.ids("bob")[0], codec.pad_id
    fine = {
        (ann, bob, ann): True,
        (ann, bob, pad): True,
        (ann, pad, pad): False,
        (ann, pad, bob): False,
        (pad, ann, bob): False,
    }
    rows = torch.tensor([[layout.tokens[0], *three, *layout.tokens[4:]] for three in fine])
    condition = canvases.conditions.expand(len(rows), -1, -1)
    assert canvases.well_formed(rows, condition).tolist() == list(fine.values())
    passages = canvases.passages(rows, condition)
    assert passages[1].fillings == ("ann bob",) and passages[1].text == "ann bob ran"


def test_canvases_made_elsewhere_read_back_as_templates(codec: Codec):
    canvases = made(codec, "ann saw [3] bob [1-2] . cat ran", "[2] ran")
    again = given_canvases(canvases.conditions, codec)
    assert [str(layout.template) for layout in again.layouts] == [
        "ann saw [0-3] bob [0-2] . cat ran",
        "[0-2] ran",
    ]
    assert torch.equal(again.conditions, canvases.conditions)
    ids = canvases.conditions[:, 0].clone()
    ids[canvases.conditions[:, 1] == GENERATED] = codec.ids("met")[0]
    passages = again.passages(ids, again.conditions)
    assert [p.text for p in passages] == [
        "ann saw met met met bob met met . cat ran",
        "met met ran",
    ]
    assert passages[0].after == " . cat ran"


def test_errors_of_canvases(codec: Codec):
    with pytest.raises(InputError, match="no token for 'dog', 'barked' in the template"):
        made(codec, "dog barked [3]")
    with pytest.raises(InputError, match=r"no text follows the last slot of template 1"):
        made(codec, "[1] ran", "ann [1]", suffix="posterior")
    with pytest.raises(InputError, match="needs 34 tokens, but the model reads at most 32"):
        made(codec, "[32]", max_length=32)
    with pytest.raises(InputError, match="templates 0 and 1 give the same canvas"):
        made(codec, "[1] ran", "[1] met", suffix="none")
    with pytest.raises(InputError, match="8000 choices of lengths, more than 1024"):
        made(codec, "[1-20] [1-20] [1-20]", lengths="uniform")
    with pytest.raises(InputError, match="law of lengths"):
        made(codec, "[1-2]", lengths=lambda n: 0.0)
    with pytest.raises(InputError, match="at least one"):
        canvases_of([], codec)
    with pytest.raises(InputError, match="none of the 1 templates"):
        made(codec, "[1]").of(1)
    with pytest.raises(InputError, match="'ann bob' is 2 tokens"):
        codec.id_of("ann bob")


def test_a_typo_is_no_other_target(codec: Codec, unchecked: None):
    prior, given = tiny_prior(), made(codec, "[1-2] ran").conditions
    for template in ("[1-2] ran", given):
        for suffix in ("postrior", "", 2):
            sentence = f"suffix={suffix!r} says nothing; choose one of posterior, both, none"
            with pytest.raises(InputError, match=sentence):
                prior.infill(template, len, suffix=suffix)
        for lengths in ("unifrom", 3, None):
            sentence = f"lengths={lengths!r} is no law of lengths; choose one of padding, uniform"
            with pytest.raises(InputError, match=sentence):
                prior.infill(template, len, lengths=lengths)


def test_errors_of_models():
    model = tiny_prior().model
    from difftilt.text_priors import text_prior

    with pytest.raises(InputError, match="give pad_id"):
        text_prior(model.network, model.tokenizer, pad_id=99).infill("[1]", len)
    tokenizer = word_tokenizer()
    tokenizer._tokenizer.post_processor = None
    with pytest.raises(InputError, match="predicts the next token"):
        text_prior(model.network, tokenizer, shift=True).infill("[1]", len)
